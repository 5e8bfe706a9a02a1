"""Tokens of others: who an OpenID Connect issuer says is calling, and how much of that is believed.

`section` is what an administrator says of an issuer; `keysets` reads its published keys; `issuerkeys` decides when to fetch
them, and `fetching` does it; `verifying` has the checks of a token, in order; `callers` makes a caller of what passed.
"""

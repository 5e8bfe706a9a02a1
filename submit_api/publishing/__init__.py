"""Trusted publishing: a run of CI brings a token of its own issuer and gets one of ours, for fifteen minutes and for a prefix.

So no long-lived token of ours lies in CI. `runs` reads what an issuer says of a run, `matching` finds the publisher that an
administrator made for it, `exchanging` makes the token, and `administering` keeps the publishers.
"""

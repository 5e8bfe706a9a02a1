"""What is signed, sealed, logged and refused: archive rules, manifests, tickets, grants, claims, log proofs, keys.

Promise: nothing here touches a clock, a network, a setting or a path, and nothing here runs with privileges. Rules take bytes
and `now`; the few functions that write take an open directory descriptor (`vocabulary.durable`). Standard library and
`integrity` only, but for `vocabulary.keys`, the one file that imports `cryptography`.
"""

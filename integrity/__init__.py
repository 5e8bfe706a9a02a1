"""The shared vocabulary of dagseal: what is named, hashed, signed and refused.

Promise: nothing here touches a clock, a network, a setting or a path. Rules take bytes and `now`; the few functions
that write take an open directory descriptor (`integrity.durable`). Standard library only, but for `integrity.keys`,
the one file that imports `cryptography`.
"""

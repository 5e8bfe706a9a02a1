"""HTTP: one small module of handlers for each kind of object, and the literal table of all routes (`http.table`).

A handler takes a `Call`: its caller is authenticated and may ask for the action; objects are checked behind it.
"""

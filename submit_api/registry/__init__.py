"""The database. SQLAlchemy's classes stay in here; what leaves are the frozen records of `registry.records`.

Every function takes the transaction it works in, so what is recorded together is committed together.
"""

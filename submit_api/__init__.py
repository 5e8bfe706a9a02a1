"""The REST service: submissions, releases, connections, launches and their audit.

Promise: it never executes a byte of an archive; what it says about one it learned from the launcher. It is the only
process with the database, the signing key and the connections. See `docs/protocol.md`.
"""

"""The agent: takes launches from the API, fetches and verifies what they name, and hands descriptors to the launcher.

Promise: no byte of an archive is executed here and no secret is readable here. Every byte that is handed on was hashed on
the descriptor that is handed on; a compromised agent can deny service, and the launcher checks everything again.
"""

"""An agent joins: it makes a key of its own, asks the launcher of its host for its two, and shows all three with an invitation.

Promise: the former key stays the agent's until the API has taken the new one. Whatever breaks off on the way, the same command
again goes on from there: with the key that is on disk already, which the API takes a second time for the same invitation.
"""

from __future__ import annotations

import time
from typing import Any

from integrity.errors import SettingsError
from worker_cache import agent, requestkey
from worker_cache.client import Client
from worker_cache.settings import AgentSettings
from worker_cache.signing import Signer
from worker_cache.transport import Transport


async def join(found: AgentSettings, token: str) -> dict[str, Any]:
    """The worker, as the API has it on record from now on. Raises `UnauthorizedError` for an invitation that is not good."""
    path = found.key_file
    if path is None:
        raise SettingsError("set key_file in [agent]: where the agent's own key is to be")
    launcher = found.launcher()
    try:
        identity = await agent.identify(launcher)
    finally:
        await launcher.close()
    key = requestkey.prepare(path)
    signer = Signer(lambda: key, found.server_key, time.time)
    async with Transport(
        found.server, None, signer=signer, unsafe_http=found.unsafe_http, ca_file=found.ca_file
    ) as transport:
        worker = await Client(transport).join(
            found.worker,
            token=token,
            request_key=key.public,
            verify_key=identity.verify_key,
            sealing_key=identity.sealing_key,
        )
    requestkey.adopt(path)
    return worker

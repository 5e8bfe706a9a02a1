"""Another signing key: handed on by the one before, in the log, where every agent and auditor sees it.

| step    | what happens                                                              | after `kill -9` there               |
|---------|---------------------------------------------------------------------------|-------------------------------------|
| prepare | the next key is on disk as `signing.key.new`; launchers are told of it    | nothing: it does not count          |
| hand on | its leaf, signed by the old key, and the audit event are committed        | the next start goes on              |
| count   | the file gets its name; the old key is gone                               | nothing to do                       |

Promise: the key that signs is the log's newest one. What earlier keys of the log signed is believed as long as the log says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from integrity.errors import ConflictError
from submit_api import audit, keyfiles, transparency
from submit_api.effects import MICROSECONDS
from submit_api.registry import leaves
from submit_api.running import opened, state_lock
from submit_api.settings import Settings
from vocabulary.keys import VerifyKey
from vocabulary.leaves import Keyed

_ACTION = "signing-key.hand-on"


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOn:
    """From which key to which, by their ids, and which leaf says so."""

    before: str
    after: str
    leaf: int


def prepare(settings: Settings) -> VerifyKey:
    """The public half of the next signing key. Again is fine: it stays the same until it is handed on."""
    keyfiles.load(settings)
    return keyfiles.prepare_signing_key(settings).public


async def hand_on(settings: Settings) -> HandedOn:
    """While the service is stopped. Raises `ConflictError` where none is prepared, `SettingsError` while it runs."""
    with state_lock(settings):
        async with opened(settings, sole=True) as service:
            new = keyfiles.prepared_signing_key(settings)
            if new is None:
                raise ConflictError(
                    "no next key is prepared: run 'dagseal key prepare-signing', and tell the launchers"
                )
            before, now = service.keys.signing, service.now_us()
            async with service.database.write() as tx:
                origin = await transparency.origin(tx)
                leaf = (await leaves.tree(tx)).size
                await leaves.add(tx, [Keyed.handed_on(origin, new.public, by=before, at=now // MICROSECONDS)])
                await audit.accepted(
                    tx,
                    at=now,
                    caller=audit.SERVICE,
                    action=_ACTION,
                    about=f"key:{new.public.key_id}",
                    detail=f"signs from now on, instead of {before.public.key_id}; leaf {leaf} of the log",
                )
        keyfiles.count_signing_key(settings, new.public)
    return HandedOn(before=before.public.key_id, after=new.public.key_id, leaf=leaf)

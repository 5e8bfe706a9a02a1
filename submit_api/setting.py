"""Sets are put by the workers' agents, which serve them, and are what reservations resolve their release by.

Promise: every release of a set was recorded, with these bytes, when the set was put. Putting the same again says that it is
used. A worker has any set, somebody else one of which he may read every archive; to others it is as if it were not there.
"""

from __future__ import annotations

from integrity.digests import Digest
from integrity.errors import NotFoundError
from submit_api import audit, modes, permissions
from submit_api.identity import WORKER, Caller
from submit_api.registry import archives, released_sets
from submit_api.registry.records import StoredSet
from submit_api.service import Service
from vocabulary import sets


async def put(service: Service, caller: Caller, name: Digest, body: bytes) -> bool:
    """Whether it is new. Raises `DigestMismatchError`, `MalformedError`, and `NotFoundError` for a release that is not."""
    members = sets.parse(body, name)
    async with service.database.write() as tx:
        now = service.now_us()
        if await released_sets.find(tx, name.hex) is not None:
            await released_sets.note_use(tx, [name.hex], now)
            return False
        recorded = await released_sets.recorded(tx, {str(one.digest) for one in members.values()})
        for one in members.values():
            if (one.archive, one.number, str(one.digest)) not in recorded:
                raise NotFoundError(f"there is no release {one.archive}@{one.number} with {str(one.digest)[:23]}…")
        await released_sets.add(tx, StoredSet(hex=name.hex, body=body, created_at=now, used_at=now))
        await audit.accepted(
            tx,
            at=now,
            caller=caller,
            action="set.put",
            about=f"set:{name.hex}",
            digest=str(name),
            detail=f"{len(members)} releases",
        )
    return True


async def get(service: Service, caller: Caller, name: Digest) -> bytes:
    """The body. Raises `NotFoundError`, also for what is hidden."""
    async with service.database.read() as tx:
        found = await released_sets.find(tx, name.hex)
        if found is None:
            raise NotFoundError(f"there is no set {name.hex}")
        named = sorted(sets.parse(found.body, name))
        known = await archives.named(tx, named) if caller.kind != WORKER else {}
    if caller.kind == WORKER or all(
        archive in known and permissions.may(caller, modes.READ, known[archive]) for archive in named
    ):
        return found.body
    hidden = NotFoundError(f"there is no set {name.hex}")
    hidden.add_note(audit.HIDES)
    raise hidden

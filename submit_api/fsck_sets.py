"""Check sets and what was reserved by them: bytes are hashed and parsed, and what they name is on record."""

from __future__ import annotations

from integrity.digests import Digest
from integrity.errors import MalformedError, SecurityError
from submit_api.findings import Finding, damage
from submit_api.registry import ledger, released_sets
from submit_api.registry.database import Transaction
from vocabulary import sets


async def examined(tx: Transaction) -> list[Finding]:
    found = []
    for name in await released_sets.names(tx):
        found += await _set(tx, name)
    for launch_id in await ledger.half_reserved(tx):
        found.append(
            damage("reservation-row", launch_id, "what says for which task instance it was reserved is not whole")
        )
    return found


async def _set(tx: Transaction, name: str) -> list[Finding]:
    stored = await released_sets.find(tx, name)
    try:
        members = sets.parse(stored.body if stored else b"", Digest(name)).values()
    except (SecurityError, MalformedError) as error:
        return [damage("set-damaged", f"set:{name}", str(error))]
    recorded = await released_sets.recorded(tx, {str(one.digest) for one in members})
    return [
        damage("set-release", f"set:{name}", f"there is no release {one.archive}@{one.number} with its digest")
        for one in members
        if (one.archive, one.number, str(one.digest)) not in recorded
    ]

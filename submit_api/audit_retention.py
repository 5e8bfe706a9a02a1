"""What is older than `audit.keep_days` leaves the audit log, from the front and in one piece.

Promise: only events that an export without gaps has covered are removed (`unsafe_remove_unexported` gives that up), and each
removal leaves, in its transaction, the event that says how many and which numbers. An event newer than that keeps all
that follow it, so a clock that was wrong can only delay.
"""

from __future__ import annotations

from itertools import takewhile

from submit_api import audit, audit_numbers
from submit_api.registry import events
from submit_api.registry.database import Transaction
from submit_api.service import Service

DAY_US = 86_400_000_000
SWEEP_US = 3_600_000_000  # how often the service looks
BATCH = 5000


async def remove_old(service: Service) -> int:
    """How many were removed. Each transaction removes some, so that others can write between."""
    removed = 0
    while service.settings.audit.keep_days:
        async with service.database.write() as tx:
            count = await _remove_some(service, tx)
        if not count:
            break
        removed += count
    return removed


async def _remove_some(service: Service, tx: Transaction) -> int:
    settings, now = service.settings.audit, service.now_us()
    oldest = await events.oldest(tx, BATCH)
    first = oldest[0][0] if oldest else 1
    through = audit_numbers.exported_through(first, await events.objects(tx, audit_numbers.EXPORT))
    too_old = list(takewhile(lambda row: row[1] < now - settings.keep_days * DAY_US, oldest))
    if not settings.unsafe_remove_unexported:
        too_old = [row for row in too_old if row[0] <= through]
    if not too_old:
        return 0
    last = too_old[-1][0]
    await events.remove(tx, last)
    exported = "exported" if last <= through else f"exported only up to {through}"
    await audit.accepted(
        tx,
        at=now,
        caller=audit.SERVICE,
        action=audit_numbers.REMOVE,
        about=audit_numbers.named(1, last),
        detail=f"{len(too_old)} events older than {settings.keep_days} days, numbers {first} to {last}, {exported}",
        rule="audit.keep_days",
    )
    return len(too_old)

"""Sets of releases, as they were put; and which releases there are of what one names."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import delete, select, update

from submit_api.registry.database import Transaction
from submit_api.registry.ledger import LIVE
from submit_api.registry.records import StoredSet, columns, record
from submit_api.registry.tables import LaunchRow, ReleaseRow, SetRow

_AT_ONCE = 500


async def find(tx: Transaction, name: str) -> StoredSet | None:
    row = await tx.session.get(SetRow, name)
    return record(StoredSet, row) if row else None


async def add(tx: Transaction, found: StoredSet) -> None:
    tx.session.add(SetRow(**columns(found)))
    await tx.session.flush()


async def note_use(tx: Transaction, names: Iterable[str], now_us: int) -> None:
    await tx.session.execute(update(SetRow).where(SetRow.hex.in_(list(names))).values(used_at=now_us))


async def names(tx: Transaction) -> list[str]:
    return list(await tx.session.scalars(select(SetRow.hex).order_by(SetRow.hex)))


async def recorded(tx: Transaction, digests: Iterable[str]) -> set[tuple[str, int, str]]:
    """Archive, number and digest of every release with one of these digests."""
    found: set[tuple[str, int, str]] = set()
    wanted = sorted(set(digests))
    for start in range(0, len(wanted), _AT_ONCE):
        these = ReleaseRow.digest.in_(wanted[start : start + _AT_ONCE])
        rows = await tx.session.execute(select(ReleaseRow.archive, ReleaseRow.number, ReleaseRow.digest).where(these))
        found.update(rows.tuples())
    return found


async def unused_since(tx: Transaction, since_us: int) -> list[str]:
    """What was neither put nor reserved by since then, and no launch that has not ended was reserved by."""
    live = select(LaunchRow.release_set).where(LaunchRow.state.in_(LIVE), LaunchRow.release_set.is_not(None))
    query = select(SetRow.hex).where(SetRow.used_at <= since_us, SetRow.hex.not_in(live)).order_by(SetRow.hex)
    return list(await tx.session.scalars(query))


async def remove(tx: Transaction, name: str) -> None:
    await tx.session.execute(delete(SetRow).where(SetRow.hex == name))

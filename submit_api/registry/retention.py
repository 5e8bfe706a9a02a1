"""What retention looks at: releases without their manifests, and which of them something still uses."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, or_, select, update

from submit_api.registry import leaves, logged
from submit_api.registry.database import Transaction
from submit_api.registry.ledger import LIVE
from submit_api.registry.records import columns_of, record
from submit_api.registry.tables import ActivationRow, ArchiveRow, LaunchRow, ReleaseRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A release that keeps its bytes, without its manifest."""

    archive: str
    number: int
    digest: str
    created_at: int
    approvals: int
    approved_at: int | None

    @property
    def waits(self) -> bool:
        return self.approvals > 0 and self.approved_at is None


async def kept(tx: Transaction) -> list[Head]:
    """Every release that was not retired, by archive and number."""
    query = select(*columns_of(Head, ReleaseRow)).where(ReleaseRow.retired_at.is_(None))
    rows = await tx.session.execute(query.order_by(ReleaseRow.archive, ReleaseRow.number))
    return [record(Head, row) for row in rows]


async def in_use(tx: Transaction) -> set[tuple[str, int]]:
    """What is active, and what any launch of a run used of which a launch has not ended."""
    query = select(ArchiveRow.name, ArchiveRow.active).where(ArchiveRow.active.is_not(None))
    active = {(name, number) for name, number in await tx.session.execute(query) if number is not None}
    return active | await _of_runs_with(tx, LaunchRow.state.in_(LIVE))


async def used_since(tx: Transaction, since_us: int) -> set[tuple[str, int]]:
    """What any launch of a run used of which a launch began or ended since then, and what became or ceased to be active."""
    found = await _of_runs_with(tx, or_(LaunchRow.created_at > since_us, LaunchRow.ended_at > since_us))
    query = select(ActivationRow.archive, ActivationRow.number, ActivationRow.was).where(ActivationRow.at > since_us)
    for archive, number, was in await tx.session.execute(query):
        found |= {(archive, one) for one in (number, was) if one is not None}
    return found


async def _of_runs_with(tx: Transaction, launches: ColumnElement[bool]) -> set[tuple[str, int]]:
    """By runs, as a run can go on with the release that it began with, however long ago that was."""
    runs = select(LaunchRow.dag_id, LaunchRow.run_id).where(launches).distinct().subquery()
    of_them = and_(LaunchRow.dag_id == runs.c.dag_id, LaunchRow.run_id == runs.c.run_id)
    query = select(LaunchRow.archive, LaunchRow.release).join(runs, of_them).distinct()
    return set((await tx.session.execute(query)).tuples().all())


async def retire(tx: Transaction, head: Head, now_us: int) -> None:
    await tx.session.execute(
        update(ReleaseRow)
        .where(ReleaseRow.archive == head.archive, ReleaseRow.number == head.number)
        .values(retired_at=now_us)
    )
    await leaves.add(tx, [logged.retired(head.archive, head.number, head.digest, at=now_us)])


async def unneeded(tx: Transaction, digests: Collection[str] | None = None) -> set[str]:
    """Of these digests, or of all, those that releases have, and none that was not retired."""
    retired = select(ReleaseRow.digest).where(ReleaseRow.retired_at.is_not(None))
    needed = select(ReleaseRow.digest).where(ReleaseRow.retired_at.is_(None))
    if digests is not None:
        retired, needed = (query.where(ReleaseRow.digest.in_(list(digests))) for query in (retired, needed))
    return set(await tx.session.scalars(retired)) - set(await tx.session.scalars(needed))

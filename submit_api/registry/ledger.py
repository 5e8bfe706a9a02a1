"""The launch ledger, and the XComs of its runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import delete, func, insert, or_, select, update

from submit_api.modes import READ
from submit_api.registry.database import Transaction
from submit_api.registry.ownership import permitted
from submit_api.registry.records import Launch, StoredXcom, columns, record
from submit_api.registry.tables import ArchiveRow, LaunchRow, XcomRow


async def find(tx: Transaction, launch_id: str) -> Launch | None:
    row = await tx.session.get(LaunchRow, launch_id)
    return record(Launch, row) if row else None


async def find_try(
    tx: Transaction, dag_id: str, task_id: str, run_id: str, map_index: int, try_number: int
) -> Launch | None:
    row = await tx.session.scalar(
        select(LaunchRow).where(
            LaunchRow.dag_id == dag_id,
            LaunchRow.task_id == task_id,
            LaunchRow.run_id == run_id,
            LaunchRow.map_index == map_index,
            LaunchRow.try_number == try_number,
        )
    )
    return record(Launch, row) if row else None


async def add(tx: Transaction, launch: Launch) -> None:
    tx.session.add(LaunchRow(**columns(launch)))
    await tx.session.flush()


async def change(tx: Transaction, launch_id: str, **values: Any) -> None:
    await tx.session.execute(update(LaunchRow).where(LaunchRow.id == launch_id).values(**values))


async def listed(
    tx: Transaction, *, dag_id: str | None, state: str | None, limit: int, seen_by: tuple[str, Collection[str]] | None
) -> list[Launch]:
    """Newest first. `seen_by` is a principal with its groups: what they launched and what they may read. None is everything."""
    query = select(LaunchRow).order_by(LaunchRow.created_at.desc(), LaunchRow.id).limit(limit)
    if dag_id is not None:
        query = query.where(LaunchRow.dag_id == dag_id)
    if state is not None:
        query = query.where(LaunchRow.state == state)
    if seen_by is not None:
        principal, groups = seen_by
        readable = select(ArchiveRow.name).where(permitted(ArchiveRow, READ, principal, groups))
        query = query.where((LaunchRow.principal == principal) | LaunchRow.archive.in_(readable))
    return [record(Launch, row) for row in await tx.session.scalars(query)]


async def oldest_queued(tx: Transaction, queues: Collection[str]) -> Launch | None:
    row = await tx.session.scalar(
        select(LaunchRow)
        .where(LaunchRow.state == "queued", LaunchRow.queue.in_(list(queues)))
        .order_by(LaunchRow.created_at, LaunchRow.id)
        .limit(1)
    )
    return record(Launch, row) if row else None


async def waiting(tx: Transaction) -> list[Launch]:
    """Everything that nobody has claimed yet."""
    query = (
        select(LaunchRow).where(LaunchRow.state.in_(("queued", "offered"))).order_by(LaunchRow.created_at, LaunchRow.id)
    )
    return [record(Launch, row) for row in await tx.session.scalars(query)]


async def expired_offers(tx: Transaction, now_seconds: int) -> list[Launch]:
    query = select(LaunchRow).where(LaunchRow.state == "offered", LaunchRow.ticket_expires_at <= now_seconds)
    return [record(Launch, row) for row in await tx.session.scalars(query)]


async def silent(tx: Transaction, since_us: int) -> list[Launch]:
    """Running launches whose last heartbeat is not after `since_us`."""
    query = select(LaunchRow).where(LaunchRow.state == "running", LaunchRow.heartbeat_at <= since_us)
    return [record(Launch, row) for row in await tx.session.scalars(query)]


async def running(tx: Transaction, archive: str, release: int) -> list[Launch]:
    """What runs now of this release."""
    query = select(LaunchRow).where(
        LaunchRow.state == "running", LaunchRow.archive == archive, LaunchRow.release == release
    )
    return [record(Launch, row) for row in await tx.session.scalars(query)]


async def release_of_run(tx: Transaction, dag_id: str, run_id: str, archive: str) -> int | None:
    """The release of the run's first launch, of those that were claimed or may yet be: what was refused before never ran."""
    query = select(LaunchRow.release).where(
        LaunchRow.dag_id == dag_id,
        LaunchRow.run_id == run_id,
        LaunchRow.archive == archive,
        or_(LaunchRow.claim_digest.is_not(None), LaunchRow.state.in_(("queued", "offered"))),
    )
    return await tx.session.scalar(query.order_by(LaunchRow.created_at, LaunchRow.id).limit(1))


async def run_started_at(tx: Transaction, dag_id: str, run_id: str) -> int | None:
    """When the first launch of this run was reserved."""
    query = select(func.min(LaunchRow.created_at)).where(LaunchRow.dag_id == dag_id, LaunchRow.run_id == run_id)
    return await tx.session.scalar(query)


async def counts_by_state(tx: Transaction) -> dict[str, int]:
    query = select(LaunchRow.state, func.count()).group_by(LaunchRow.state)
    return dict((await tx.session.execute(query)).tuples().all())


async def log_sizes(tx: Transaction) -> dict[str, int]:
    """The bytes of log held, by launch id, where there are any."""
    query = select(LaunchRow.id, LaunchRow.log_held_bytes).where(LaunchRow.log_held_bytes > 0)
    return dict((await tx.session.execute(query)).tuples().all())


async def xcoms_of_run(tx: Transaction, dag_id: str, run_id: str) -> list[StoredXcom]:
    query = (
        select(XcomRow)
        .where(XcomRow.dag_id == dag_id, XcomRow.run_id == run_id)
        .order_by(XcomRow.task_id, XcomRow.map_index, XcomRow.key)
    )
    return [record(StoredXcom, row) for row in await tx.session.scalars(query)]


async def all_xcoms(tx: Transaction) -> list[StoredXcom]:
    return [record(StoredXcom, row) for row in await tx.session.scalars(select(XcomRow))]


async def replace_xcoms(tx: Transaction, launch: Launch, xcoms: Iterable[StoredXcom]) -> None:
    """What this task instance pushed before is gone, as in Airflow when a task instance starts again."""
    await tx.session.execute(
        delete(XcomRow).where(
            XcomRow.dag_id == launch.dag_id,
            XcomRow.run_id == launch.run_id,
            XcomRow.task_id == launch.task_id,
            XcomRow.map_index == launch.map_index,
        )
    )
    rows = [columns(xcom) for xcom in xcoms]
    if rows:
        await tx.session.execute(insert(XcomRow), rows)

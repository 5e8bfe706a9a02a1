"""Archives, their releases, their dags and tasks."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sqlalchemy import func, insert, select, update

from integrity.manifest import Manifest
from submit_api import modes
from submit_api.registry.database import Transaction
from submit_api.registry.ownership import permitted
from submit_api.registry.records import Activation, Archive, Release, columns, record
from submit_api.registry.tables import ActivationRow, ArchiveRow, DagRow, ReleaseRow, TaskRow


async def find(tx: Transaction, name: str) -> Archive | None:
    row = await tx.session.get(ArchiveRow, name)
    return record(Archive, row) if row else None


async def listed(tx: Transaction, *, seen_by: tuple[str, Collection[str]] | None = None) -> list[Archive]:
    """All, or those that this principal with these groups may read."""
    query = select(ArchiveRow).order_by(ArchiveRow.name)
    if seen_by is not None:
        query = query.where(permitted(ArchiveRow, modes.READ, *seen_by))
    return [record(Archive, row) for row in await tx.session.scalars(query)]


async def release(tx: Transaction, archive: str, number: int) -> Release | None:
    row = await tx.session.get(ReleaseRow, (archive, number))
    return record(Release, row) if row else None


async def releases(tx: Transaction, archive: str | None = None) -> list[Release]:
    """Of one archive or of all, by archive and number."""
    query = select(ReleaseRow).order_by(ReleaseRow.archive, ReleaseRow.number)
    if archive is not None:
        query = query.where(ReleaseRow.archive == archive)
    return [record(Release, row) for row in await tx.session.scalars(query)]


async def releases_of_digest(tx: Transaction, digest: str) -> list[Release]:
    """Every release with exactly these bytes."""
    rows = await tx.session.scalars(select(ReleaseRow).where(ReleaseRow.digest == digest))
    return [record(Release, row) for row in rows]


async def digests(tx: Transaction) -> set[str]:
    """Every digest that a release names."""
    return set(await tx.session.scalars(select(ReleaseRow.digest).distinct()))


async def dag_ids(tx: Transaction, archive: str, number: int) -> list[str]:
    """The dags of one release that have tasks on record, sorted."""
    query = select(TaskRow.dag_id).where(TaskRow.archive == archive, TaskRow.number == number).distinct()
    return sorted(await tx.session.scalars(query))


async def archives_of_dags(tx: Transaction, dags: Iterable[str]) -> dict[str, str]:
    """Which archive each of these dags belongs to, where one is recorded."""
    rows = await tx.session.execute(select(DagRow.dag_id, DagRow.archive).where(DagRow.dag_id.in_(list(dags))))
    return dict(rows.tuples().all())


async def transferred(tx: Transaction, dags: Iterable[str]) -> set[str]:
    """Those of these dags that were given from one archive to another."""
    query = select(DagRow.dag_id).where(DagRow.dag_id.in_(list(dags)), DagRow.transferred_at.is_not(None))
    return set(await tx.session.scalars(query))


async def add(tx: Transaction, found: Release, manifest: Manifest) -> None:
    """Record a release: the archive when it is new, the dags, the tasks. It becomes the active one, unless it waits."""
    row = await tx.session.get(ArchiveRow, found.archive)
    if row is None:
        tx.session.add(
            ArchiveRow(
                name=found.archive,
                owner=found.owner,
                group=found.group,
                latest=found.number,
                active=None,
                created_at=found.created_at,
                mode=modes.NEW["archive"],
            )
        )
    else:
        row.latest = found.number
        row.group = row.group if found.waits else found.group
    await tx.session.flush()
    tx.session.add(ReleaseRow(**columns(found)))
    await tx.session.flush()
    if not found.waits:
        await activate(tx, found.archive, found.number, at=found.created_at, principal=found.submitted_by)
    known = await archives_of_dags(tx, [dag.dag_id for dag in manifest.dags])
    fresh = [{"dag_id": dag.dag_id, "archive": found.archive} for dag in manifest.dags if dag.dag_id not in known]
    if fresh:
        await tx.session.execute(insert(DagRow), fresh)
    tasks = [
        {
            "archive": found.archive,
            "number": found.number,
            "dag_id": dag.dag_id,
            "task_id": task.task_id,
            "digest": str(task.digest),
            "run_as_user": task.run_as_user,
            "connections": list(task.connections),
        }
        for dag in manifest.dags
        for task in dag.tasks
    ]
    if tasks:
        await tx.session.execute(insert(TaskRow), tasks)
    await tx.session.flush()


async def activate(
    tx: Transaction, archive: str, number: int, *, at: int, principal: str, before: int | None = None
) -> None:
    """Make it the active one, and record that. `before` is where a later rollback goes on from: where this one came from,
    unless this is itself a rollback."""
    row = await tx.session.get_one(ArchiveRow, archive)
    if row.active == number:
        return
    made = Activation(
        archive=archive,
        seq=row.activation + 1,
        number=number,
        was=row.active,
        before=row.activation if before is None else before,
        at=at,
        principal=principal,
    )
    await tx.session.execute(insert(ActivationRow).values(**columns(made)))
    row.active, row.activation = number, made.seq
    await tx.session.flush()


async def approve(
    tx: Transaction, found: Release, approved_by: list[str], *, at: int | None, unsafe_alone: bool
) -> None:
    """Who approved it so far; with `at` it waits no more."""
    row = await tx.session.get_one(ReleaseRow, (found.archive, found.number))
    row.approved_by, row.approved_at, row.unsafe_alone = approved_by, at, unsafe_alone
    await tx.session.flush()


async def move(tx: Transaction, archive: str, group: str) -> None:
    await tx.session.execute(update(ArchiveRow).where(ArchiveRow.name == archive).values(group=group))


async def activations(tx: Transaction, archive: str) -> list[Activation]:
    """In order."""
    query = select(ActivationRow).where(ActivationRow.archive == archive).order_by(ActivationRow.seq)
    return [record(Activation, row) for row in await tx.session.scalars(query)]


async def revoke(tx: Transaction, archive: str, number: int, *, at: int, principal: str, reason: str) -> None:
    """For good, and for the first reason. Where it was the active release, none is active afterwards."""
    await tx.session.execute(
        update(ReleaseRow)
        .where(ReleaseRow.archive == archive, ReleaseRow.number == number, ReleaseRow.revoked_at.is_(None))
        .values(revoked_at=at, revoked_by=principal, revoke_reason=reason)
    )
    await tx.session.execute(
        update(ArchiveRow).where(ArchiveRow.name == archive, ArchiveRow.active == number).values(active=None)
    )


async def task_digests(tx: Transaction, archive: str, number: int) -> dict[tuple[str, str], str]:
    """The recorded digest of each task, by dag_id and task_id."""
    query = select(TaskRow.dag_id, TaskRow.task_id, TaskRow.digest).where(
        TaskRow.archive == archive, TaskRow.number == number
    )
    return {(dag_id, task_id): digest for dag_id, task_id, digest in await tx.session.execute(query)}


async def counts(tx: Transaction) -> tuple[int, int]:
    """How many archives and releases there are."""
    archives = await tx.session.scalar(select(func.count()).select_from(ArchiveRow))
    found = await tx.session.scalar(select(func.count()).select_from(ReleaseRow))
    return archives or 0, found or 0

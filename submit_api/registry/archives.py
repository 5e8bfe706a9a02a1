"""Archives, their releases, their dags and tasks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from sqlalchemy import bindparam, func, insert, select, update

from integrity.manifest import Manifest
from submit_api import modes
from submit_api.registry.database import Transaction
from submit_api.registry.ownership import permitted
from submit_api.registry.records import Activation, Archive, Release, columns, columns_of, record
from submit_api.registry.tables import ActivationRow, ArchiveRow, DagRow, ReleaseRow, TaskRow

_AT_ONCE = 1000
# Made once: every request asks these, and to make a statement costs more than to run it.
_LATEST = (ReleaseRow.archive == ArchiveRow.name) & (ReleaseRow.number == ArchiveRow.latest)
_FOUND = (
    select(*columns_of(Archive, ArchiveRow), ReleaseRow.digest)
    .outerjoin(ReleaseRow, _LATEST)
    .where(ArchiveRow.name == bindparam("name"))
)
_NAMED = select(*columns_of(Archive, ArchiveRow)).where(ArchiveRow.name.in_(bindparam("names", expanding=True)))
_NEWEST = (
    select(*columns_of(Release, ReleaseRow))
    .join(ArchiveRow, _LATEST)
    .where(ArchiveRow.name.in_(bindparam("names", expanding=True)))
)
_OF_DIGESTS = select(*columns_of(Release, ReleaseRow)).where(
    ReleaseRow.digest.in_(bindparam("digests", expanding=True))
)
_OWNERS_OF_DAGS = select(DagRow.dag_id, DagRow.archive).where(DagRow.dag_id.in_(bindparam("dags", expanding=True)))


async def find(tx: Transaction, name: str) -> Archive | None:
    return (await find_with_newest(tx, name))[0]


async def find_with_newest(tx: Transaction, name: str) -> tuple[Archive | None, str]:
    """And the digest of its latest release, by one statement."""
    row = (await tx.session.execute(_FOUND, {"name": name})).first()
    return (record(Archive, row), row.digest or "") if row else (None, "")


async def named(tx: Transaction, names: Iterable[str]) -> dict[str, Archive]:
    """Those of these archives that there are."""
    rows = await tx.session.execute(_NAMED, {"names": list(names)})
    return {row.name: record(Archive, row) for row in rows}


async def newest(tx: Transaction, names: Iterable[str]) -> dict[str, Release]:
    """The latest release of each of these archives."""
    rows = await tx.session.execute(_NEWEST, {"names": list(names)})
    return {row.archive: record(Release, row) for row in rows}


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


async def releases_of_digest(tx: Transaction, *digests: str) -> list[Release]:
    """Every release with exactly the bytes of one of these."""
    rows = await tx.session.execute(_OF_DIGESTS, {"digests": list(digests)})
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
    found: dict[str, str] = {}
    wanted = list(dags)
    for at in range(0, len(wanted), _AT_ONCE):
        rows = await tx.session.execute(_OWNERS_OF_DAGS, {"dags": wanted[at : at + _AT_ONCE]})
        found.update(rows.tuples().all())
    return found


async def transferred(tx: Transaction, dags: Iterable[str]) -> set[str]:
    """Those of these dags that were given from one archive to another."""
    query = select(DagRow.dag_id).where(DagRow.dag_id.in_(list(dags)), DagRow.transferred_at.is_not(None))
    return set(await tx.session.scalars(query))


async def add(tx: Transaction, made: Sequence[Release], manifests: Sequence[Manifest]) -> None:
    """Record releases, in order, with their tasks. Their archives and dags are on record (`put`, `add_dags`)."""
    await tx.session.execute(insert(ReleaseRow), [columns(release) for release in made])
    tasks = [
        {
            "archive": manifest.archive,
            "number": manifest.number,
            "dag_id": dag.dag_id,
            "task_id": task.task_id,
            "digest": str(task.digest),
            "run_as_user": task.run_as_user,
            "connections": list(task.connections),
        }
        for manifest in manifests
        for dag in manifest.dags
        for task in dag.tasks
    ]
    if tasks:
        await tx.session.execute(insert(TaskRow), tasks)


async def put(tx: Transaction, found: Iterable[Archive], *, known: Collection[str]) -> None:
    """Record archives as they are now; those that are `known` were on record before."""
    rows = [columns(archive) for archive in found]
    new, changed = ([row for row in rows if (row["name"] in known) is was] for was in (False, True))
    if new:
        await tx.session.execute(insert(ArchiveRow), new)
    if changed:
        await tx.session.execute(update(ArchiveRow), changed)


async def add_dags(tx: Transaction, dags: Mapping[str, str]) -> None:
    """Whose each dag_id is from now on: its archive."""
    if dags:
        rows = [{"dag_id": dag_id, "archive": archive} for dag_id, archive in dags.items()]
        await tx.session.execute(insert(DagRow), rows)


async def add_activations(tx: Transaction, made: Iterable[Activation]) -> None:
    rows = [columns(one) for one in made]
    if rows:
        await tx.session.execute(insert(ActivationRow), rows)


def activation(archive: Archive, number: int, *, at: int, principal: str, before: int | None = None) -> Activation:
    """That this release becomes the active one. `before` as `activate` has it."""
    return Activation(
        archive=archive.name,
        seq=archive.activation + 1,
        number=number,
        was=archive.active,
        before=archive.activation if before is None else before,
        at=at,
        principal=principal,
    )


async def activate(
    tx: Transaction, archive: str, number: int, *, at: int, principal: str, before: int | None = None
) -> None:
    """Make it the active one, and record that. `before` is where a later rollback goes on from: where this one came from,
    unless this is itself a rollback."""
    row = await tx.session.get_one(ArchiveRow, archive)
    if row.active == number:
        return
    made = activation(record(Archive, row), number, at=at, principal=principal, before=before)
    await add_activations(tx, [made])
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

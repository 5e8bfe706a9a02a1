"""Archives, their releases, their dags and tasks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import ColumnElement, and_, bindparam, func, insert, select, true, union, update

from submit_api.registry import leaves, logged
from submit_api.registry.database import Transaction
from submit_api.registry.ownership import readable
from submit_api.registry.records import Archive, Release, Stored, columns, columns_of, record
from submit_api.registry.tables import ArchiveRow, DagRow, ReleaseRow, TaskRow, table
from vocabulary.manifest import Manifest

_AT_ONCE = 200  # of parts of one query: SQLite takes 500
_LAST = "\U0010ffff"  # comes after every character of a name
# Made once: every request asks these, and to make a statement costs more than to run it.
_LATEST = (ReleaseRow.archive == ArchiveRow.name) & (ReleaseRow.number == ArchiveRow.latest)
_FOUND = (
    select(*columns_of(Archive, ArchiveRow), ReleaseRow.digest)
    .outerjoin(ReleaseRow, _LATEST)
    .where(ArchiveRow.name == bindparam("name"))
)
# Of the tables and not of their classes: these are asked for each launch.
_A, _R, _D = table(ArchiveRow).c, table(ReleaseRow).c, table(DagRow).c
_NAMED = select(*columns_of(Archive, _A)).where(_A.name.in_(bindparam("names", expanding=True)))
_RELEASE = select(*columns_of(Release, _R)).where(_R.archive == bindparam("archive"), _R.number == bindparam("number"))
_NEWEST = (
    select(*columns_of(Release, ReleaseRow))
    .join(ArchiveRow, _LATEST)
    .where(ArchiveRow.name.in_(bindparam("names", expanding=True)))
)
_REVOKED = select(*columns_of(Release, ReleaseRow)).where(
    ReleaseRow.archive.in_(bindparam("names", expanding=True)),
    ReleaseRow.digest.in_(bindparam("digests", expanding=True)),
    ReleaseRow.revoked_at.is_not(None),
)
_STORED = select(*columns_of(Stored, ReleaseRow)).where(ReleaseRow.digest.in_(bindparam("digests", expanding=True)))
_ARCHIVES = table(ArchiveRow)
_ADD, _ADD_TASKS, _ADD_ARCHIVES = insert(table(ReleaseRow)), insert(table(TaskRow)), insert(_ARCHIVES)
_ADD_DAGS = insert(table(DagRow))
_CHANGE = update(_ARCHIVES).where(_ARCHIVES.c.name == bindparam("known"))  # what else is given is changed
_OWNERS_OF_DAGS = select(_D.dag_id, _D.archive).where(_D.dag_id.in_(bindparam("dags", expanding=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Latest:
    """Of an archive's latest release: its digest, and its dags that have tasks on record, sorted."""

    digest: str
    dags: list[str]


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


async def listed(tx: Transaction) -> list[Archive]:
    """All."""
    return [record(Archive, row) for row in await tx.session.scalars(select(ArchiveRow).order_by(ArchiveRow.name))]


async def names(
    tx: Transaction,
    *,
    after: str,
    limit: int,
    seen_by: tuple[str, Collection[str]] | None,
    prefixes: Sequence[str] = ("",),
) -> list[str]:
    """The first `limit` after this name that begin with one of `prefixes`, of those that this principal with these groups may
    read, or of all. Each part of it is found by an index and read no further than that, however many archives there are."""
    parts = [
        select(ArchiveRow.name)
        .where(
            source,
            ArchiveRow.name > after if after >= prefix else ArchiveRow.name >= prefix,
            ArchiveRow.name < prefix + _LAST,
        )
        .order_by(ArchiveRow.name)
        .limit(limit)
        .subquery()
        for source in (readable(*seen_by) if seen_by is not None else (true(),))
        for prefix in prefixes
    ]
    found: set[str] = set()
    for start in range(0, len(parts), _AT_ONCE):
        query = union(*(select(part.c.name) for part in parts[start : start + _AT_ONCE]))
        found.update(await tx.session.scalars(query))
    return sorted(found)[:limit]


async def latest(tx: Transaction, found: Collection[Archive]) -> dict[str, Latest]:
    """By name, of each of these archives."""
    these = ArchiveRow.name.in_([archive.name for archive in found])
    digests = select(ArchiveRow.name, ReleaseRow.digest).where(
        these, ReleaseRow.archive == ArchiveRow.name, ReleaseRow.number == ArchiveRow.latest
    )
    query = select(ArchiveRow.name, TaskRow.dag_id).where(
        these, TaskRow.archive == ArchiveRow.name, TaskRow.number == ArchiveRow.latest
    )
    dags: dict[str, list[str]] = {}
    for name, dag_id in await tx.session.execute(query.distinct().order_by(ArchiveRow.name, TaskRow.dag_id)):
        dags.setdefault(name, []).append(dag_id)
    return {name: Latest(digest=digest, dags=dags.get(name, [])) for name, digest in await tx.session.execute(digests)}


async def release(tx: Transaction, archive: str, number: int) -> Release | None:
    row = (await tx.session.execute(_RELEASE, {"archive": archive, "number": number})).first()
    return record(Release, row) if row else None


async def releases(tx: Transaction, archive: str | None = None) -> list[Release]:
    """Of one archive or of all, by archive and number."""
    query = select(ReleaseRow).order_by(ReleaseRow.archive, ReleaseRow.number)
    if archive is not None:
        query = query.where(ReleaseRow.archive == archive)
    return [record(Release, row) for row in await tx.session.scalars(query)]


async def newest_releases(tx: Transaction, archive: str, limit: int, *, digest: str | None = None) -> list[Release]:
    """The last `limit` by number, in order; with `digest`, of those with exactly these bytes."""
    query = select(ReleaseRow).where(ReleaseRow.archive == archive, *_with(digest))
    rows = await tx.session.scalars(query.order_by(ReleaseRow.number.desc()).limit(limit))
    return [record(Release, row) for row in rows][::-1]


async def releases_after(
    tx: Transaction, archive: str, number: int, limit: int, *, digest: str | None = None
) -> list[Release]:
    """The first `limit` after this number, in order; with `digest`, of those with exactly these bytes."""
    query = select(ReleaseRow).where(ReleaseRow.archive == archive, ReleaseRow.number > number, *_with(digest))
    return [record(Release, row) for row in await tx.session.scalars(query.order_by(ReleaseRow.number).limit(limit))]


def _with(digest: str | None) -> list[ColumnElement[bool]]:
    return [] if digest is None else [ReleaseRow.digest == digest]


async def revoked(tx: Transaction, names: Iterable[str], digests: Iterable[str]) -> dict[tuple[str, str], Release]:
    """Of these archives the first revoked release with each of these bytes, where there is one; by archive and digest."""
    rows = await tx.session.execute(_REVOKED, {"names": list(names), "digests": list(digests)})
    newest_first = sorted(rows, key=lambda row: row.number, reverse=True)
    return {(row.archive, row.digest): record(Release, row) for row in newest_first}


async def is_named(tx: Transaction, digest: str) -> bool:
    """Whether a release has these bytes."""
    query = select(ReleaseRow.number).where(ReleaseRow.digest == digest).limit(1)
    return await tx.session.scalar(query) is not None


async def launchable_after(tx: Transaction, archive: str, number: int) -> int | None:
    """The newest release of a higher number than this that `launches.unlaunchable` says nothing against."""
    waits = and_(ReleaseRow.approvals > 0, ReleaseRow.approved_at.is_(None))
    query = select(ReleaseRow.number).where(
        ReleaseRow.archive == archive,
        ReleaseRow.number > number,
        ReleaseRow.revoked_at.is_(None),
        ReleaseRow.retired_at.is_(None),
        ~waits,
    )
    return await tx.session.scalar(query.order_by(ReleaseRow.number.desc()).limit(1))


async def stored(tx: Transaction, digests: Iterable[str]) -> dict[str, list[Stored]]:
    """Of each of these digests that there are, every release with exactly these bytes."""
    found: dict[str, list[Stored]] = {}
    for row in await tx.session.execute(_STORED, {"digests": list(digests)}):
        found.setdefault(row.digest, []).append(record(Stored, row))
    return found


async def digests(tx: Transaction) -> set[str]:
    """Every digest that a release names."""
    return set(await tx.session.scalars(select(ReleaseRow.digest).distinct()))


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
    await tx.session.execute(_ADD, [columns(release) for release in made])
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
        await tx.session.execute(_ADD_TASKS, tasks)


async def put(tx: Transaction, found: Iterable[Archive], *, known: Collection[str]) -> None:
    """Record archives as they are now; those that are `known` were on record before."""
    rows = [columns(archive) for archive in found]
    new, changed = ([row for row in rows if (row["name"] in known) is was] for was in (False, True))
    if new:
        await tx.session.execute(_ADD_ARCHIVES, new)
    if changed:
        # Its name is not written again: SQLite would look through every release for one that refers to the old one.
        await tx.session.execute(_CHANGE, [{"known": row.pop("name"), **row} for row in changed])


async def add_dags(tx: Transaction, dags: Mapping[str, str]) -> None:
    """Whose each dag_id is from now on: its archive."""
    if dags:
        rows = [{"dag_id": dag_id, "archive": archive} for dag_id, archive in dags.items()]
        await tx.session.execute(_ADD_DAGS, rows)


async def approve(
    tx: Transaction, found: Release, approved_by: list[str], *, now: int, enough: bool, unsafe_alone: bool
) -> None:
    """Who approved it so far; with `enough` it waits no more."""
    at = now if enough else None
    row = await tx.session.get_one(ReleaseRow, (found.archive, found.number))
    row.approved_by, row.approved_at, row.unsafe_alone = approved_by, at, unsafe_alone
    await tx.session.flush()
    await leaves.add(tx, [logged.approved(found, approved_by[-1], at=now, enough=enough)])


async def move(tx: Transaction, archive: Archive, group: str, *, at: int, principal: str) -> None:
    if archive.group != group:
        await tx.session.execute(update(ArchiveRow).where(ArchiveRow.name == archive.name).values(group=group))
        await leaves.add(tx, [logged.owned(replace(archive, group=group), by=principal, at=at)])


async def revoke(tx: Transaction, found: Release, *, at: int, principal: str, reason: str) -> None:
    """For good, and for the first reason. Where it was the active release, none is active afterwards."""
    if found.revoked_at is not None:
        return
    await tx.session.execute(
        update(ReleaseRow)
        .where(ReleaseRow.archive == found.archive, ReleaseRow.number == found.number)
        .values(revoked_at=at, revoked_by=principal, revoke_reason=reason)
    )
    await tx.session.execute(
        update(ArchiveRow)
        .where(ArchiveRow.name == found.archive, ArchiveRow.active == found.number)
        .values(active=None)
    )
    await leaves.add(tx, [logged.revoked(found, by=principal, at=at)])


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

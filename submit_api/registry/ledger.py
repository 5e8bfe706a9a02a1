"""The launch ledger, and the XComs of its runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    false,
    func,
    insert,
    or_,
    select,
    true,
    tuple_,
    union,
    union_all,
    update,
)

from submit_api.modes import READ
from submit_api.registry import archives
from submit_api.registry.database import Transaction
from submit_api.registry.ownership import permitted
from submit_api.registry.records import Launch, StoredXcom, columns, columns_of, record
from submit_api.registry.tables import ArchiveRow, LaunchRow, XcomRow, table

_FEW = 50  # archives, so that the newest launches of each are asked for
_AT_ONCE = 200  # of values in one statement
LIVE = ("queued", "offered", "running")

# Of the table and not of its class, most of them made once: a statement that is asked for each launch costs a fifth so.
_LAUNCHES = table(LaunchRow)
_L = _LAUNCHES.c
_LAUNCH = select(*columns_of(Launch, _L))
_OF_ID = _LAUNCH.where(_L.id == bindparam("launch_id"))
_OF = _L.task_instance == bindparam("task_instance")
_THESE = _L.task_instance.in_(bindparam("task_instances", expanding=True))
_KEYS = tuple_(_L.task_instance, _L.queueing).in_(bindparam("keys", expanding=True))
# Each part by an index of its own: where they are one condition a database may read all of a task instance for them.
_FOR = union_all(_LAUNCH.where(_OF, _L.newest == true()), _LAUNCH.where(_OF, _L.state.in_(LIVE)))
_RESERVED = union_all(
    _LAUNCH.where(_KEYS), _LAUNCH.where(_THESE, _L.newest == true()), _LAUNCH.where(_THESE, _L.state.in_(LIVE))
)
_EXPIRED = _LAUNCH.where(_L.state == "offered", _L.ticket_expires_at <= bindparam("now_seconds"))
_SILENT = _LAUNCH.where(_L.state == "running", _L.heartbeat_at <= bindparam("since_us"))
_LAPSED = _LAUNCH.where(_L.state == "queued", _L.valid_until <= bindparam("now_us")).limit(_AT_ONCE)


async def find(tx: Transaction, launch_id: str) -> Launch | None:
    found = await _found(tx, _OF_ID, launch_id=launch_id)
    return found[0] if found else None


async def _found(tx: Transaction, query: Select[Any] | CompoundSelect[Any], **parameters: Any) -> list[Launch]:
    """Each once."""
    rows = {row.id: row for row in await tx.session.execute(query, parameters)}
    return [record(Launch, row) for row in rows.values()]


async def find_try(
    tx: Transaction, dag_id: str, task_id: str, run_id: str, map_index: int, try_number: int
) -> Launch | None:
    query = _LAUNCH.where(
        _L.dag_id == dag_id,
        _L.task_id == task_id,
        _L.run_id == run_id,
        _L.map_index == map_index,
        _L.try_number == try_number,
        _L.supervised == false(),
    )
    found = await _found(tx, query)
    return found[0] if found else None


async def add(tx: Transaction, launch: Launch) -> None:
    tx.session.add(LaunchRow(**columns(launch)))
    await tx.session.flush()


async def add_reserved(tx: Transaction, made: Sequence[Launch], *, known: Collection[str | None]) -> None:
    """Each is the newest of its task instance from now on; `known` are the task instances that have one."""
    again = [launch.task_instance for launch in made if launch.task_instance in known]
    for start in range(0, len(again), _AT_ONCE):
        these = again[start : start + _AT_ONCE]
        former = update(_LAUNCHES).where(_L.task_instance.in_(these), _L.newest == true())
        await tx.session.execute(former.values(newest=False))
    if made:
        await tx.session.execute(insert(_LAUNCHES), [columns(launch) for launch in made])


async def change(tx: Transaction, launch_id: str, **values: Any) -> None:
    await tx.session.execute(update(_LAUNCHES).where(_L.id == launch_id).values(**values))


async def listed(
    tx: Transaction, *, dag_id: str | None, state: str | None, limit: int, seen_by: tuple[str, Collection[str]] | None
) -> list[Launch]:
    """Newest first. `seen_by` is a principal with its groups: what they launched and what they may read. None is everything."""
    wanted = [] if dag_id is None else [LaunchRow.dag_id == dag_id]
    wanted += [] if state is None else [LaunchRow.state == state]
    parts = [
        _newest(select(LaunchRow.id).where(*wanted, part), limit).subquery()
        for part in await _parts(tx, dag_id=dag_id, seen_by=seen_by)
    ]
    if not parts:
        return []
    ids = union(*(select(part.c.id) for part in parts)).subquery()
    query = _newest(select(LaunchRow).join(ids, ids.c.id == LaunchRow.id), limit)
    return [record(Launch, row) for row in await tx.session.scalars(query)]


def _newest(query: Select[Any], limit: int) -> Select[Any]:
    return query.order_by(LaunchRow.created_at.desc(), LaunchRow.id.desc()).limit(limit)


async def _parts(
    tx: Transaction, *, dag_id: str | None, seen_by: tuple[str, Collection[str]] | None
) -> list[ColumnElement[bool]]:
    """Conditions that together are who sees a launch, each served by an index in the order of time: the newest of each part are
    read, and not all that there are. Only of who may read many archives all launches are looked at from the newest on."""
    own = [] if seen_by is None else [LaunchRow.principal == seen_by[0]]
    if dag_id is not None:
        found = await _archives_of(tx, dag_id)
        seen = found if seen_by is None else [name for name in found if await _readable(tx, name, seen_by)]
        return [LaunchRow.archive == name for name in seen] + (own if seen != found else [])
    if seen_by is None:
        return [true()]
    few = await archives.names(tx, after="", limit=_FEW + 1, seen_by=seen_by)
    if len(few) <= _FEW:
        return [LaunchRow.archive == name for name in few] + own
    readable = exists().where(ArchiveRow.name == LaunchRow.archive, permitted(ArchiveRow, READ, *seen_by))
    return [readable, *own]


async def _archives_of(tx: Transaction, dag_id: str) -> list[str]:
    """Those that launches of this dag were of: one, but for a dag that was transferred."""
    found = [""]
    while True:
        query = select(func.min(LaunchRow.archive)).where(LaunchRow.dag_id == dag_id, LaunchRow.archive > found[-1])
        name = await tx.session.scalar(query)
        if name is None:
            return found[1:]
        found.append(name)


async def _readable(tx: Transaction, name: str, seen_by: tuple[str, Collection[str]]) -> bool:
    query = select(ArchiveRow.name).where(ArchiveRow.name == name, permitted(ArchiveRow, READ, *seen_by))
    return await tx.session.scalar(query) is not None


async def oldest_queued(tx: Transaction, queues: Collection[str]) -> Launch | None:
    """Of these queues, and not supervised."""
    oldest = (LaunchRow.created_at, LaunchRow.id)
    parts = [
        select(*oldest)
        .where(LaunchRow.state == "queued", LaunchRow.queue == queue, LaunchRow.supervised == false())
        .order_by(*oldest)
        .limit(1)
        .subquery()
        for queue in sorted(set(queues))
    ]
    heads = union_all(*(select(part.c.created_at, part.c.id) for part in parts)).subquery()
    found = await tx.session.scalar(select(heads.c.id).order_by(heads.c.created_at, heads.c.id).limit(1))
    return await find(tx, found) if found is not None else None


async def reserved(tx: Transaction, keys: Sequence[tuple[str, str]]) -> list[Launch]:
    """Those of these (task instance and queueing) that are on record, and of each of these task instances its last reservation
    and all that have not ended; each part is served by an index."""
    found: list[Launch] = []
    for start in range(0, len(keys), _AT_ONCE):
        these = keys[start : start + _AT_ONCE]
        found += await _found(tx, _RESERVED, keys=these, task_instances=[task_instance for task_instance, _ in these])
    return found


async def reserved_for(tx: Transaction, task_instance: str) -> tuple[Launch | None, list[Launch]]:
    """The last reservation of this task instance, and what of it has not ended. For a glance, too."""
    found = await _found(tx, _FOR, task_instance=task_instance)
    return next((one for one in found if one.newest), None), [one for one in found if one.state in LIVE]


async def lapsed(tx: Transaction, now_us: int) -> list[Launch]:
    """Reservations that nobody took while they were valid; the first of them."""
    return await _found(tx, _LAPSED, now_us=now_us)


async def half_reserved(tx: Transaction) -> list[str]:
    """The ids of launches of which one column says that they were reserved for a task instance and another does not."""
    marks = (LaunchRow.task_instance, LaunchRow.queueing)
    whole = and_(*(mark.is_not(None) for mark in marks))
    none = and_(*(mark.is_(None) for mark in marks), LaunchRow.newest == false())
    wrong = or_(and_(LaunchRow.supervised == true(), ~whole), and_(LaunchRow.supervised == false(), ~none))
    return list(await tx.session.scalars(select(LaunchRow.id).where(wrong).order_by(LaunchRow.id)))


async def waiting(tx: Transaction) -> list[Launch]:
    """Everything that nobody has claimed yet."""
    return await _found(tx, _LAUNCH.where(_L.state.in_(("queued", "offered"))).order_by(_L.created_at, _L.id))


async def expired_offers(tx: Transaction, now_seconds: int) -> list[Launch]:
    return await _found(tx, _EXPIRED, now_seconds=now_seconds)


async def silent(tx: Transaction, since_us: int) -> list[Launch]:
    """Running launches whose last heartbeat is not after `since_us`."""
    return await _found(tx, _SILENT, since_us=since_us)


async def running(tx: Transaction, archive: str, release: int) -> list[Launch]:
    """What runs now of this release."""
    return await _found(tx, _LAUNCH.where(_L.state == "running", _L.archive == archive, _L.release == release))


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

"""Owner, group and mode of archives, secrets and queues; and the queues themselves, which are nothing more."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeAlias

from sqlalchemy import BindParameter, ColumnElement, and_, bindparam, case, delete, select, text, update

from submit_api import modes
from submit_api.registry.database import Transaction
from submit_api.registry.records import Archive, Queue, Secret, columns, columns_of, record
from submit_api.registry.tables import OPEN, ArchiveRow, DagRow, QueueRow, SecretRow, table

Thing: TypeAlias = Archive | Secret | Queue
_ROWS: dict[str, type[ArchiveRow] | type[SecretRow] | type[QueueRow]] = {
    "archive": ArchiveRow,
    "connection": SecretRow,
    "variable": SecretRow,
    "queue": QueueRow,
}
KINDS = tuple(_ROWS)
_Q = table(QueueRow).c
_QUEUE = select(*columns_of(Queue, _Q)).where(_Q.name == bindparam("name"))
_RECORDS: dict[type, type[Thing]] = {ArchiveRow: Archive, SecretRow: Secret, QueueRow: Queue}


def permitted(
    row: Any, bit: int, principal: str | BindParameter[Any], groups: Collection[str] | BindParameter[Any]
) -> ColumnElement[bool]:
    """As `modes.permits`, for a query. `row` is a class of these three, or the columns of its table; principal and groups are
    given, or parameters."""
    return (
        case(
            (row.owner == principal, row.mode.bitwise_and(bit << 6)),
            (row.group.in_(groups), row.mode.bitwise_and(bit << 3)),
            else_=row.mode.bitwise_and(bit),
        )
        != 0
    )


def readable(principal: str, groups: Collection[str]) -> list[ColumnElement[bool]]:
    """Of archives: what together is `permitted` to read, each of it by an index that goes on in the order of names."""
    bit = modes.READ
    return [
        and_(ArchiveRow.owner == principal, permitted(ArchiveRow, bit, principal, ())),
        *(and_(ArchiveRow.group == group, permitted(ArchiveRow, bit, principal, (group,))) for group in sorted(groups)),
        and_(text(OPEN), permitted(ArchiveRow, bit, principal, groups)),
    ]


async def find(tx: Transaction, kind: str, name: str) -> Thing | None:
    row_type = _ROWS[kind]
    row = await tx.session.get(row_type, (kind, name) if row_type is SecretRow else name)
    return record(_RECORDS[row_type], row) if row else None


async def change(tx: Transaction, kind: str, name: str, *, owner: str, group: str, mode: int) -> None:
    row_type = _ROWS[kind]
    query = update(row_type).where(row_type.name == name).values({"owner": owner, "group": group, "mode": mode})
    if row_type is SecretRow:
        query = query.where(SecretRow.kind == kind)
    await tx.session.execute(query)


async def queue(tx: Transaction, name: str) -> Queue | None:
    row = (await tx.session.execute(_QUEUE, {"name": name})).first()
    return record(Queue, row) if row else None


async def queues(tx: Transaction) -> list[Queue]:
    return [record(Queue, row) for row in await tx.session.scalars(select(QueueRow).order_by(QueueRow.name))]


async def add_queue(tx: Transaction, found: Queue) -> None:
    tx.session.add(QueueRow(**columns(found)))
    await tx.session.flush()


async def remove_queue(tx: Transaction, name: str) -> None:
    await tx.session.execute(delete(QueueRow).where(QueueRow.name == name))


async def move_dag(tx: Transaction, dag_id: str, archive: str, now_us: int) -> None:
    """From now on this dag_id is that archive's."""
    values = {"archive": archive, "transferred_at": now_us}
    await tx.session.execute(update(DagRow).where(DagRow.dag_id == dag_id).values(values))

"""Every row that rests under a row key, by the key that its ciphertext names in its first bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, case, exists, func, literal, select, tuple_, update
from sqlalchemy.orm import InstrumentedAttribute

from submit_api.registry.database import Transaction
from submit_api.registry.records import Secret, StoredXcom, record
from submit_api.registry.tables import EventRow, SecretRow, XcomRow


async def counts(tx: Transaction, magic: bytes, size: int) -> list[tuple[str, bytes, int]]:
    """Kind of row, what its ciphertext begins with (`size` bytes; empty where that is not `magic`), how many there are."""
    of_secret, of_xcom = _named(SecretRow.ciphertext, magic, size), _named(XcomRow.ciphertext, magic, size)
    secrets = select(SecretRow.kind, of_secret, func.count()).group_by(SecretRow.kind, of_secret)
    xcoms = select(literal("xcom"), of_xcom, func.count()).group_by(of_xcom)
    found = [*(await tx.session.execute(secrets)).tuples(), *(await tx.session.execute(xcoms)).tuples()]
    return [(kind, bytes(named), count) for kind, named, count in found]


async def secrets_not_under(tx: Transaction, prefix: bytes, *, after: tuple[str, str], limit: int) -> list[Secret]:
    """In the order of their kind and name, from the first after `after`."""
    key = tuple_(SecretRow.kind, SecretRow.name)
    query = (
        select(SecretRow)
        .where(key > after, _begin(SecretRow.ciphertext, len(prefix)) != prefix)
        .order_by(SecretRow.kind, SecretRow.name)
        .limit(limit)
    )
    return [record(Secret, row) for row in await tx.session.scalars(query)]


async def xcoms_not_under(
    tx: Transaction, prefix: bytes, *, after: tuple[str, str, str, int, str], limit: int
) -> list[StoredXcom]:
    """In the order of their primary key, from the first after `after`."""
    columns = (XcomRow.dag_id, XcomRow.run_id, XcomRow.task_id, XcomRow.map_index, XcomRow.key)
    query = (
        select(XcomRow)
        .where(tuple_(*columns) > after, _begin(XcomRow.ciphertext, len(prefix)) != prefix)
        .order_by(*columns)
        .limit(limit)
    )
    return [record(StoredXcom, row) for row in await tx.session.scalars(query)]


async def replace_secrets(tx: Transaction, rows: Iterable[Secret]) -> None:
    """Another ciphertext, and nothing else."""
    names = ("kind", "name", "ciphertext")
    await tx.session.execute(update(SecretRow), [{name: getattr(row, name) for name in names} for row in rows])


async def replace_xcoms(tx: Transaction, rows: Iterable[StoredXcom]) -> None:
    """Another ciphertext, and nothing else."""
    names = ("dag_id", "run_id", "task_id", "map_index", "key", "ciphertext")
    await tx.session.execute(update(XcomRow), [{name: getattr(row, name) for name in names} for row in rows])


async def is_recorded(tx: Transaction, action: str, about: str) -> bool:
    """Whether the audit log has an accepted event of this action on this object."""
    event = exists().where(EventRow.object == about, EventRow.action == action, EventRow.verdict == "accepted")
    return bool(await tx.session.scalar(select(event)))


def _named(column: InstrumentedAttribute[bytes], magic: bytes, size: int) -> ColumnElement[bytes]:
    return case((_begin(column, len(magic)) == magic, _begin(column, size)), else_=literal(b""))


def _begin(column: InstrumentedAttribute[bytes], size: int) -> Any:
    return func.substr(column, 1, size, type_=column.type)

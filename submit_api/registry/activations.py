"""Which release of an archive was the active one, and since when: each is a record of its own and a leaf of the log."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import insert, literal, select

from submit_api.registry import leaves, logged
from submit_api.registry.database import Transaction
from submit_api.registry.records import Activation, Archive, columns, record
from submit_api.registry.tables import ActivationRow, ArchiveRow, table

_ADD = insert(table(ActivationRow))


async def add(tx: Transaction, made: Iterable[Activation]) -> None:
    rows = [columns(one) for one in made]
    if rows:
        await tx.session.execute(_ADD, rows)


def following(archive: Archive, number: int, *, at: int, principal: str, before: int | None = None) -> Activation:
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
    made = following(record(Archive, row), number, at=at, principal=principal, before=before)
    await add(tx, [made])
    row.active, row.activation = number, made.seq
    await tx.session.flush()
    await leaves.add(tx, [logged.activated(made)])


async def of(tx: Transaction, archive: str) -> list[Activation]:
    """In order."""
    query = select(ActivationRow).where(ActivationRow.archive == archive).order_by(ActivationRow.seq)
    return [record(Activation, row) for row in await tx.session.scalars(query)]


async def back(tx: Transaction, archive: str, seq: int, limit: int, *, number: int | None = None) -> list[Activation]:
    """The first `limit` that a rollback from activation `seq` passes; with `number`, of those of this release."""
    this = ActivationRow.archive == archive
    begin = select(ActivationRow.seq, ActivationRow.before, literal(0).label("steps"))
    passed = begin.where(this, ActivationRow.seq == seq).cte("back", recursive=True)
    step = select(ActivationRow.seq, ActivationRow.before, passed.c.steps + 1)
    step = step.where(this, ActivationRow.seq == passed.c.before, ActivationRow.seq < passed.c.seq)
    passed = passed.union_all(step.where(passed.c.steps < limit) if number is None else step)
    query = select(ActivationRow).join(passed, ActivationRow.seq == passed.c.seq).where(this, passed.c.steps > 0)
    if number is not None:
        query = query.where(ActivationRow.number == number)
    rows = await tx.session.scalars(query.order_by(passed.c.steps).limit(limit))
    return [record(Activation, row) for row in rows]

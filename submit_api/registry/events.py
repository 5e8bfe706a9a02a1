"""The audit log's rows: added at the end, read by pages.

An event's number is one more than the highest there is, given in the transaction that writes it: a transaction that fails
leaves no gap, with any database, so a gap is always something that was taken away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from sqlalchemy import ColumnElement, bindparam, delete, func, insert, select

from submit_api.registry.database import Transaction
from submit_api.registry.records import Event, columns, record
from submit_api.registry.tables import EventRow, table

CLOCK_STEP_US = 3_600_000_000
_EVENTS = table(EventRow)
# Made once, as every request that changes something adds one.
_ADD, _NEWEST = insert(_EVENTS), select(func.max(_EVENTS.c.seq))
_NEXT = insert(_EVENTS).values(
    {name: bindparam(f"new_{name}") for name in (field.name for field in fields(Event))}
    | {"seq": select(func.coalesce(func.max(_EVENTS.c.seq), 0) + 1).scalar_subquery()}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which events: those after number `after` that have all of this. `since` is included, `until` is not."""

    after: int = 0
    last: int | None = None
    about: str | None = None
    principal: str | None = None
    action: str | None = None
    verdict: str | None = None
    since: int | None = None
    until: int | None = None

    @property
    def everything(self) -> bool:
        """Whether no event from `after` to `last` is left out."""
        chosen = (self.about, self.principal, self.action, self.verdict, self.since, self.until)
        return all(one is None for one in chosen)


async def add(tx: Transaction, event: Event) -> None:
    await tx.session.execute(_NEXT, {f"new_{name}": value for name, value in columns(event).items()})


async def add_all(tx: Transaction, found: Sequence[Event]) -> None:
    """In order."""
    if len(found) == 1:
        await add(tx, found[0])
    elif found:
        last = await newest(tx)
        rows = [{**columns(event), "seq": seq} for seq, event in enumerate(found, last + 1)]
        await tx.session.execute(_ADD, rows)


async def newest(tx: Transaction) -> int:
    """The highest number, 0 when there is none."""
    return await tx.session.scalar(_NEWEST) or 0


async def last_of(tx: Transaction, action: str) -> Event | None:
    """The newest one of this action."""
    row = await tx.session.scalar(
        select(EventRow).where(EventRow.action == action).order_by(EventRow.seq.desc()).limit(1)
    )
    return record(Event, row) if row else None


async def page(tx: Transaction, wanted: Query, *, limit: int) -> list[Event]:
    """The first `limit` of them, by number."""
    query = select(EventRow).where(*await _conditions(tx, wanted)).order_by(EventRow.seq).limit(limit)
    return [record(Event, row) for row in await tx.session.scalars(query)]


async def _conditions(tx: Transaction, wanted: Query) -> list[ColumnElement[bool]]:
    """A time is first made a number, by the index of times, so that no page has to walk through all that lies outside. Rows
    are in the order of their times but for clocks that were set back: up to `CLOCK_STEP_US` that changes no answer."""
    after, last = wanted.after, wanted.last
    at = EventRow.at + 0  # not by its index, which would have all that follows to be sorted by number
    found: list[ColumnElement[bool]] = []
    if wanted.since is not None:
        before = select(EventRow.seq).where(EventRow.at < wanted.since - CLOCK_STEP_US)
        newest_before = await tx.session.scalar(before.order_by(EventRow.at.desc(), EventRow.seq.desc()).limit(1))
        after = max(after, newest_before or 0)
        found.append(at >= wanted.since)
    if wanted.until is not None:
        beyond = select(EventRow.seq).where(EventRow.at >= wanted.until + CLOCK_STEP_US)
        first_beyond = await tx.session.scalar(beyond.order_by(EventRow.at, EventRow.seq).limit(1))
        if first_beyond is not None:
            last = first_beyond - 1 if last is None else min(last, first_beyond - 1)
        found.append(at < wanted.until)
    # One bound below and one above: SQLite would walk from the first of two.
    found += [EventRow.seq > after, *([EventRow.seq <= last] if last is not None else [])]
    equal = (
        (EventRow.object, wanted.about),
        (EventRow.principal, wanted.principal),
        (EventRow.action, wanted.action),
        (EventRow.verdict, wanted.verdict),
    )
    return found + [column == value for column, value in equal if value is not None]


async def oldest(tx: Transaction, limit: int) -> list[tuple[int, int]]:
    """Number and time of the first `limit` events, by number."""
    query = select(EventRow.seq, EventRow.at).order_by(EventRow.seq).limit(limit)
    return [(seq, at) for seq, at in await tx.session.execute(query)]


async def objects(tx: Transaction, action: str) -> list[str]:
    """The objects of all accepted events of this action, in order."""
    query = select(EventRow.object).where(EventRow.action == action, EventRow.verdict == "accepted")
    return list(await tx.session.scalars(query.order_by(EventRow.seq)))


async def remove(tx: Transaction, through: int) -> None:
    """All events up to this number."""
    await tx.session.execute(delete(EventRow).where(EventRow.seq <= through))


async def jumps(tx: Transaction, limit: int) -> list[tuple[int, int]]:
    """The first `limit` pairs of neighbours whose numbers are not neighbours; the first event comes after 0, always."""
    before = func.coalesce(func.lag(EventRow.seq).over(order_by=EventRow.seq), 0)
    pairs = select(before.label("before"), EventRow.seq).subquery()
    query = select(pairs.c.before, pairs.c.seq).where((pairs.c.seq != pairs.c.before + 1) | (pairs.c.before == 0))
    return [(one, other) for one, other in await tx.session.execute(query.order_by(pairs.c.seq).limit(limit + 1))]

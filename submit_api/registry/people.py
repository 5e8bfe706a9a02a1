"""Tokens, groups and workers."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import bindparam, delete, insert, or_, select, update

from submit_api.registry.database import Transaction
from submit_api.registry.records import Token, Worker, columns, columns_of, record
from submit_api.registry.sqlite import KEPT
from submit_api.registry.tables import GroupRow, MemberRow, TokenRow, WorkerRow, table

# Made once, of the tables and not of their classes: every request asks these, or every launch.
_T, _W, _M, _G = table(TokenRow).c, table(WorkerRow).c, table(MemberRow).c, table(GroupRow).c
_TOKEN = (
    select(*columns_of(Token, _T), _M.group_name)
    .outerjoin_from(table(TokenRow), table(MemberRow), _M.principal == _T.principal)
    .where(_T.token_id == bindparam("token_id"))
    .execution_options(**{KEPT: True})
)
_WORKER = select(*columns_of(Worker, _W)).where(_W.name == bindparam("name"))
_WORKER_OF_KEY = (
    select(*columns_of(Worker, _W))
    .where(_W.request_key_id == bindparam("key_id"), _W.revoked_at.is_(None))
    .execution_options(**{KEPT: True})
)
_ASKING = select(_G.name, _G.approvals).where(_G.name.in_(bindparam("names", expanding=True)), _G.approvals > 0)
_GROUPS_OF = select(_M.group_name).where(_M.principal == bindparam("principal"))
_GROUPS_BEHIND = (
    select(_M.group_name)
    .join_from(table(MemberRow), table(GroupRow), _G.name == _M.group_name)
    .where(_M.principal == bindparam("owner"), or_(_G.approvals == 0, _G.name == bindparam("own")))
)


async def token(tx: Transaction, token_id: str) -> Token | None:
    return (await token_and_groups(tx, token_id))[0]


async def token_and_groups(tx: Transaction, token_id: str) -> tuple[Token | None, frozenset[str]]:
    """And the groups of its principal, by one statement."""
    rows = (await tx.session.execute(_TOKEN, {"token_id": token_id})).all()
    groups = frozenset(row.group_name for row in rows if row.group_name is not None)
    return (record(Token, rows[0]) if rows else None), groups


async def tokens(tx: Transaction) -> list[Token]:
    rows = await tx.session.scalars(select(TokenRow).order_by(TokenRow.created_at, TokenRow.token_id))
    return [record(Token, row) for row in rows]


async def add_token(tx: Transaction, found: Token) -> None:
    tx.session.add(TokenRow(**columns(found)))
    await tx.session.flush()


async def note_use(tx: Transaction, token_id: str, now_us: int) -> None:
    await tx.session.execute(update(TokenRow).where(TokenRow.token_id == token_id).values(last_used_at=now_us))


async def revoke_tokens(
    tx: Transaction,
    now_us: int,
    *,
    token_id: str | None = None,
    worker: str | None = None,
    publisher: str | None = None,
) -> None:
    """One token, or all of one worker or publisher."""
    query = update(TokenRow).where(TokenRow.revoked_at.is_(None)).values(revoked_at=now_us)
    if worker is not None:
        query = query.where(TokenRow.kind == "worker", TokenRow.principal == worker)
    elif publisher is not None:
        query = query.where(TokenRow.publisher == publisher)
    else:
        query = query.where(TokenRow.token_id == token_id)
    await tx.session.execute(query)


async def groups_of(tx: Transaction, principal: str) -> frozenset[str]:
    return frozenset(await tx.session.scalars(_GROUPS_OF, {"principal": principal}))


async def groups_behind(tx: Transaction, owner: str, group: str) -> frozenset[str]:
    """Whose grants and rules a release of this owner and group can use: the owner's groups, but of those that ask for approvals
    only its own. Else a member would need none: an archive of his own would do, with a dag of another name."""
    return frozenset(await tx.session.scalars(_GROUPS_BEHIND, {"owner": owner, "own": group}))


async def asking_groups(tx: Transaction, names: Iterable[str]) -> dict[str, int]:
    """Those that ask for approvals, with how many."""
    return dict((await tx.session.execute(_ASKING, {"names": list(names)})).tuples().all())


async def approvals(tx: Transaction) -> dict[str, int]:
    """Of every group, how many it asks for."""
    return dict((await tx.session.execute(select(GroupRow.name, GroupRow.approvals))).tuples().all())


async def groups(tx: Transaction) -> dict[str, list[str]]:
    """Every group with its members, sorted."""
    found: dict[str, list[str]] = {name: [] for name in await tx.session.scalars(select(GroupRow.name))}
    query = select(MemberRow.group_name, MemberRow.principal).order_by(MemberRow.principal)
    for name, principal in await tx.session.execute(query):
        found[name].append(principal)
    return dict(sorted(found.items()))


async def put_group(tx: Transaction, name: str, members: list[str] | None, approvals: int | None, now_us: int) -> None:
    """Create the group, or replace what is not None of it."""
    row = await tx.session.get(GroupRow, name)
    if row is None:
        row = GroupRow(name=name, created_at=now_us, approvals=0)
        tx.session.add(row)
    row.approvals = row.approvals if approvals is None else approvals
    await tx.session.flush()
    if members is None:
        return
    await tx.session.execute(delete(MemberRow).where(MemberRow.group_name == name))
    if members:
        rows = [{"group_name": name, "principal": principal} for principal in sorted(set(members))]
        await tx.session.execute(insert(MemberRow), rows)


async def worker(tx: Transaction, name: str) -> Worker | None:
    row = (await tx.session.execute(_WORKER, {"name": name})).first()
    return record(Worker, row) if row else None


async def workers(tx: Transaction) -> list[Worker]:
    return [record(Worker, row) for row in await tx.session.scalars(select(WorkerRow).order_by(WorkerRow.name))]


async def worker_of_key(tx: Transaction, key_id: str) -> Worker | None:
    """The one that is enrolled with this request key, and is not revoked."""
    row = (await tx.session.execute(_WORKER_OF_KEY, {"key_id": key_id})).first()
    return record(Worker, row) if row else None


async def holder(tx: Transaction, key_id: str) -> str | None:
    """The name of the worker that this request key is on record for, also of a revoked one."""
    name: str | None = await tx.session.scalar(select(WorkerRow.name).where(WorkerRow.request_key_id == key_id))
    return name


async def put_worker(tx: Transaction, found: Worker) -> None:
    """Enrol, or enrol again after a revocation."""
    await tx.session.merge(WorkerRow(**columns(found)))
    await tx.session.flush()


async def set_drifted(tx: Transaction, name: str, why: str) -> None:
    """Empty: it has not."""
    await tx.session.execute(update(WorkerRow).where(WorkerRow.name == name).values(drifted=why))


async def revoke_worker(tx: Transaction, name: str, now_us: int) -> None:
    await tx.session.execute(
        update(WorkerRow).where(WorkerRow.name == name, WorkerRow.revoked_at.is_(None)).values(revoked_at=now_us)
    )
    await revoke_tokens(tx, now_us, worker=name)

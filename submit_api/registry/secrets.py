"""Rows of connections and variables (ciphertext), of grants and of impersonation rules."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import BindParameter, and_, bindparam, delete, or_, select, union

from submit_api.modes import EXECUTE
from submit_api.registry.database import Transaction
from submit_api.registry.ownership import permitted
from submit_api.registry.records import Grant, Rule, Secret, columns, columns_of, record
from submit_api.registry.tables import GrantRow, RuleRow, SecretRow, table

# Made once, of the tables and not of their classes: every launch asks these.
_S, _G, _U = table(SecretRow).c, table(GrantRow).c, table(RuleRow).c
_OWNER: BindParameter[Any] = bindparam("owner")
_GROUPS: BindParameter[Any] = bindparam("groups", expanding=True)
_TO = or_(and_(_G.to_kind == "principal", _G.to == _OWNER), and_(_G.to_kind == "group", _G.to.in_(_GROUPS)))
_GRANTED = union(
    select(_S.kind, _S.name).where(permitted(_S, EXECUTE, _OWNER, _GROUPS)), select(_G.kind, _G.name).where(_TO)
)
_GRANTED_BY = select(_G.kind, _G.name, _G.id).where(_TO).order_by(_G.created_at.desc(), _G.id.desc())
_RULES = select(*columns_of(Rule, _U)).order_by(_U.subject_kind, _U.subject, _U.unix_user, _U.id)


async def find(tx: Transaction, kind: str, name: str) -> Secret | None:
    row = await tx.session.get(SecretRow, (kind, name))
    return record(Secret, row) if row else None


async def listed(tx: Transaction, kind: str | None = None) -> list[Secret]:
    query = select(SecretRow).order_by(SecretRow.kind, SecretRow.name)
    if kind is not None:
        query = query.where(SecretRow.kind == kind)
    return [record(Secret, row) for row in await tx.session.scalars(query)]


async def put(tx: Transaction, found: Secret) -> None:
    await tx.session.merge(SecretRow(**columns(found)))
    await tx.session.flush()


async def remove(tx: Transaction, kind: str, name: str) -> None:
    """With its grants: a later secret of that name is a new one."""
    await tx.session.execute(delete(GrantRow).where(GrantRow.kind == kind, GrantRow.name == name))
    await tx.session.execute(delete(SecretRow).where(SecretRow.kind == kind, SecretRow.name == name))


async def grants(tx: Transaction) -> list[Grant]:
    query = select(GrantRow).order_by(GrantRow.kind, GrantRow.name, GrantRow.to_kind, GrantRow.to)
    return [record(Grant, row) for row in await tx.session.scalars(query)]


async def grant(tx: Transaction, grant_id: str) -> Grant | None:
    row = await tx.session.get(GrantRow, grant_id)
    return record(Grant, row) if row else None


async def grant_like(tx: Transaction, wanted: Grant) -> Grant | None:
    """The grant that says the same, if there is one."""
    row = await tx.session.scalar(
        select(GrantRow).where(
            GrantRow.kind == wanted.kind,
            GrantRow.name == wanted.name,
            GrantRow.to_kind == wanted.to_kind,
            GrantRow.to == wanted.to,
        )
    )
    return record(Grant, row) if row else None


async def add_grant(tx: Transaction, found: Grant) -> None:
    tx.session.add(GrantRow(**columns(found)))
    await tx.session.flush()


async def remove_grant(tx: Transaction, grant_id: str) -> None:
    await tx.session.execute(delete(GrantRow).where(GrantRow.id == grant_id))


async def granted_names(tx: Transaction, owner: str, groups: Collection[str]) -> set[tuple[str, str]]:
    """Kind and name of all that this principal may use in a task: by its mode, or granted to them or to one of these groups,
    also where a backend has the value."""
    found = await tx.session.execute(_GRANTED, {"owner": owner, "groups": list(groups)})
    return {(kind, name) for kind, name in found}


async def of_names(tx: Transaction, names: Collection[tuple[str, str]]) -> list[Secret]:
    """Those of these names (kind and name) that are stored here."""
    if not names:
        return []
    query = (
        select(SecretRow)
        .where(SecretRow.name.in_({name for _, name in names}))
        .order_by(SecretRow.kind, SecretRow.name)
    )
    return [record(Secret, row) for row in await tx.session.scalars(query) if (row.kind, row.name) in names]


async def granted_by(tx: Transaction, owner: str, groups: Collection[str]) -> dict[tuple[str, str], str]:
    """By kind and name of each secret that is granted to these: the id of the oldest grant that does."""
    found = await tx.session.execute(_GRANTED_BY, {"owner": owner, "groups": list(groups)})
    return {(kind, name): grant_id for kind, name, grant_id in found}


async def rules(tx: Transaction) -> list[Rule]:
    return [record(Rule, row) for row in await tx.session.execute(_RULES)]


async def rule(tx: Transaction, rule_id: str) -> Rule | None:
    row = await tx.session.get(RuleRow, rule_id)
    return record(Rule, row) if row else None


async def add_rule(tx: Transaction, found: Rule) -> None:
    tx.session.add(RuleRow(**columns(found)))
    await tx.session.flush()


async def remove_rule(tx: Transaction, rule_id: str) -> None:
    await tx.session.execute(delete(RuleRow).where(RuleRow.id == rule_id))

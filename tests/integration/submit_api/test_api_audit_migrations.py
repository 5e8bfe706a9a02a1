"""Migrations 0010 and 0011 with rows in the tables, up and down: nothing is lost, and no deny rule comes to allow."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from submit_api.registry import events, migrate, secrets
from submit_api.registry.database import Database
from submit_api.registry.events import Query
from submit_api.settings import DatabaseSection

OLD_EVENT = {
    "seq": 1, "at": 5, "principal": "ann", "token_id": "t", "address": "a", "action": "x", "object": "archive:e.py",
    "digest": "", "verdict": "accepted", "detail": "said",
}  # fmt: skip
OLD_RULE = {
    "id": "1" * 32, "subject_kind": "group", "subject": "team", "dag_glob": "*", "unix_user": "etl", "queue_glob": "*",
    "created_at": 1, "created_by": "ann",
}  # fmt: skip


async def put(database: Database, table: str, row: dict[str, Any]) -> None:
    names = ", ".join(f'"{name}"' for name in row)
    values = ", ".join(f":{name}" for name in row)
    async with database.write() as tx:
        await tx.session.execute(text(f"INSERT INTO {table} ({names}) VALUES ({values})"), row)


async def there(database: Database, table: str, column: str) -> list[Any]:
    async with database.read() as tx:
        return list(await tx.session.scalars(text(f"SELECT {column} FROM {table} ORDER BY 1")))


@pytest.mark.sqlite
async def test_rules_and_events_of_before_and_after(folder: str) -> None:
    database = Database(DatabaseSection(url=f"sqlite+aiosqlite:///{folder}/db"))
    await migrate.upgrade(database, "0004")
    await put(database, "audit_events", OLD_EVENT)
    await put(database, "impersonation_rules", OLD_RULE)
    await migrate.upgrade(database)
    async with database.read() as tx:
        (event,) = await events.page(tx, Query(about="archive:e.py", since=5, until=6), limit=10)
        (rule,) = await secrets.rules(tx)
    assert (event.seq, event.rule, event.detail) == (1, "", "said")
    assert (rule.effect, rule.subject) == ("allow", "team")

    await put(database, "audit_events", {**OLD_EVENT, "seq": 2, "rule": "admin"})
    await put(database, "impersonation_rules", {**OLD_RULE, "id": "2" * 32, "effect": "deny"})
    await migrate.downgrade(database, "0004")
    assert await there(database, "audit_events", "seq") == [1, 2]
    assert await there(database, "impersonation_rules", "id") == ["1" * 32], "it would read as one that allows"
    await migrate.upgrade(database)
    assert await there(database, "audit_events", "rule") == ["", ""]
    await database.close()

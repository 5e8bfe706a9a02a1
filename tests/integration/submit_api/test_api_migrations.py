"""The tables' revisions, on both databases, with a row in every table: up and down keep what both sides have."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, Table, inspect, select, types

from submit_api.registry import migrate
from submit_api.registry.database import Database
from submit_api.registry.tables import Base
from submit_api.settings import DatabaseSection
from tests.postgres import Server

REVISIONS = [script.revision for script in ScriptDirectory.from_config(migrate.config()).walk_revisions()][::-1]
BOOKKEEPING = "alembic_version"


@pytest.fixture
async def empty(database: str, folder: str, request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """A database without tables."""
    if database == "sqlite":
        opened = Database(DatabaseSection(url=f"sqlite+aiosqlite:///{folder}/db"))
        yield opened
        await opened.close()
        return
    server: Server = request.getfixturevalue("postgres_server")
    opened = Database(DatabaseSection(url=server.make_empty()))
    yield opened
    await opened.close()


async def reflected(database: Database) -> MetaData:
    async with database.engine.connect() as connection:
        found = MetaData()
        await connection.run_sync(found.reflect)
        return found


def value(kind: types.TypeEngine[Any], number: int) -> Any:
    """Something in each column that its type can hold, and that shows a lost byte."""
    if isinstance(kind, types.JSON):
        return [f"é{number}", {"nested": [number, None, True]}]
    if isinstance(kind, types.LargeBinary):
        return bytes([0, 255, number])
    if isinstance(kind, types.Boolean):
        return True
    if isinstance(kind, types.Integer):
        return 2**40 + number if isinstance(kind, types.BigInteger) else number
    assert isinstance(kind, types.String), kind
    return f"é{number}"[: kind.length or 10]


def filler(table: Table) -> dict[str, Any]:
    """The first row of a table: its foreign keys name the first row of the others. A rule that denies has no form before, and
    neither has a reservation."""
    found = {column.name: value(column.type, 1) for column in table.columns}
    return found | {name: plain for name, plain in {"effect": "allow", "supervised": False}.items() if name in found}


async def fill(database: Database, tables: MetaData) -> dict[str, dict[str, Any]]:
    rows = {table.name: filler(table) for table in tables.sorted_tables if table.name != BOOKKEEPING}
    async with database.write() as tx:
        for table in tables.sorted_tables:
            if table.name != BOOKKEEPING:
                await tx.session.execute(table.insert(), rows[table.name])
    return rows


async def stored(database: Database, tables: MetaData) -> dict[str, dict[str, Any]]:
    found = {}
    async with database.read() as tx:
        for table in tables.sorted_tables:
            if table.name != BOOKKEEPING:
                rows = list((await tx.session.execute(select(table))).mappings())
                assert len(rows) <= 1, table.name
                if rows:  # none in a table that came later
                    found[table.name] = dict(rows[0])
    return found


def shared(rows: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What both revisions have columns for."""
    return {
        name: {column: row[column] for column in row if column in other[name]}
        for name, row in rows.items()
        if name in other
    }


async def test_migrations_make_the_models_tables_and_unmake_them(empty: Database) -> None:
    def differences(connection: Connection) -> list[Any]:
        return list(compare_metadata(MigrationContext.configure(connection), Base.metadata))

    def tables(connection: Connection) -> list[str]:
        return inspect(connection).get_table_names()

    for _ in range(2):
        await migrate.upgrade(empty)
        await migrate.upgrade(empty)
        async with empty.engine.connect() as connection:
            assert await connection.run_sync(differences) == []
        await migrate.downgrade(empty)
        async with empty.engine.connect() as connection:
            assert await connection.run_sync(tables) == [BOOKKEEPING]


@pytest.mark.parametrize("revision", REVISIONS)
async def test_rows_of_a_revision_survive_the_way_to_the_newest_and_back(empty: Database, revision: str) -> None:
    await migrate.upgrade(empty, revision)
    old = await reflected(empty)
    written = await fill(empty, old)
    assert len(written) == len(old.tables) - 1
    await migrate.upgrade(empty)
    newest = await stored(empty, await reflected(empty))
    assert set(written) <= set(newest) and shared(newest, written) == shared(written, newest)
    await migrate.downgrade(empty, revision)
    back = await stored(empty, await reflected(empty))
    assert back == written
    await migrate.upgrade(empty)
    assert await stored(empty, await reflected(empty)) == newest


async def test_rows_of_the_newest_revision_survive_each_step_down(empty: Database) -> None:
    await migrate.upgrade(empty)
    written = await fill(empty, await reflected(empty))
    for revision in REVISIONS[-2::-1]:
        await migrate.downgrade(empty, revision)
        tables = await reflected(empty)
        below = await stored(empty, tables)
        assert set(below) == set(tables.tables) - {BOOKKEEPING} <= set(written)
        assert shared(below, written) == shared(written, below)
    await migrate.upgrade(empty)
    again = await stored(empty, await reflected(empty))
    assert set(below) <= set(again)
    assert shared(again, below) == shared(below, again)

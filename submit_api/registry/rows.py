"""All rows of all tables, to be carried into another database: what a backup is made of.

The tables are read from the database itself, not from the models, so rows of an older revision can be loaded as they were
and then migrated. A row is a JSON object by column name; bytes are base64.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from alembic import command
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Integer, LargeBinary, MetaData, Table, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from integrity.errors import ConflictError, SettingsError
from submit_api.refusals import InvalidRequestError
from submit_api.registry import migrate
from submit_api.registry.database import Transaction

_BOOKKEEPING = "alembic_version"
_AT_ONCE = 1000


def newest() -> str:
    """The revision that this version of dagseal has."""
    return str(ScriptDirectory.from_config(migrate.config()).get_current_head())


async def revision(tx: Transaction) -> str | None:
    """The one that the tables have; None when there are none."""
    found = await _sync(tx, lambda connection: MigrationContext.configure(connection).get_current_revision())
    return None if found is None else str(found)


async def tables(tx: Transaction) -> list[Table]:
    """In an order in which rows can be added: what a foreign key names comes first."""
    found = MetaData()
    await _sync(tx, found.reflect)
    return [table for table in found.sorted_tables if table.name != _BOOKKEEPING]


async def occupied(tx: Transaction) -> str | None:
    """The name of a table that has a row, if one has."""
    for table in await tables(tx):
        if await tx.session.scalar(select(func.count()).select_from(select(table).limit(1).subquery())):
            return table.name
    return None


async def dumped(tx: Transaction, table: Table) -> AsyncIterator[dict[str, Any]]:
    """Every row, by primary key."""
    binary = [column.name for column in table.columns if isinstance(column.type, LargeBinary)]
    query = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=_AT_ONCE)
    async for row in (await tx.session.stream(query)).mappings():
        found = dict(row)
        for name in binary:
            if found[name] is not None:
                found[name] = base64.b64encode(found[name]).decode("ascii")
        yield found


async def make_tables(tx: Transaction, wanted: str) -> list[Table]:
    """Those of a revision, where there is no row. Raises `SettingsError` for one that this version does not know."""
    known = {script.revision for script in ScriptDirectory.from_config(migrate.config()).walk_revisions()}
    if wanted not in known:
        raise SettingsError(f"the rows are of revision {wanted}, which this dagseal does not know: take a newer one")
    if await revision(tx) is not None:
        await _sync(tx, lambda connection: command.downgrade(migrate.config(connection), "base"))
    await _sync(tx, lambda connection: command.upgrade(migrate.config(connection), wanted))
    return await tables(tx)


async def load(tx: Transaction, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Add these rows. Raises `ConflictError` for what is not a row of this table, or cannot be stored here."""
    binary = [column.name for column in table.columns if isinstance(column.type, LargeBinary)]
    for row in rows:
        if set(row) != set(table.columns.keys()):
            raise ConflictError(f"a row of {table.name} has other columns than the table")
        for name in binary:
            if row[name] is not None:
                row[name] = base64.b64decode(row[name], validate=True)
    try:
        await tx.session.execute(table.insert(), list(rows))
    except InvalidRequestError as error:
        raise ConflictError(f"a row of {table.name} cannot be stored in this database: {error}") from None
    except SQLAlchemyError as error:
        raise ConflictError(
            f"a row of {table.name} cannot be stored in this database: {type(error).__name__}"
        ) from None


async def loaded(tx: Transaction) -> None:
    """After the last row: numbers go on after the highest, and the tables become the newest revision's."""
    if (await tx.session.connection()).dialect.name == "postgresql":
        for table in await tables(tx):
            for column in table.primary_key.columns:
                if isinstance(column.type, Integer):
                    await _go_on(tx, table, column.name)
    await _sync(tx, lambda connection: command.upgrade(migrate.config(connection), newest()))


async def _go_on(tx: Transaction, table: Table, column: str) -> None:
    names = {"table": f'"{table.name}"', "column": column}
    sequence = await tx.session.scalar(text("SELECT pg_get_serial_sequence(:table, :column)"), names)
    highest = await tx.session.scalar(select(func.max(table.columns[column])))
    if sequence is not None and highest is not None:
        await tx.session.execute(text("SELECT setval(:sequence, :highest)"), {"sequence": sequence, "highest": highest})


async def _sync(tx: Transaction, work: Callable[[Connection], Any]) -> Any:
    return await (await tx.session.connection()).run_sync(work)

"""The engine and its transactions.

Promise: `write` holds the process's one writer lock and begins IMMEDIATE, so that what it read stays true until its
commit; when it returns without an exception the commit is on disk (SQLite: WAL, synchronous=FULL), else nothing
changed.
`read` sees one snapshot.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from integrity.errors import SettingsError

_WRITES = "dagseal_writes"


class Transaction:
    """One open transaction. The functions of this package take it; nobody else looks inside."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def commit(self) -> None:
        """Now instead of when the block is left, for a caller that has to undo something outside the database."""
        await self.session.commit()


class Database:
    """One engine, one writer at a time."""

    def __init__(self, url: str, *, busy_timeout_seconds: float) -> None:
        self.engine = _engine(url, busy_timeout_seconds)
        self._writer = self.engine.execution_options(**{_WRITES: True})
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Transaction]:
        async with AsyncSession(self.engine) as session:
            yield Transaction(session)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Transaction]:
        async with self._lock, AsyncSession(self._writer) as session, session.begin():
            yield Transaction(session)

    async def settle(self) -> None:
        """At start, before anything is answered: SQLite shows what a killed process committed but had not synced yet."""
        if self.engine.dialect.name != "sqlite":
            return
        async with self.engine.connect() as connection:
            raw = await connection.get_raw_connection()
            cursor = await raw.driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[union-attr]
            await cursor.close()

    async def close(self) -> None:
        await self.engine.dispose()


def _engine(url: str, busy_timeout_seconds: float) -> AsyncEngine:
    try:
        backend = make_url(url).get_backend_name()
    except ArgumentError:
        raise SettingsError(
            "database.url is not a database URL, as sqlite+aiosqlite:////var/lib/dagseal/dagseal.db"
        ) from None
    if backend != "sqlite":
        return create_async_engine(url, isolation_level="SERIALIZABLE")
    engine = create_async_engine(url, connect_args={"timeout": busy_timeout_seconds})
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: object) -> None:
    # The driver would otherwise begin transactions by itself, and DEFERRED ones: an upgrade to a write can then fail.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

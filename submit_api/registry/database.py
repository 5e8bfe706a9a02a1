"""The database and its transactions: SQLite by default, PostgreSQL by its URL, with the same promise.

Promise: `write` is one transaction, and there is one at a time, of this process and of every other one: what it read stays
true until its commit. When it returns without an exception the commit is on disk, else nothing changed; only when the
connection is lost during the commit itself does nobody know, and that is an `UnavailableError` from `commit`.
`read` sees one snapshot and cannot write. Text is sorted by code point. What the driver says of a database that is away or
full comes out as `UnavailableError` and `NoSpaceError`; the next transaction connects anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, TypeAlias, TypeVar, cast

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from integrity.errors import SettingsError
from submit_api.refusals import UnavailableError
from submit_api.registry import sqlite, text
from submit_api.settings import DatabaseSection

SQLITE, POSTGRES = "sqlite", "postgresql"
Begin: TypeAlias = Callable[[AsyncSession], Awaitable[None]]
T = TypeVar("T")


class Transaction:
    """One open transaction. The functions of this package take it; nobody else looks inside."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def commit(self) -> None:
        """Now instead of when the block is left, for a caller that has to undo something outside the database."""
        await self.session.commit()

    async def together(self, work: Callable[[Transaction], Coroutine[Any, Any, T]]) -> T:
        """Do this, which awaits nothing but statements of this transaction: where it can be, by one trip to the database."""
        if isinstance(self.session, sqlite.Recorder):
            return await self.session.run(work(self))
        return await work(self)


class Database:
    """Two engines, as readers and writers begin differently. A `sole` one is refused while another process is."""

    def __init__(self, section: DatabaseSection, *, sole: bool = False) -> None:
        self.kind = _kind(section.url)
        self.engine, self._writer, self._begin = _engines(self.kind, section, sole)
        self._glancer = sqlite.Glancer(section.url) if self.kind == SQLITE else None
        self._recorder = sqlite.Recorder(section.url, section.busy_timeout_seconds) if self.kind == SQLITE else None
        self._of_one = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self.engines = [self.engine.sync_engine, self._writer.sync_engine]
        self.engines += [inline.engine for inline in (self._glancer, self._recorder) if inline is not None]
        for engine in self.engines:
            text.guard(engine)
        self._lock = asyncio.Lock()
        self.commits = 0  # of this process: who keeps something of the rows looks again when it has changed

    def read(self) -> AbstractAsyncContextManager[Transaction]:
        return self._reading(self.engine)

    @asynccontextmanager
    async def _reading(self, engine: AsyncEngine) -> AsyncIterator[Transaction]:
        async with AsyncSession(engine) as session:
            try:
                await session.connection()
            except PoolTimeoutError:
                raise UnavailableError("too many requests wait for the database: try again") from None
            yield Transaction(session)

    def glance(self) -> AbstractAsyncContextManager[Transaction]:
        """As `read`, for one statement that finds a few rows by their keys and selects columns: SQLite answers that in this
        thread, since to ask another one takes ten times as long as the answer; PostgreSQL without the two questions that begin
        and end a transaction."""
        if self._glancer is None:
            return self._reading(self._of_one)
        return nullcontext(Transaction(cast("AsyncSession", self._glancer)))  # as much of one as it takes

    def at_once(self, look: Callable[[Transaction], Coroutine[Any, Any, T]]) -> T | None:
        """What `look` sees at a glance, before this returns; None where that takes waiting."""
        if self._glancer is None:
            return None
        return sqlite.ended(look(Transaction(cast("AsyncSession", self._glancer))))

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Transaction]:
        async with self._lock:
            try:
                async with AsyncSession(self._writer) as session, session.begin():
                    await self._begin(session)
                    yield Transaction(session)
            finally:
                self.commits += 1

    @asynccontextmanager
    async def write_together(self) -> AsyncIterator[Transaction]:
        """As `write`, for statements of the core only, that are given to `Transaction.together`."""
        if self._recorder is None:
            async with self.write() as tx:
                yield tx
            return
        async with self._lock:
            try:
                yield Transaction(cast("AsyncSession", self._recorder))  # as much of one as it takes
                await self._recorder.commit()
            except BaseException:
                await self._recorder.undo()
                raise
            finally:
                self.commits += 1

    @asynccontextmanager
    async def write_tables(self) -> AsyncIterator[AsyncConnection]:
        """A writer's transaction for whoever changes the tables themselves."""
        async with self.write() as tx:
            yield await tx.session.connection()

    async def hold(self) -> None:
        """Raises `TakenError` where a `sole` one was taken over, after it had lost its connection."""
        async with self.write():
            pass

    async def settle(self) -> None:
        """At start, before anything is answered."""
        if self.kind == SQLITE:
            await sqlite.settle(self._writer)

    async def close(self) -> None:
        for inline in (self._glancer, self._recorder):
            if inline is not None:
                inline.close()
        await self.engine.dispose()
        await self._writer.dispose()


def _kind(url: str) -> str:
    try:
        scheme = make_url(url).drivername
    except ArgumentError:
        scheme = ""
    if scheme in ("sqlite", "sqlite+aiosqlite"):
        return SQLITE
    if scheme in ("postgresql", "postgres", "postgresql+asyncpg"):
        return POSTGRES
    raise SettingsError(
        "database.url is not one of sqlite+aiosqlite:////var/lib/dagseal/dagseal.db and postgresql://user@host/database"
    )


def _engines(kind: str, section: DatabaseSection, sole: bool) -> tuple[AsyncEngine, AsyncEngine, Begin]:
    if kind == SQLITE:
        seconds = section.busy_timeout_seconds
        return sqlite.reader(section.url, seconds), sqlite.writer(section.url, seconds), _begun_by_the_engine
    try:
        from submit_api.registry import postgres
    except ImportError:
        raise SettingsError(
            "database.url is PostgreSQL's and asyncpg is missing: pip install dagseal[postgres]"
        ) from None
    return postgres.reader(section), postgres.writer(section, sole=sole), postgres.be_the_writer


async def _begun_by_the_engine(session: AsyncSession) -> None:
    await session.connection()

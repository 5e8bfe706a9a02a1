"""SQLite: one file in the state folder.

WAL with synchronous=FULL: a commit is on disk when it returns. Writers begin IMMEDIATE; readers cannot write. To ask another
thread for one statement takes longer than most statements do: so a few rows by their keys are read in this one (`Glancer`),
and many statements that belong together are one trip (`Recorder`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Engine, Executable, FrozenResult, Result, ScalarResult, create_engine, event
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from integrity.errors import DagsealError
from submit_api.refusals import NO_SPACE, NoSpaceError, UnavailableError

_DURABLE = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")
_READS = (*_DURABLE, "query_only=ON")
KEPT = "kept"  # an execution option: of statements that are asked again and again, with the same parameters
_MOST_KEPT = 4096
T = TypeVar("T")


def reader(url: str, busy_timeout_seconds: float) -> AsyncEngine:
    return _engine(url, busy_timeout_seconds, "BEGIN", _READS)


def writer(url: str, busy_timeout_seconds: float) -> AsyncEngine:
    return _engine(url, busy_timeout_seconds, "BEGIN IMMEDIATE", _DURABLE)


class Inline:
    """What of a session statements of the core take, each answered before it is awaited. It keeps one connection: to take one
    from a pool costs as much as a statement."""

    def __init__(self, url: str, begin: str, pragmas: tuple[str, ...], **arguments: Any) -> None:
        self.engine = create_engine(make_url(url).set(drivername="sqlite"), **arguments)
        _prepared(self.engine, begin, pragmas)
        self._connection: Connection | None = None

    async def execute(self, statement: Executable, parameters: Any = None) -> Result[Any]:
        return self._open().execute(statement, parameters)

    async def scalars(self, statement: Executable, parameters: Any = None) -> ScalarResult[Any]:
        return self._open().scalars(statement, parameters)

    async def scalar(self, statement: Executable, parameters: Any = None) -> Any:
        return self._open().scalar(statement, parameters)

    def close(self) -> None:
        self._leave()
        self.engine.dispose()

    def _open(self) -> Connection:
        if self._connection is None:
            self._connection = self.engine.connect()
        return self._connection

    def _leave(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class Glancer(Inline):
    """In this very thread. Each statement is a snapshot of its own; in WAL mode a reader waits for nobody. What a `KEPT` one
    found is kept for as long as SQLite says that nobody has committed anything since, neither this process nor another."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "", _READS)
        self._kept: dict[tuple[Executable, tuple[tuple[str, Any], ...]], FrozenResult[Any]] = {}
        self._version: object = None

    async def execute(self, statement: Executable, parameters: Any = None) -> Result[Any]:
        if KEPT not in statement.get_execution_options():
            return await super().execute(statement, parameters)
        version = self._data_version()
        if version != self._version or len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
            self._version = version  # from before the statement: what is newer than it says is only asked for again
        key = (statement, tuple((parameters or {}).items()))
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = (await super().execute(statement, parameters)).freeze()
        return found()

    async def scalars(self, statement: Executable, parameters: Any = None) -> ScalarResult[Any]:
        return (await self.execute(statement, parameters)).scalars()

    def _data_version(self) -> object:
        """Another one whenever another connection than this one has changed the database."""
        raw: Any = self._open().connection.driver_connection
        return raw.execute("PRAGMA data_version").fetchone()


class Recorder(Inline):
    """A writer in a thread of its own. Its transaction begins with the first statement of what is `run`, and ends with `commit`
    or `undo`. All of it is done in the order in which it was asked for, also when who asked was cancelled."""

    def __init__(self, url: str, busy_timeout_seconds: float) -> None:
        super().__init__(url, "BEGIN IMMEDIATE", _DURABLE, connect_args={"timeout": busy_timeout_seconds})
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recorder")

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """To its end, by one trip: it may await nothing but its statements."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, ended, work)

    async def commit(self) -> None:
        if self._connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._commit)

    async def undo(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._leave)

    def close(self) -> None:
        self._thread.shutdown()
        super().close()

    def _commit(self) -> None:
        self._open().commit()
        self._leave()


def ended(work: Coroutine[Any, Any, T]) -> T:
    """What it gives, now: each statement of an `Inline` is answered before it is awaited."""
    try:
        work.send(None)
    except StopIteration as end:
        return cast(T, end.value)
    work.close()
    raise RuntimeError("what is done in one go awaited something else than its statements")


def _engine(url: str, busy_timeout_seconds: float, begin: str, pragmas: tuple[str, ...]) -> AsyncEngine:
    engine = create_async_engine(url, connect_args={"timeout": busy_timeout_seconds})
    _prepared(engine.sync_engine, begin, pragmas)
    return engine


def _prepared(engine: Engine, begin: str, pragmas: tuple[str, ...]) -> None:
    def prepare(connection: Any, _: object) -> None:
        # The driver would otherwise begin transactions by itself, and DEFERRED ones: an upgrade to a write can then fail.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def begun(connection: Connection) -> None:
        if begin:
            connection.exec_driver_sql(begin)

    event.listen(engine, "connect", prepare)
    event.listen(engine, "begin", begun)
    event.listen(engine, "handle_error", _ours)


async def settle(engine: AsyncEngine) -> None:
    """What a killed process committed but had not synced yet is shown by SQLite: sync it before anything is answered."""
    async with engine.connect() as connection:
        raw = await connection.get_raw_connection()
        cursor = await raw.driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[union-attr]
        await cursor.close()


def _ours(context: ExceptionContext) -> DagsealError | None:
    said = str(context.original_exception)
    if "database or disk is full" in said:
        return NoSpaceError(NO_SPACE)
    if "database is locked" in said:
        return UnavailableError("another process has been writing to the database for too long")
    return None

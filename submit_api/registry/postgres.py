"""PostgreSQL, through asyncpg.

Promise, as for SQLite. Writers take one advisory lock as the first thing in their transaction: after it every statement
sees all that was committed, nobody else changes anything before the commit, and no transaction can fail for another one's
sake, so there is nothing to try again. (SERIALIZABLE would fail some commits, whose blob is published by then.) Readers
see one snapshot, REPEATABLE READ READ ONLY, which never fails so either. A commit is on the server's disk when it
returns: `synchronous_commit=off` is set back for our sessions, `fsync=off` is refused.

Who is `sole` also holds a second advisory lock for as long as it is connected, on the one connection that it writes with:
so a process that lost its connection, and its lock to another one, cannot write any more. Both are session locks: a proxy
that hands out connections by the transaction (pgbouncer's `transaction`) cannot be between.

Text is sorted and compared by code point, as SQLite does it: a database that sorts by a language is refused.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import stat
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import structlog
from sqlalchemy import event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from integrity.errors import DagsealError, SettingsError
from submit_api.refusals import NO_SPACE, NoSpaceError, TakenError, UnavailableError
from submit_api.settings import DatabaseSection

_CLASS, _OWNER, _WRITER = 0x64616773, 1, 2  # advisory locks: 'dags', and which
_OWNER_WAIT = "2s"  # for the server to notice that a killed predecessor is gone
_SORT = "SELECT array_agg(t ORDER BY t) FROM unnest($1::text[]) t"
_SORT_PROBE = ["-b", "B", "Z", "_", "a", "a.b", "ab", "b", "\u00c9", "\u00e9", "\uffee", "\U0001d4b3"]
_CONNECT_SECONDS = 5.0
_SPACE = ("53100",)
# Of SQLSTATEs: connection lost, resources, shutdown, cancelled or timed out, locked for too long, to be tried again, disk.
_GONE = ("08", "53", "57", "55P03", "40", "58")
_READ_ONLY = "25006"  # to a writer: the server has become a replica; to a reader: a bug of ours
_TO_BE_FIXED = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)
_DURABILITY = "current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on'"
_HOLDER = (
    "SELECT a.application_name, a.client_addr::text, a.backend_start::timestamp(0)::text "
    "FROM pg_locks l JOIN pg_stat_activity a USING (pid) JOIN pg_database d ON d.oid = l.database "
    "WHERE l.locktype = 'advisory' AND l.granted AND d.datname = current_database() AND l.classid = $1 AND l.objid = $2"
)
_log = structlog.get_logger("submit_api")


def reader(section: DatabaseSection) -> AsyncEngine:
    engine = _engine(section, sole=False, connections=section.max_read_connections)
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def writer(section: DatabaseSection, *, sole: bool) -> AsyncEngine:
    """One connection: there is one writer at a time."""
    return _engine(section, sole=sole, connections=1).execution_options(isolation_level="READ COMMITTED")


async def be_the_writer(session: AsyncSession) -> None:
    """The first statement of a transaction that writes."""
    await session.execute(text("SELECT pg_advisory_xact_lock(:class, :writer)"), {"class": _CLASS, "writer": _WRITER})


def _engine(section: DatabaseSection, *, sole: bool, connections: int) -> AsyncEngine:
    arguments = _arguments(section)

    async def connect(*_: Any, **__: Any) -> asyncpg.Connection[Any]:
        return await _opened(lambda: asyncpg.connect(**arguments), sole=sole)

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=section.busy_timeout_seconds,
    )
    event.listen(engine.sync_engine, "checkout", _still_there)
    event.listen(engine.sync_engine, "handle_error", _ours)
    return engine


def _arguments(section: DatabaseSection) -> dict[str, Any]:
    """What asyncpg is given. All of the URL is libpq's: `sslmode`, `sslrootcert`, `host` for a unix socket, and so on."""
    milliseconds = 1000
    found: dict[str, Any] = {
        "dsn": "postgresql://" + section.url.partition("://")[2],
        "timeout": _CONNECT_SECONDS,
        "command_timeout": section.statement_timeout_seconds + _CONNECT_SECONDS,
        "server_settings": {
            "application_name": f"dagseal {os.getpid()} on {socket.gethostname()}"[:63],
            "timezone": "UTC",
            "lock_timeout": str(round(section.busy_timeout_seconds * milliseconds)),
            "idle_in_transaction_session_timeout": "0",
            "idle_session_timeout": "0",
            "statement_timeout": str(round(section.statement_timeout_seconds * milliseconds)),
            # A host that vanished with a lock is found out in half a minute, not in two hours.
            "tcp_keepalives_idle": "10",
            "tcp_keepalives_interval": "5",
            "tcp_keepalives_count": "4",
        },
    }
    if section.password_file:
        # Read for each connection: a new password needs no restart.
        found["password"] = lambda: read_password(section.password_file)
    return found


def read_password(path: str) -> str:
    """The one line of a file that nobody else can read. Raises `SettingsError`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise SettingsError(f"cannot read database.password_file {path}: {error.strerror}") from None
    with os.fdopen(fd, "rb") as file:
        if os.fstat(fd).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise SettingsError(f"database.password_file {path} is readable by others: chmod 600 it")
        try:
            found = file.read(4096).decode().removesuffix("\n")
        except UnicodeDecodeError:
            found = ""
    if not found or "\n" in found or "\0" in found:
        raise SettingsError(f"database.password_file {path} is to hold the password on one line")
    return found


async def _opened(connect: Callable[[], Awaitable[asyncpg.Connection[Any]]], *, sole: bool) -> asyncpg.Connection[Any]:
    """A connection that keeps the promises above, or an error of ours."""
    try:
        connection = await connect()
    except (*_TO_BE_FIXED, asyncpg.ClientConfigurationError, ssl.SSLError, TypeError, ValueError) as error:
        raise SettingsError(f"PostgreSQL cannot be used with database.url as it is: {_said(error)}") from None
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise _gone(f"it cannot be reached: {_said(error)}") from None
    try:
        await _prepare(connection)
        if sole:
            await _own(connection)
    except BaseException as error:
        connection.terminate()
        if isinstance(error, (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            raise _gone(f"it went away: {_said(error)}") from None
        raise
    return connection


async def _prepare(connection: asyncpg.Connection[Any]) -> None:
    name, encoding, durable, waits = await connection.fetchrow(
        "SELECT current_database(), current_setting('server_encoding'), "
        f"{_DURABILITY}, current_setting('synchronous_commit') <> 'off'"
    )
    if not durable:
        raise SettingsError(
            "PostgreSQL runs with fsync or full_page_writes off: a commit would not be kept; set both on"
        )
    if not waits:
        await connection.execute("SET synchronous_commit = on")
    if encoding != "UTF8" or await connection.fetchval(_SORT, _SORT_PROBE[::-1]) != _SORT_PROBE:
        raise SettingsError(
            f"database {name!r} is not UTF8, or does not sort by code point: make it with "
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'"
        )


async def _own(connection: asyncpg.Connection[Any]) -> None:
    """Hold the owner's lock until the connection ends. Raises `TakenError` that says who has it."""
    await connection.execute(f"SET lock_timeout = '{_OWNER_WAIT}'")
    try:
        await connection.execute("SELECT pg_advisory_lock($1::int, $2::int)", _CLASS, _OWNER)
    except asyncpg.LockNotAvailableError:
        holder = await connection.fetchrow(_HOLDER, _CLASS, _OWNER)
        application, address, since = holder or ("", "", "")
        raise TakenError(
            f"another process works on this database: {application or 'one that cannot be seen'}, connected from "
            f"{address or 'this host'} since {since or 'some time'} UTC: stop it first"
        ) from None
    await connection.execute("RESET lock_timeout")


def _still_there(connection: Any, _record: Any, _proxy: Any) -> None:
    """A connection that the server closed meanwhile is replaced before it is used."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _ours(context: ExceptionContext) -> DagsealError | None:
    """The one place where what the driver raises becomes an error of ours; the rest is a bug."""
    error = context.original_exception
    if not isinstance(error, Exception):
        return None  # a cancelled task stays cancelled
    state = getattr(error, "sqlstate", None) or getattr(error.__cause__, "sqlstate", None) or ""
    if state in _SPACE:
        return NoSpaceError(NO_SPACE)
    lost = context.is_disconnect or isinstance(error, (OSError, asyncio.TimeoutError))
    is_reader = context.connection is not None and context.connection.get_execution_options().get("postgresql_readonly")
    if lost or state.startswith(_GONE) or (state == _READ_ONLY and not is_reader):
        context.is_disconnect = lost or state.startswith(("08", "57P"))
        return _gone(f"{type(error.__cause__ or error).__name__} {state}".strip())
    return None


def _gone(reason: str) -> UnavailableError:
    _log.error("database_unavailable", reason=reason)
    return UnavailableError("the database does not answer: try again")


def _said(error: BaseException) -> str:
    """PostgreSQL's words; they name database and role, never the password."""
    return f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"

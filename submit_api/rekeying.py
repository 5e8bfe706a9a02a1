"""Rotation of the key under which connections, variables and XComs rest, while the service runs.

| step      | what happens                                                     | after `kill -9` there                     |
|-----------|------------------------------------------------------------------|-------------------------------------------|
| prepare   | the new key's file is on disk under a name that does not count   | `settle` removes it                       |
| record    | the audit event is committed: this decides                       | `settle` goes on with the next step       |
| count     | the file gets its name, and from now on this key encrypts        | nothing to do                             |
| rewrite   | what older keys hold is rewritten, some rows in each transaction | goes on where it was: each row says its key |
| retire    | the audit event is committed, then the file of a key without rows removed | `settle` removes it              |

Promise: at every instant each row opens with a key whose file is on disk, and a key that a row needs cannot be retired.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from sqlalchemy.exc import SQLAlchemyError

from integrity.errors import ConflictError, DagsealError, NotFoundError, SignatureError
from submit_api import audit, connections, keyfiles, rowkeys
from submit_api.identity import Caller
from submit_api.refusals import NoSpaceError
from submit_api.registry import sealed
from submit_api.registry.database import Transaction
from submit_api.registry.records import Secret, StoredXcom
from submit_api.service import Service
from vocabulary.keys import RowKey

KEYS = "keys"
ROWS_AT_ONCE = 200
LOOK_AGAIN_SECONDS = 3600.0
ROTATED, RETIRED, REWRITTEN = "key.rotate", "key.retire", "key.rewrite"
_log = structlog.get_logger("submit_api")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyState:
    """A row key and how many rows are under it. `state` is `newest`, `older`, or `missing`: in no file, and rows name it."""

    key_id: str
    state: str
    connections: int
    variables: int
    xcoms: int

    @property
    def rows(self) -> int:
        return self.connections + self.variables + self.xcoms


async def listed(service: Service) -> list[KeyState]:
    """Every key, the oldest first."""
    async with service.database.read() as tx:
        return await _states(service, tx)


async def rotate(service: Service, caller: Caller) -> KeyState:
    """A new key encrypts from now on. Raises `ConflictError` where the keys' folder cannot be written."""
    async with service.keys.rows.changing:
        await _settle(service)
        with _disk_errors():
            number, key = await asyncio.to_thread(keyfiles.prepare_row_key, service.settings)
        async with service.database.write() as tx:
            await _note(tx, service, caller, ROTATED, key, f"row key {number} encrypts from now on")
        await _count(service, number)
    service.signals.notify(KEYS)
    return next(state for state in await listed(service) if state.key_id == key.key_id)


async def retire(service: Service, caller: Caller, key_id: str) -> None:
    """Remove a key that no row needs. Raises `ConflictError` as long as one does."""
    async with service.keys.rows.changing:
        keys = {key.key_id: (number, key) for number, key in service.keys.rows.listed().items()}
        if key_id not in keys:
            raise NotFoundError(f"there is no row key {key_id!r}: see 'dagseal key list'")
        number, key = keys[key_id]
        if key == service.keys.rows.newest:
            raise ConflictError(f"row key {key_id} is the newest: 'dagseal key rotate' first")
        async with service.database.write() as tx:
            (state,) = [state for state in await _states(service, tx) if state.key_id == key_id]
            if state.rows:
                service.signals.notify(KEYS)
                raise ConflictError(
                    f"row key {key_id} still holds {state.rows} rows: they are being rewritten, wait until 'dagseal key "
                    "list' shows none; 'dagseal fsck' names those that cannot be read"
                )
            await _note(tx, service, caller, RETIRED, key, f"row key {number} is removed: no row is under it")
        with _disk_errors():
            await asyncio.to_thread(keyfiles.drop_row_key, service.settings, number)
        service.keys.rows.refresh()


async def settle(service: Service) -> None:
    """End what a crash cut off: what was recorded is done, what was not is undone. For the one process that works here."""
    async with service.keys.rows.changing:
        await _settle(service)


async def _settle(service: Service) -> None:
    for number, key in keyfiles.prepared_row_keys(service.settings).items():
        if await _is_recorded(service, ROTATED, key):
            await _count(service, number)
        else:
            keyfiles.drop_row_key(service.settings, number, prepared=True)
    *older, _ = service.keys.rows.listed().items()
    retired = [(number, key) for number, key in older if await _is_recorded(service, RETIRED, key)]
    needed = {state.key_id for state in await listed(service) if state.rows} if retired else set()
    for number, key in retired:
        if key.key_id not in needed:
            keyfiles.drop_row_key(service.settings, number)
    service.keys.rows.refresh()


async def rewrite(service: Service) -> int:
    """Put what older keys hold under the newest; how many rows. What cannot be read stays, for fsck to name."""
    newest = service.keys.rows.newest
    if len(service.keys.rows.listed()) == 1:
        return 0
    return await _rewrite_secrets(service, newest) + await _rewrite_xcoms(service, newest)


async def keep_rewriting(service: Service) -> None:
    """For as long as the service runs: after its start and after each rotation."""
    with service.signals.listen(KEYS) as listener:
        while not service.signals.closed:
            listener.event.clear()
            pause = LOOK_AGAIN_SECONDS
            try:
                await rewrite(service)
            except (DagsealError, SQLAlchemyError, OSError) as error:
                _log.error("rewrite_failed", error=type(error).__name__)
                pause = service.settings.launches.watch_interval_seconds
            await listener.wait(pause)


async def _rewrite_secrets(service: Service, newest: RowKey) -> int:
    at, rewritten = ("", ""), 0
    while True:
        async with service.database.write() as tx:
            rows = await sealed.secrets_not_under(tx, rowkeys.prefix(newest), after=at, limit=ROWS_AT_ONCE)
            made: list[Secret] = []
            for row in rows:
                try:
                    made.append(connections.seal_again(service.keys.rows, row))
                except SignatureError:
                    _log.error("row_unreadable", row=f"{row.kind}:{row.name}")
            if made:
                await sealed.replace_secrets(tx, made)
                await _rewritten(tx, service, newest, f"{len(made)} connections and variables")
        rewritten += len(made)
        if not rows:
            return rewritten
        at = (rows[-1].kind, rows[-1].name)


async def _rewrite_xcoms(service: Service, newest: RowKey) -> int:
    at, rewritten = ("", "", "", -1, ""), 0
    while True:
        async with service.database.write() as tx:
            rows = await sealed.xcoms_not_under(tx, rowkeys.prefix(newest), after=at, limit=ROWS_AT_ONCE)
            made: list[StoredXcom] = []
            for row in rows:
                try:
                    made.append(connections.seal_xcom_again(service.keys.rows, row))
                except SignatureError:
                    _log.error("row_unreadable", row=f"xcom:{row.dag_id}/{row.run_id}/{row.task_id}")
            if made:
                await sealed.replace_xcoms(tx, made)
                await _rewritten(tx, service, newest, f"{len(made)} XComs")
        rewritten += len(made)
        if not rows:
            return rewritten
        last = rows[-1]
        at = (last.dag_id, last.run_id, last.task_id, last.map_index, last.key)


async def _states(service: Service, tx: Transaction) -> list[KeyState]:
    keys = service.keys.rows.listed()
    rows: dict[str, dict[str, int]] = {key.key_id: {} for key in keys.values()}
    for kind, named, count in await sealed.counts(tx, rowkeys.MAGIC, rowkeys.PREFIX_BYTES):
        key_id = named[len(rowkeys.MAGIC) :].hex()
        if not named and rowkeys.FIRST in keys:
            key_id = keys[rowkeys.FIRST].key_id
        held = rows.setdefault(key_id, {})
        held[kind] = held.get(kind, 0) + count
    newest = service.keys.rows.newest.key_id
    present = {key.key_id for key in keys.values()}
    return [
        KeyState(
            key_id=key_id,
            state="newest" if key_id == newest else "older" if key_id in present else "missing",
            connections=held.get("connection", 0),
            variables=held.get("variable", 0),
            xcoms=held.get("xcom", 0),
        )
        for key_id, held in rows.items()
    ]


async def _count(service: Service, number: int) -> None:
    """Under the writer's lock, so that whoever seals does it before this or with the new key."""
    async with service.database.write():
        with _disk_errors():
            keyfiles.count_row_key(service.settings, number)
        service.keys.rows.refresh()


async def _is_recorded(service: Service, action: str, key: RowKey) -> bool:
    async with service.database.read() as tx:
        return await sealed.is_recorded(tx, action, _about(key))


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError("the service has no space left for a key: the old keys stay") from None
        raise ConflictError(f"the folder of the keys cannot be changed: {error.strerror}") from None


def _about(key: RowKey) -> str:
    return f"key:{key.key_id}"


async def _note(tx: Transaction, service: Service, caller: Caller, action: str, key: RowKey, detail: str) -> None:
    await audit.accepted(tx, at=service.now_us(), caller=caller, action=action, about=_about(key), detail=detail)


async def _rewritten(tx: Transaction, service: Service, key: RowKey, what: str) -> None:
    detail = f"{what} are under {key.key_id} now"
    await audit.accepted(
        tx, at=service.now_us(), caller=audit.SERVICE, action=REWRITTEN, about="row-keys", detail=detail
    )

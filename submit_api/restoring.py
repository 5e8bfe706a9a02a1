"""Put a backup into an empty service: whole, or not at all.

In order: 1 nothing else works on the folder or the database, and both are empty; 2 a marker says that a restore has begun;
3 in one transaction: the rows, the files, each under its own digest, the migration to the newest revision, the backup's
signature over all that was read, every check of fsck, the audit event; 4 its commit; 5 the marker goes.

While the marker is there the service does not start, and fsck calls the store damaged. Who is killed between 2 and 4 leaves
an empty database, and files that the next restore removes first; between 4 and 5, a whole restore, which the next one of the
same backup recognises and finishes. The marker never permits to empty a database.

Launches that were queued or offered may have run since the backup was made, so they end as cancelled, unless the caller
says that the service had been stopped before it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO, Any

from sqlalchemy import Table

from integrity.digests import Digest
from integrity.errors import ConflictError, DigestMismatchError, MalformedError, SignatureError
from submit_api import audit, keyfiles, launches, transparency
from submit_api.backup_file import Part, Reader
from submit_api.findings import damaged
from submit_api.fsck import examined
from submit_api.keyfiles import Keys
from submit_api.refusals import UnavailableError
from submit_api.registry import events, ledger, rows
from submit_api.registry.database import Transaction
from submit_api.running import RESTORE_MARKER, opened, restore_unfinished, state_lock
from submit_api.service import Service
from submit_api.settings import Settings
from vocabulary import durable

_AT_ONCE = 500
_ACTION = "backup.restore"
_BLOBS = "blobs.url: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was put back. `was_done`: an earlier restore had come to its commit, and was only finished."""

    id: str
    rows: int = 0
    blobs: int = 0
    logs: int = 0
    cancelled: int = 0
    was_done: bool = False


async def restore(settings: Settings, file: IO[bytes], *, keep_queued: bool = False) -> Restored:
    """Raises `ConflictError` where something is already, `SecurityError` for what is not a whole backup of these keys."""
    with state_lock(settings):
        reader = Reader(file)
        with _key_files(settings, reader.keys):
            async with opened(settings, migrating=False, sole=True, restoring=True) as service:
                return await _restore(service, reader, keep_queued)


@contextmanager
def _key_files(settings: Settings, keys: dict[str, bytes]) -> Iterator[None]:
    """The keys of a backup that has them; what was made is removed when the restore fails."""
    made = keyfiles.put(settings, keys) if keys else []
    try:
        yield
    except BaseException:
        for path in made:
            os.unlink(path)
        raise


async def _restore(service: Service, reader: Reader, keep_queued: bool) -> Restored:
    """Before `touched` nothing is removed, whatever fails: what is there is somebody's."""
    begun, touched, committing = restore_unfinished(service.settings), False, False
    try:
        async with service.database.write() as tx:
            if await _was_committed(tx, reader, begun):
                done = Restored(id=reader.head.id, was_done=True)
            else:
                await _require_no_files(service, begun)
                touched = True
                _mark(service.settings)
                done = await _load(service, tx, reader)
                await transparency.begin(tx, service.keys.signing, service.now_us())
                service = replace(service, keys=await _with_earlier(service.keys, tx))
                reader.finish(service.keys.ring)
                done = await _conclude(service, tx, done, keep_queued)
                committing = True
                await tx.commit()
    except BaseException as error:
        unknown = committing and isinstance(error, (UnavailableError, asyncio.CancelledError))
        if touched and not unknown:
            await _remove_files(service)
            _unmark(service.settings)
        raise
    _unmark(service.settings)
    return done


async def _with_earlier(keys: Keys, tx: Transaction) -> Keys:
    """Those that the restored log was signed by before. It leads to our key, or is not ours."""
    chain = await transparency.chain(tx)
    if chain[-1] != keys.signing.public:
        raise SignatureError(
            f"the backup's log ends with key {chain[-1].key_id[:16]}…, and the signing key here is "
            f"{keys.signing.public.key_id[:16]}…: restore with the key of that time, or take a later backup"
        )
    return replace(keys, earlier=chain[:-1])


async def _was_committed(tx: Transaction, reader: Reader, begun: bool) -> bool:
    """Whether there is nothing left to do. Raises `ConflictError` for a database with anything else in it."""
    occupied = await rows.occupied(tx)
    if occupied is None:
        return False
    if begun and await rows.revision(tx) == rows.newest():
        last = await events.last_of(tx, _ACTION)
        if last is not None and last.object == f"backup:{reader.head.id}":
            return True
    raise ConflictError(f"the database is not empty ({occupied}): restore into a new one")


async def _require_no_files(service: Service, begun: bool) -> None:
    if begun:
        if _marked(service.settings) != service.settings.blobs.url:
            raise ConflictError("the restore that did not end had another blobs.url: set it back, and run it again")
        await _remove_files(service)
    left = [name async for _, name in service.blobs.names()] + list(service.logs.sizes())
    if left:
        raise ConflictError(
            f"{service.settings.api.state_folder} holds archives or logs already ({left[0][:40]}): take a new state folder"
        )


async def _load(service: Service, tx: Transaction, reader: Reader) -> Restored:
    tables = {table.name: table for table in await rows.make_tables(tx, reader.head.revision)}
    counts = {"rows": 0, "blobs": 0, "logs": 0}
    for part in reader.parts():
        match part.kind:
            case "rows":
                counts["rows"] += await _rows(tx, tables, part)
            case "blobs":
                await _blob(service, part)
                counts["blobs"] += 1
            case "logs":
                offset = 0
                for chunk in part.chunks():
                    service.logs.append(part.rest, offset, chunk)
                    offset += len(chunk)
                counts["logs"] += 1
            case _:
                raise MalformedError(f"the backup's {part.name} is not in its place")
    await rows.loaded(tx)
    return Restored(id=reader.head.id, rows=counts["rows"], blobs=counts["blobs"], logs=counts["logs"])


async def _rows(tx: Transaction, tables: dict[str, Table], part: Part) -> int:
    table = tables.get(part.rest.partition("/")[0])
    if table is None:
        raise MalformedError(f"the backup's {part.name} is of no table of its revision")
    try:
        found: list[dict[str, Any]] = [json.loads(line) for line in part.read().split(b"\n") if line]
        for at in range(0, len(found), _AT_ONCE):
            await rows.load(tx, table, found[at : at + _AT_ONCE])
    except (ValueError, TypeError):
        raise MalformedError(f"the backup's {part.name} does not hold rows") from None
    return len(found)


async def _blob(service: Service, part: Part) -> None:
    wanted = Digest(part.rest)
    with service.blobs.upload() as upload:
        for chunk in part.chunks():
            await upload.write(chunk)
        wanted.require(await upload.finish(), f"the backup's {part.name}")
        await service.blobs.publish(upload)


async def _conclude(service: Service, tx: Transaction, done: Restored, keep_queued: bool) -> Restored:
    """What was put in is looked at as fsck does, then changed as little as must be, and recorded."""
    findings = await examined(service, tx)
    if damaged(findings):
        raise DigestMismatchError(f"what is in the backup is not whole: {findings[0].subject}: {findings[0].detail}")
    now, cancelled = service.now_us(), 0
    for launch in await ledger.waiting(tx) if not keep_queued else []:
        why = "it may have run after the backup that was restored"
        state = launches.step(launch, "cancelled")
        await ledger.change(tx, launch.id, state=state, ended_at=now, detail=why)
        await audit.accepted(
            tx,
            at=now,
            caller=audit.SERVICE,
            action="launch.cancel",
            about=f"launch:{launch.id}",
            digest=launch.digest,
            detail=why,
        )
        cancelled += 1
    await audit.accepted(
        tx,
        at=now,
        caller=audit.SERVICE,
        action=_ACTION,
        about=f"backup:{done.id}",
        detail=f"{done.rows} rows, {done.blobs} blobs, {done.logs} logs, {cancelled} launches cancelled",
    )
    return replace(done, cancelled=cancelled)


async def _remove_files(service: Service) -> None:
    """What this restore, or the one before it, put there; without a row they are nobody's."""
    await service.blobs.sweep()
    for name in [name async for _, name in service.blobs.names()]:
        await service.blobs.remove(Digest(name))
    for launch_id in service.logs.sizes():
        service.logs.remove(launch_id)


def _mark(settings: Settings) -> None:
    folder = os.open(settings.api.state_folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        where = f"{_BLOBS}{settings.blobs.url}\n".encode()
        durable.overwrite(folder, RESTORE_MARKER, [b"a restore has begun here and did not end: run it again\n", where])
    finally:
        os.close(folder)


def _marked(settings: Settings) -> str:
    """Whose blobs are nobody's: the `blobs.url` that the restore began with."""
    with open(os.path.join(settings.api.state_folder, RESTORE_MARKER), encoding="utf-8") as file:
        return next((line.removeprefix(_BLOBS).rstrip("\n") for line in file if line.startswith(_BLOBS)), "")


def _unmark(settings: Settings) -> None:
    folder = os.open(settings.api.state_folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if restore_unfinished(settings):
            os.unlink(RESTORE_MARKER, dir_fd=folder)
            os.fsync(folder)
    finally:
        os.close(folder)

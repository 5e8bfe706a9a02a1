"""Write a backup while the service runs.

Promise: the rows are one snapshot; every blob and log that they name is in it as they say, hashed on its way, or there is
no backup. A blob never changes and is on disk before the row that names it, so it can be copied after the snapshot; one that
is gone by then belonged to a release that was retired meanwhile, and the backup is to be made again. Connections, variables
and XComs stay ciphertext, tokens stay hashes: the keys are not in it, unless that was asked for by its unsafe name.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from typing import IO, Any

from sqlalchemy import Table
from sqlalchemy.exc import SQLAlchemyError

from integrity.digests import Digest
from integrity.errors import DigestMismatchError, FetchError, NotFoundError, SettingsError
from submit_api import audit, keyfiles
from submit_api.backup_file import Head, Writer
from submit_api.registry import retention, rows
from submit_api.registry.database import Transaction
from submit_api.running import opened
from submit_api.service import Service
from submit_api.settings import Settings

PART_BYTES = 1024 * 1024
_IN_MEMORY_BYTES = 8 * PART_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """What was written."""

    id: str
    rows: int
    blobs: int
    logs: int
    bytes: int


@dataclass(slots=True)
class _Named:
    """What the rows name of the disk, gathered while they are written."""

    blobs: dict[str, int]
    logs: dict[str, int]
    rows: int = 0
    bytes: int = 0

    def note(self, table: str, row: dict[str, Any]) -> None:
        self.rows += 1
        if table == "releases" and row["retired_at"] is None:  # else its bytes are gone, or another release's
            self.blobs[row["digest"]] = row["size"]
        elif table == "launches" and row["log_held_bytes"]:
            self.logs[row["id"]] = row["log_held_bytes"]


async def backup(settings: Settings, file: IO[bytes], *, unsafe_with_keys: bool = False) -> Backup:
    """Write it whole, or raise: `FetchError` to try again, `DigestMismatchError` for damage, `SettingsError`, `OSError`."""
    async with opened(settings, migrating=False) as service:
        try:
            return await _write(service, file, unsafe_with_keys)
        except SQLAlchemyError as error:
            raise SettingsError(f"the database cannot be read: {type(error).__name__}") from None


async def _write(service: Service, file: IO[bytes], unsafe_with_keys: bool) -> Backup:
    head = Head(id=service.new_id(), revision=rows.newest(), made_at=service.now_us())
    async with service.database.read() as tx:
        await _require_newest(tx, head)
    async with service.database.write() as tx:
        what = "with the keys" if unsafe_with_keys else "without keys"
        await audit.accepted(
            tx, at=head.made_at, caller=audit.SERVICE, action="backup.create", about=f"backup:{head.id}", detail=what
        )
    writer = Writer(file, head)
    if unsafe_with_keys:
        for name, key in keyfiles.take(service.settings).items():
            writer.add(f"keys/{name}", key)
    named = _Named(blobs={}, logs={})
    async with service.database.read() as tx:
        await _require_newest(tx, head)
        for table in await rows.tables(tx):
            await _rows(tx, writer, table, named)
    for digest, size in sorted(named.blobs.items()):
        await _blob(service, writer, Digest.parse(digest), size, named)
    for launch_id, size in sorted(named.logs.items()):
        _log(service, writer, launch_id, size, named)
    writer.finish(service.keys.signing)
    return Backup(id=head.id, rows=named.rows, blobs=len(named.blobs), logs=len(named.logs), bytes=named.bytes)


async def _require_newest(tx: Transaction, head: Head) -> None:
    found = await rows.revision(tx)
    if found != head.revision:
        raise SettingsError(
            f"the tables are of revision {found}, this dagseal's are of {head.revision}: start its service once, which "
            "brings them up to date"
        )


async def _rows(tx: Transaction, writer: Writer, table: Table, named: _Named) -> None:
    number, held = 0, bytearray()
    async for row in rows.dumped(tx, table):
        named.note(table.name, row)
        held += json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        if len(held) >= PART_BYTES:
            writer.add(f"rows/{table.name}/{number}", bytes(held))
            number, held = number + 1, bytearray()
    if held:
        writer.add(f"rows/{table.name}/{number}", bytes(held))


async def _blob(service: Service, writer: Writer, digest: Digest, size: int, named: _Named) -> None:
    # Whole before its member begins, which cannot be taken back: a bucket may stop in the middle.
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES, dir=service.settings.blobs_folder) as file:
        try:
            async for piece in service.blobs.read(digest, 0, size - 1):
                file.write(piece)
        except NotFoundError as error:
            async with service.database.read() as tx:
                if await retention.unneeded(tx, [str(digest)]):
                    raise FetchError(
                        f"the release with {digest} was retired meanwhile: make the backup again"
                    ) from None
            raise DigestMismatchError(
                f"{error}, which a release names: see 'dagseal fsck', push its bytes again"
            ) from None
        file.seek(0)
        digest.require(writer.add_file(f"blobs/{digest.hex}", file, size), "the stored blob")
    named.bytes += size


def _log(service: Service, writer: Writer, launch_id: str, size: int, named: _Named) -> None:
    try:
        with open(service.logs.open(launch_id), "rb") as file:
            writer.add_file(f"logs/{launch_id}", file, size)
    except (FileNotFoundError, EOFError):
        raise DigestMismatchError(
            f"the log of launch {launch_id} is shorter than on record: see 'dagseal fsck'"
        ) from None
    named.bytes += size

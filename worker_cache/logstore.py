"""The log as an agent keeps it, in the folder `log` of its cache:

    leaves       the entries, each with its length before it (two bytes, big-endian), appended
    checkpoint   the signed note over them, replaced in one step when they are on disk
    evidence/    fork-<size>-<hex>.known and .seen: two checkpoints that contradict each other; never removed by us

Promise: what `load` gives was recomputed from the leaves, and is what the last `keep` that returned had kept, or what the next
one was about to. Entries after those that the checkpoint covers are of a `keep` that did not end: they are cut off. Anything
else that does not fit is damage and refused, since what is forgotten here could be rolled back.
"""

from __future__ import annotations

import contextlib
import hashlib
import os

from integrity import durable, tiles
from integrity.checkpoints import MAX_BYTES, Checkpoint
from integrity.errors import MalformedError, SecurityError, SettingsError
from integrity.keys import VerifyKey
from integrity.notes import Note
from worker_cache import logrules
from worker_cache.logrules import Followed, Update

LEAVES, CHECKPOINT, EVIDENCE = "leaves", "checkpoint", "evidence"
KNOWN, SEEN = ".known", ".seen"
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | _FILE


class LogStore:
    """The folder, open, by its only writer. Writes wait for the disk."""

    def __init__(self, folder: int) -> None:
        """`folder` is closed with this."""
        self._folder = folder
        durable.sweep(folder)
        durable.make_folder(folder, EVIDENCE)
        self._evidence = os.open(EVIDENCE, _FOLDER, dir_fd=folder)
        durable.sweep(self._evidence)
        self._leaves = os.open(LEAVES, os.O_RDWR | os.O_CREAT | os.O_APPEND | _FILE, 0o600, dir_fd=folder)
        os.fsync(folder)
        self._size = 0

    def close(self) -> None:
        for fd in (self._leaves, self._evidence, self._folder):
            os.close(fd)

    def load(self, pinned: VerifyKey) -> Followed:
        """What is known of the log; nothing, before the first contact. Raises `SettingsError` for what cannot be used."""
        try:
            found, size = read(self._folder, pinned)
        except SecurityError as error:
            raise SettingsError(
                f"the log that this agent has kept cannot be used: {error}. If api_key is right, stop the agent and run "
                "'dagseal fsck --cache DIR --repair': the next start follows the log anew, and trusts what it is shown then"
            ) from None
        if os.fstat(self._leaves).st_size != size:
            os.ftruncate(self._leaves, size)
        self._size = size
        return found

    def keep(self, update: Update) -> None:
        """Entries first, then what signs them. After an `OSError` only `load` tells what is kept."""
        newest = update.followed.newest
        if newest is None:
            raise RuntimeError("an update has a checkpoint")
        data = tiles.bundle(update.entries)
        if data:
            durable.append(self._leaves, data, size=self._size)
        durable.overwrite(self._folder, CHECKPOINT, [newest.note])
        self._size += len(data)

    def keep_evidence(self, known: bytes, seen: bytes) -> str:
        """Where both notes are now. The same two are kept once."""
        size = Checkpoint.from_text(Note.from_bytes(seen).text).size
        name = f"fork-{size}-{hashlib.sha256(known + seen).hexdigest()[:16]}"
        for suffix, note in ((KNOWN, known), (SEEN, seen)):
            with contextlib.suppress(FileExistsError):
                durable.create_exclusive(self._evidence, name + suffix, note)
        return f"log/{EVIDENCE}/{name}"

    def fork(self) -> str | None:
        """The evidence of a fork that nobody has decided about."""
        found = sorted(name for name in os.listdir(self._evidence) if name.endswith(SEEN))
        return f"log/{EVIDENCE}/{found[0].removesuffix(SEEN)}" if found else None


def read(folder: int, pinned: VerifyKey | None) -> tuple[Followed, int]:
    """What is kept in this folder, and how many bytes of `leaves` it is. Raises `SecurityError` for damage. Without a pinned
    key it is only asked whether all of it fits together."""
    # In this order: with a writer at work there may be more leaves than the checkpoint covers, never fewer.
    note, data = _bytes_of(folder, CHECKPOINT, MAX_BYTES + 1), _bytes_of(folder, LEAVES, None)
    if note is None:
        return Followed(), 0
    found = logrules.announced(Followed(), note, pinned=pinned)
    entries, size = _first(data or b"", found.checkpoint.size)
    return logrules.grown(Followed(), found, entries, pinned=pinned).followed, size


def _first(data: bytes, count: int) -> tuple[list[bytes], int]:
    found: list[bytes] = []
    at = 0
    for _ in range(count):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if end > len(data) or end == at + 2:
            raise MalformedError(f"leaf {len(found)} of {count} is missing")
        found.append(data[at + 2 : end])
        at = end
    return found, at


def _bytes_of(folder: int, name: str, limit: int | None) -> bytes | None:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | _FILE, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MalformedError(f"{name} cannot be read: {error.strerror}") from None
    with open(fd, "rb") as file:
        return file.read(-1 if limit is None else limit)

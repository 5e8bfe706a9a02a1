"""The log as an agent keeps it, in the folder `log` of its cache:

    leaves       the entries, each with its length before it (two bytes, big-endian), appended; then a length of nothing, and in
                 the same way the signed note over all of them: the seal, which the next entries take the place of
    checkpoint   a signed note over the first of them, replaced in one step
    evidence/    fork-<size>-<hex>.known and .seen: two checkpoints that contradict each other; never removed by us

Promise: what `load` gives was recomputed from the leaves, and is what the last `keep` that returned had kept, or what the next
one was about to. `keep` waits for one write, of the entries and their seal; `settle` brings `checkpoint` up to them, which is
done before anything of that seal is written over. So what a seal that does not hold leaves after the entries of the checkpoint
is of a `keep` that did not end, and is cut off. Anything else that does not fit is damage and refused, since what is forgotten
here could be rolled back.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading

from integrity.errors import MalformedError, SecurityError, SettingsError
from vocabulary import durable, tiles
from vocabulary.checkpoints import MAX_BYTES, Checkpoint
from vocabulary.keys import VerifyKey
from vocabulary.notes import Note
from worker_cache import logrules
from worker_cache.logrules import Followed, Update

LEAVES, CHECKPOINT, EVIDENCE = "leaves", "checkpoint", "evidence"
KNOWN, SEEN = ".known", ".seen"
_SEAL = b"\0\0"  # where no entry's length can be
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | _FILE


class LogStore:
    """The folder, open, by its only writer. Writes wait for the disk."""

    def __init__(self, folder: int) -> None:
        """`folder` is closed with this."""
        self._folder = folder
        durable.sweep(folder)
        self._leaves = os.open(LEAVES, os.O_RDWR | os.O_CREAT | os.O_APPEND | _FILE, 0o600, dir_fd=folder)
        durable.make_folder(folder, EVIDENCE)  # syncs the name of the other, too
        self._evidence = os.open(EVIDENCE, _FOLDER, dir_fd=folder)
        durable.sweep(self._evidence)
        self._size = 0
        self._unsettled: bytes | None = None  # a note that only seals the leaves
        self._busy = threading.Lock()

    def close(self) -> None:
        with self._busy:
            self._unsettled = None
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
        with self._busy:
            self._size = size
            if found.newest is not None and found.newest.note != _bytes_of(self._folder, CHECKPOINT, MAX_BYTES):
                self._unsettled = found.newest.note
            self._settle()
            if os.fstat(self._leaves).st_size != size:
                os.ftruncate(self._leaves, size)
        return found

    def keep(self, update: Update) -> None:
        """On disk when it returns. After an `OSError` only `load` tells what is kept."""
        newest = update.followed.newest
        if newest is None:
            raise RuntimeError("an update has a checkpoint")
        with self._busy:
            if not update.entries:
                self._unsettled = newest.note
                self._settle()
                return
            self._settle()
            data = tiles.bundle(update.entries)
            seal = _SEAL + tiles.bundle([newest.note])
            durable.append(self._leaves, data + seal, size=self._size)
            self._size += len(data)
            self._unsettled = newest.note

    def settle(self) -> None:
        """What `keep` had no time for; may be called in another thread. When it fails the next `keep` does it first."""
        with self._busy:
            self._settle()

    def _settle(self) -> None:
        if self._unsettled is not None:
            durable.overwrite(self._folder, CHECKPOINT, [self._unsettled])
            self._unsettled = None

    def keep_evidence(self, known: bytes, seen: bytes) -> str:
        """Where both notes are now. The same two are kept once."""
        name = f"fork-{_size_of(seen)}-{hashlib.sha256(known + seen).hexdigest()[:16]}"
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
    note, data = _bytes_of(folder, CHECKPOINT, MAX_BYTES + 1), _bytes_of(folder, LEAVES, None) or b""
    entries, ends, seal = _parted(data)
    size = _size_of(note) if note is not None else 0
    if seal is not None and len(entries) > size and _holds(seal, entries):
        return _followed(seal, entries, pinned), ends[-1]
    if note is None:
        return Followed(), 0
    if size > len(entries):
        raise MalformedError(f"leaf {len(entries)} of {size} is missing")
    return _followed(note, entries[:size], pinned), ends[size - 1]


def _followed(note: bytes, entries: list[bytes], pinned: VerifyKey | None) -> Followed:
    found = logrules.announced(Followed(), note, pinned=pinned)
    return logrules.grown(Followed(), found, entries, pinned=pinned).followed


def _holds(seal: bytes, entries: list[bytes]) -> bool:
    """Whether it is the seal of exactly these, whosever it is."""
    try:
        _followed(seal, entries, None)
    except SecurityError:
        return False
    return True


def _size_of(note: bytes) -> int:
    """As it says; verified by nobody yet."""
    return Checkpoint.from_text(Note.from_bytes(note).text).size


def _parted(data: bytes) -> tuple[list[bytes], list[int], bytes | None]:
    """The entries that are whole, where each ends, and the seal where there is one."""
    entries: list[bytes] = []
    ends: list[int] = []
    at = 0
    while at + 2 <= len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if end > len(data):
            break
        if end == at + 2:
            note = data[end + 2 :]
            return entries, ends, note if data[end : end + 2] == len(note).to_bytes(2, "big") else None
        entries.append(data[at + 2 : end])
        ends.append(end)
        at = end
    return entries, ends, None


def _bytes_of(folder: int, name: str, limit: int | None) -> bytes | None:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | _FILE, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MalformedError(f"{name} cannot be read: {error.strerror}") from None
    with open(fd, "rb") as file:
        return file.read(-1 if limit is None else limit)

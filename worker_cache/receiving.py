"""Bytes that arrive for the cache: hashed as they are written, named only when they are the ones that were asked for.

Two kinds of unfinished file: `.tmp-*`, gone when its receiver is closed, and `<hex>.part`, which can be gone on with after the
answer was cut. What is kept in a part is believed in nothing: it is hashed anew from the disk before a byte is added.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable

from integrity.digests import Digest
from vocabulary import durable

PART = ".part"
KEPT_BYTES = 64 * 1024  # a shorter part is sooner fetched than kept
# Hashing and writing this much takes less time than a hop to a thread and back.
INLINE_BYTES = 64 * 1024
_READ_BYTES = 1024 * 1024

Publish = Callable[[str, int, Digest], None]


class Receiver:
    """One unfinished file. Blocks on the disk."""

    def __init__(self, fd: int, name: str, *, incoming: int, publish: Publish) -> None:
        self._fd = fd
        self._name = name
        self._incoming = incoming
        self._publish = publish
        self._hasher = hashlib.sha512()
        self._named = False
        # Who is cancelled leaves a thread running: the descriptor is closed only when that is done with it.
        self._busy = threading.Lock()
        self.size = 0

    @property
    def on_disk(self) -> int:
        return os.fstat(self._fd).st_size

    def rehash(self, most: int) -> None:
        """Go on with what is on disk, if it can be the beginning of `most` bytes; else from nothing."""
        with self._busy:
            if not 0 < self.on_disk < most:
                self._restart()
                return
            self._hasher, self.size = hashlib.sha512(), 0
            while chunk := os.pread(self._fd, _READ_BYTES, self.size):
                self._hasher.update(chunk)
                self.size += len(chunk)
            os.lseek(self._fd, self.size, os.SEEK_SET)

    def restart(self) -> None:
        """Forget everything that came."""
        with self._busy:
            self._restart()

    def _restart(self) -> None:
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hasher, self.size = hashlib.sha512(), 0

    def write(self, chunk: bytes) -> None:
        with self._busy:
            durable.write_all(self._fd, [chunk])
            self._hasher.update(chunk)
            self.size += len(chunk)

    def finish(self, digest: Digest) -> None:
        """Raises `DigestMismatchError`, having named nothing."""
        digest.require(Digest(self._hasher.hexdigest()), "what the server sent")
        self._publish(self._name, self._fd, digest)
        self._named = True

    def close(self, *, keep: bool = False) -> int:
        """Always to be called; how many bytes stay as a part, to go on with. Removes the rest."""
        with self._busy:
            os.close(self._fd)
            self._fd = -1
        if self._named:
            return 0
        if keep and self._name.endswith(PART) and self.size >= KEPT_BYTES:
            return self.size
        durable.discard_temporary(self._incoming, self._name)
        return 0

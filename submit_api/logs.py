"""Task logs on disk: one file per launch. How much of it counts is in the database, written after the bytes are synced.

So after a crash a file may be longer than its launch says, never shorter; the next append writes over the excess.
"""

from __future__ import annotations

import hashlib
import os

from integrity.digests import Digest

_READ_BYTES = 1024 * 1024


class LogStore:
    """Open for the life of the process. Callers serialise appends to one launch."""

    def __init__(self, folder: str) -> None:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._fd)

    def append(self, launch_id: str, offset: int, data: bytes) -> None:
        """Put `data` at `offset`; it is on disk when this returns."""
        fd = os.open(_name(launch_id), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
        try:
            view = memoryview(data)
            while view:
                written = os.pwrite(fd, view, offset)
                view, offset = view[written:], offset + written
            os.fdatasync(fd)
        finally:
            os.close(fd)
        os.fsync(self._fd)

    def read(self, launch_id: str, offset: int, count: int) -> bytes:
        """At most `count` bytes from `offset`; no file is an empty log."""
        try:
            fd = os.open(_name(launch_id), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        except FileNotFoundError:
            return b""
        try:
            return os.pread(fd, count, offset)
        finally:
            os.close(fd)

    def open(self, launch_id: str) -> int:
        """A read descriptor of the whole file. Raises `FileNotFoundError`."""
        return os.open(_name(launch_id), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)

    def digest(self, launch_id: str, held_bytes: int) -> Digest:
        """Of the first `held_bytes`."""
        hashed, offset = hashlib.sha512(), 0
        while offset < held_bytes:
            chunk = self.read(launch_id, offset, min(_READ_BYTES, held_bytes - offset))
            if not chunk:
                break
            hashed.update(chunk)
            offset += len(chunk)
        return Digest(hashed.hexdigest())

    def remove(self, launch_id: str) -> None:
        """A log that no launch has."""
        os.unlink(_name(launch_id), dir_fd=self._fd)

    def sizes(self) -> dict[str, int]:
        """The size of every file, by launch id; a file with another name is listed under that name."""
        return {
            name.removesuffix(".log"): os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_size
            for name in sorted(os.listdir(self._fd))
        }


def _name(launch_id: str) -> str:
    return f"{launch_id}.log"

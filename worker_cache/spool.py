"""What the launcher said and the API has not acknowledged yet: logs and signed results, on disk, per launch.

    <launch id>.log     the log as it came, appended
    <launch id>.result  the result's envelope: there only whole, after the log is on disk
    rejected/           results that the API refused for good, kept as evidence

Promise: a result that `keep_result` took survives a crash of this process or host until the API acknowledged it. A log
without a result belongs to a task that died with its agent; it is delivered too, and then removed.
"""

from __future__ import annotations

import os
import re

from vocabulary import durable
from vocabulary.claims import MAX_RESULT_BYTES
from worker_cache.store import open_private

REJECTED = "rejected"
_ENTRY = re.compile(r"([0-9a-f]{32})\.(log|result)")
_MAX_ENVELOPE_BYTES = MAX_RESULT_BYTES * 2


class Spool:
    """The folder, open. Writes are small and inline; only `keep_result` waits for the disk."""

    def __init__(self, path: str) -> None:
        self._root = open_private(path, create=True)
        durable.sweep(self._root)
        durable.make_folder(self._root, REJECTED)

    def close(self) -> None:
        os.close(self._root)

    def pending(self) -> list[str]:
        """The launches that something is kept of, oldest name first."""
        found = (_ENTRY.fullmatch(name) for name in os.listdir(self._root))
        return sorted({match[1] for match in found if match})

    def open_log(self, launch_id: str) -> int:
        """A descriptor to append to and to read from."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(f"{launch_id}.log", flags, 0o600, dir_fd=self._root)

    def keep_result(self, launch_id: str, envelope: bytes, *, log_fd: int) -> None:
        """Log first, then the result: a result on disk means that its log is whole."""
        os.fsync(log_fd)
        durable.publish(self._root, f"{launch_id}.result", [envelope])

    def result(self, launch_id: str) -> bytes | None:
        """The envelope, or None where the task died with its agent."""
        try:
            fd = os.open(f"{launch_id}.result", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._root)
        except FileNotFoundError:
            return None
        try:
            return os.read(fd, _MAX_ENVELOPE_BYTES)
        finally:
            os.close(fd)

    def forget(self, launch_id: str) -> None:
        """The API has everything. The result goes first: a log alone never claims anything."""
        for name in (f"{launch_id}.result", f"{launch_id}.log"):
            durable.discard_temporary(self._root, name)

    def reject(self, launch_id: str) -> None:
        """The API will not have it: keep what was signed out of the way, drop the log."""
        try:
            os.rename(
                f"{launch_id}.result", f"{REJECTED}/{launch_id}.result", src_dir_fd=self._root, dst_dir_fd=self._root
            )
        except FileNotFoundError:
            pass
        durable.discard_temporary(self._root, f"{launch_id}.log")

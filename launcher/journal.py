"""The launcher's own record: every decision, one line each, chained by hash, on disk before it takes effect.

A line is canonical JSON with `seq`, `at` (microseconds since 1970), `prev` and what happened; `prev` is the SHA-512 of the
line before, without its newline. Removing, changing or reordering a line breaks the chain at that place; that whole lines
were taken off the end shows only beside what others hold (the results and claims that they record). A crash can only leave
an unfinished last line, which was not acknowledged: it is cut off at the next start.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable
from typing import Any

from integrity import canonical, durable
from integrity.digests import Digest
from integrity.errors import MalformedError, SettingsError

_FIRST = "0" * 128
MAX_LINE_BYTES = 2 * 1024 * 1024  # more than the names of the largest grant; a longer line could never be read again


class Journal:
    """Appends; the only writer, by a lock (flock(2)). `now_us` gives microseconds since 1970. Raises `SettingsError` when
    another process holds the lock, `MalformedError` when the chain is broken."""

    def __init__(self, dir_fd: int, name: str, *, now_us: Callable[[], int]) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(name, flags, 0o600, dir_fd=dir_fd)
        self._now_us = now_us
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fsync(dir_fd)
            self._seq, self._prev = self._resume()
        except BlockingIOError:
            os.close(self._fd)
            raise SettingsError(f"another launcher is writing {name}: stop it first") from None
        except BaseException:
            os.close(self._fd)
            raise

    def _resume(self) -> tuple[int, str]:
        data = _read_all(self._fd)
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) != len(data):
            os.ftruncate(self._fd, len(whole))
            os.fsync(self._fd)
        last = _FIRST
        seq = 0
        for seq, last in verify(whole.split(b"\n")[:-1]):  # noqa: B007 - the last pair is what counts
            pass
        return seq, last

    def write(self, event: str, **fields: Any) -> None:
        """Record, and return when it is on disk. Raises `OSError` or `MalformedError`: then the event must not happen."""
        line = canonical.dump(
            {**fields, "event": event, "seq": self._seq + 1, "at": self._now_us(), "prev": self._prev}
        )
        if len(line) > MAX_LINE_BYTES:
            raise MalformedError(f"journal: a line of {len(line)} bytes is over the limit of {MAX_LINE_BYTES}")
        durable.append(self._fd, line + b"\n")
        self._seq += 1
        self._prev = Digest.of(line).hex

    def close(self) -> None:
        os.close(self._fd)


def verify(lines: Iterable[bytes]) -> Iterable[tuple[int, str]]:
    """Yield (seq, hash) of each line in turn. Raises `MalformedError` at the first that does not follow the one before."""
    expected_prev = _FIRST
    for number, line in enumerate(lines, start=1):
        entry = canonical.load(line, max_bytes=MAX_LINE_BYTES)
        if not isinstance(entry, dict) or entry.get("seq") != number or entry.get("prev") != expected_prev:
            raise MalformedError(f"journal: line {number} does not follow the line before it")
        expected_prev = Digest.of(line).hex
        yield number, expected_prev


def _read_all(fd: int) -> bytes:
    chunks = []
    offset = 0
    while chunk := os.pread(fd, 1 << 20, offset):
        chunks.append(chunk)
        offset += len(chunk)
    return b"".join(chunks)

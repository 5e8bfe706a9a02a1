"""What a task writes: its stdout, its stderr and its structured log, a pipe each, made one stream of records.

Promise: the stream is capped and says where it was cut, its digest covers every byte that is passed on, and memory is bounded.
Over the rate the pipes are left alone for a while: the task waits in its own writes, so nothing is lost and no other task
pays for it. What is over the size is read at the same rate and dropped. `end` waits for neither.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from integrity.digests import Digest
from vocabulary import logrecords

_CUT = "\n[dagseal] the log is cut here: it is over the limit of %d bytes\n"
SOURCES = ("stdout", "stderr", "log")
_READ_BYTES = 64 * 1024
_READ_COST_BYTES = 4096  # at least: a task that writes byte by byte keeps us busier than its bytes tell
_LINE_CHARS = 64 * 1024
_PIECE_BYTES = 256 * 1024
_BURST_SECONDS = 4
_LAST_READS = 256  # a pipe has so many buffers at the most (1 MiB, pipe(7)): somebody may be writing still


class Allowance:
    """A rate in bytes per second, of which four seconds' worth may be taken at once. `now` is in seconds."""

    def __init__(self, per_second: int, now: float) -> None:
        self._per_second = per_second
        self._left = self._most = float(per_second * _BURST_SECONDS)
        self._at = now

    def spend(self, count: int, now: float) -> float:
        """Take so many; the seconds to wait before taking more."""
        self._left = min(self._left + (now - self._at) * self._per_second, self._most) - count
        self._at = now
        return max(-self._left / self._per_second, 0.0)


@dataclass(slots=True, kw_only=True)
class _Pipe:
    fd: int
    source: str
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("backslashreplace")
    )
    line: str = ""  # begun and not ended


class TaskLog:
    """`fds` are the read ends for `SOURCES`; they are closed by `end`."""

    def __init__(self, fds: Sequence[int], *, max_bytes: int, bytes_per_second: int, now_us: Callable[[], int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._open = [_Pipe(fd=fd, source=source) for fd, source in zip(fds, SOURCES, strict=True)]
        self._max = max_bytes
        self._allowance = Allowance(bytes_per_second, self._loop.time())
        self._now_us = now_us
        self._hasher = hashlib.sha512()
        self.bytes = 0
        self.truncated = False
        self._pending = bytearray()
        self._news = asyncio.Event()
        self._pause: asyncio.TimerHandle | None = None
        for pipe in self._open:
            os.set_blocking(pipe.fd, False)
        self._listen()

    def _listen(self) -> None:
        for pipe in self._open:
            self._loop.add_reader(pipe.fd, self._readable, pipe)

    def _readable(self, pipe: _Pipe) -> None:
        with contextlib.suppress(BlockingIOError):
            read = self._read(pipe)
            seconds = self._allowance.spend(max(read, _READ_COST_BYTES), self._loop.time())
            if seconds and self._open:
                for one in self._open:
                    self._loop.remove_reader(one.fd)
                self._pause = self._loop.call_later(seconds, self._listen)

    def _read(self, pipe: _Pipe) -> int:
        """Keep what is there; the number of bytes. At its end the pipe is closed. Raises `BlockingIOError`."""
        data = os.read(pipe.fd, _READ_BYTES)
        self._keep(pipe, data)
        if not data:
            self._close(pipe)
        return len(data)

    def _close(self, pipe: _Pipe) -> None:
        self._loop.remove_reader(pipe.fd)
        os.close(pipe.fd)
        self._open.remove(pipe)
        self._news.set()

    def _keep(self, pipe: _Pipe, data: bytes) -> None:
        """Whole lines become a record; the last one when it is too long to wait for its end, or at the pipe's end."""
        if self.truncated:
            return
        whole, newline, pipe.line = (pipe.line + pipe.decoder.decode(data, final=not data)).rpartition("\n")
        whole += newline
        if not data or len(pipe.line) > _LINE_CHARS:
            whole, pipe.line = whole + pipe.line, ""
        if not whole:
            return
        at, left = self._now_us(), self._max - self.bytes
        record = logrecords.encode(pipe.source, at, whole)
        if len(record) > left:
            self.truncated = True
            while whole and len(record) > left:
                whole = whole[: len(whole) * left // len(record)]
                record = logrecords.encode(pipe.source, at, whole)
            record = (record if whole else b"") + logrecords.encode("launcher", at, _CUT % self._max)
        self._hasher.update(record)
        self.bytes += len(record)
        self._pending += record
        self._news.set()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The stream so far, then what comes, until every writer is gone."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._pending:
                piece = bytes(self._pending[:_PIECE_BYTES])
                del self._pending[: len(piece)]
                yield piece
            if not self._open:
                return

    @property
    def digest(self) -> Digest:
        return Digest(self._hasher.hexdigest())

    def end(self) -> None:
        """Read what is left, once every process of the task is dead. It may have handed its end of a pipe to somebody else:
        take what is there, wait for nothing."""
        if self._pause is not None:
            self._pause.cancel()
        for pipe in list(self._open):
            with contextlib.suppress(BlockingIOError):
                for _ in range(_LAST_READS):
                    if not self._read(pipe):
                        break
            if pipe in self._open:
                self._keep(pipe, b"")
                self._close(pipe)

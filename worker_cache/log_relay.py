"""From the launcher's log frames to those who are to have them: through a file, each at its own offset, so that nothing is
doubled or lost.

Promise: memory is bounded whatever a task prints, however long the API is away and however slowly a supervisor reads: none of
them is waited for when the launcher's next frame is taken. An append at the API is repeated at the same offset until the API
says that it has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os

from integrity.errors import FetchError, MalformedError
from vocabulary import durable
from worker_cache.client import Client

CHUNK_BYTES = 256 * 1024
GATHER_SECONDS = 0.2  # what a task prints in so short a time is one request


class KeptLog:
    """One launch's log: one appends, and whoever reads does so at its own pace. The descriptor is the caller's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size = os.fstat(fd).st_size
        self._more = asyncio.Event()
        self._closed = False

    def append(self, data: bytes) -> None:
        """Keep what the task printed; an inline write of at most one frame."""
        durable.write_all(self._fd, [data])
        self.size += len(data)
        self._more.set()

    def close(self) -> None:
        """Nothing will be appended any more: whoever has read all is done."""
        self._closed = True
        self._more.set()

    async def goes_on(self, offset: int) -> bool:
        """Whether there is more from `offset` on, waiting for it if needed; False when the log is closed and all was read."""
        await self._has(offset, 1)
        return self.size > offset

    async def gather(self, offset: int) -> None:
        """Until there is a whole chunk from `offset` on, or the log is closed, but for no more than a moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GATHER_SECONDS):
                await self._has(offset, CHUNK_BYTES)

    async def _has(self, offset: int, count: int) -> None:
        while self.size - offset < count and not self._closed:
            self._more.clear()
            await self._more.wait()

    def reader(self) -> LogReader:
        return LogReader(self, os.dup(self._fd))


class LogReader:
    """From the beginning to the end, with a descriptor of its own: it may outlive the one who writes. `close` when done."""

    def __init__(self, log: KeptLog, fd: int) -> None:
        self._log = log
        self._fd = fd
        self.offset = 0

    def close(self) -> None:
        os.close(self._fd)

    async def piece(self) -> bytes:
        """What there is at `offset`, which the caller moves on; none at the end."""
        return os.pread(self._fd, CHUNK_BYTES, self.offset) if await self._log.goes_on(self.offset) else b""


class LogRelay:
    """What is kept, on its way to the API. `close` when done."""

    def __init__(self, api: Client, launch_id: str, log: KeptLog) -> None:
        self._api = api
        self._launch_id = launch_id
        self._log = log
        self._reader = log.reader()

    def close(self) -> None:
        self._reader.close()

    async def ship_next(self) -> bool:
        """Send one piece, waiting for it if needed; False when the log is closed and all is sent.

        Raises `FetchError` when the API did not take it: call again, it goes on at what the API holds.
        """
        offset = self._reader.offset
        if not await self._log.goes_on(offset):
            return False
        await self._log.gather(offset)
        data = await self._reader.piece()
        held = await self._api.append_log(self._launch_id, data, offset=offset)
        if held > self._log.size:
            raise MalformedError(f"the server says that it holds {held} bytes of log, there are {self._log.size}")
        self._reader.offset = held
        if held <= offset:
            raise FetchError(
                f"the server holds {held} bytes of log after {offset + len(data)} were sent: sending again"
            )
        return True

"""From the launcher's log frames to the API: through a file, at an offset, so that nothing is doubled or lost.

Promise: memory is bounded whatever a task prints and however long the API is away; an append is repeated at the same
offset until the API says that it has it.
"""

from __future__ import annotations

import asyncio
import os

from integrity import durable
from integrity.errors import FetchError, MalformedError
from worker_cache.client import Client

CHUNK_BYTES = 256 * 1024


class LogRelay:
    """One launch's log. `append` takes, `ship` sends what was taken, in whatever pieces are ready."""

    def __init__(self, api: Client, launch_id: str, fd: int) -> None:
        self._api = api
        self._launch_id = launch_id
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._sent = 0
        self._more = asyncio.Event()
        self._closed = False

    def append(self, data: bytes) -> None:
        """Keep what the task printed; an inline write of at most one frame."""
        durable.write_all(self._fd, [data])
        self._size += len(data)
        self._more.set()

    def close(self) -> None:
        """Nothing will be appended any more: `ship_all` may return."""
        self._closed = True
        self._more.set()

    async def ship_next(self) -> bool:
        """Send one piece, waiting for it if needed; False when the log is closed and all is sent.

        Raises `FetchError` when the API did not take it: call again, it goes on at what the API holds.
        """
        while self._sent >= self._size:
            if self._closed:
                return False
            self._more.clear()
            await self._more.wait()
        offset = self._sent
        data = os.pread(self._fd, CHUNK_BYTES, offset)
        held = await self._api.append_log(self._launch_id, data, offset=offset)
        if held > self._size:
            raise MalformedError(f"the server says that it holds {held} bytes of log, there are {self._size}")
        self._sent = held
        if held <= offset:
            raise FetchError(
                f"the server holds {held} bytes of log after {offset + len(data)} were sent: sending again"
            )
        return True

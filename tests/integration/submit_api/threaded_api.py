"""An `Api` in a thread with a loop of its own, for clients that block: they reach it over loopback like anybody else."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from api_rig import Api

T = TypeVar("T")


class Threaded:
    def __init__(self, api: Api, loop: asyncio.AbstractEventLoop) -> None:
        self.api, self._loop = api, loop

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something with the API in its own loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)


@contextmanager
def threaded(**sections: dict[str, Any]) -> Iterator[Threaded]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        with tempfile.TemporaryDirectory(prefix="dagseal-") as folder:

            async def start() -> Api:
                return await Api(folder, **sections).__aenter__()

            running = Threaded(asyncio.run_coroutine_threadsafe(start(), loop).result(60), loop)
            try:
                yield running
            finally:
                running.wait(running.api.__aexit__())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

"""Who fetches ahead lets those pass for whom a launch waits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Job:
    """A fetch under way. `hurry` is set from when a launch waits for it."""

    def __init__(self) -> None:
        self.hurry = asyncio.Event()


class Urgency:
    """For one event loop."""

    def __init__(self) -> None:
        self._waiting = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    @contextmanager
    def waiting(self, job: Job) -> Iterator[None]:
        """While a launch waits for this job."""
        job.hurry.set()
        self._waiting += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._quiet.set()

    async def let_pass(self, job: Job) -> None:
        """Returns when no launch waits, or one does for this very job."""
        while not (self._quiet.is_set() or job.hurry.is_set()):
            either = [asyncio.ensure_future(event.wait()) for event in (self._quiet, job.hurry)]
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in either:
                    one.cancel()

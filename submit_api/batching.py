"""Do together what is asked for at the same time.

Promise: everything that is added is given to `run` once, in order, and gets the outcome that `run` says of it. A batch is
what arrived while the one before it was being done, so nobody waits for company. Who is cancelled before its batch begins
is taken out of it; afterwards it leaves only when the batch has ended, as what it owns may be in use.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Run = Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Waiting(Generic[T, R]):
    what: T
    done: asyncio.Future[R]


class Batches(Generic[T, R]):
    """For the life of the process; in one event loop."""

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._waiting: deque[_Waiting[T, R]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def add(self, what: T, run: Run[T, R]) -> R:
        """Raises the outcome that is an exception."""
        here: _Waiting[T, R] = _Waiting(what=what, done=asyncio.get_running_loop().create_future())
        self._waiting.append(here)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work(run))
        try:
            return await asyncio.shield(here.done)
        except asyncio.CancelledError:
            if here in self._waiting:
                self._waiting.remove(here)
            else:
                await asyncio.wait([here.done])
                if not here.done.cancelled():
                    here.done.exception()  # nobody else will look at it
            raise

    async def _work(self, run: Run[T, R]) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            try:
                outcomes = await run([here.what for here in batch])
            except Exception as error:
                outcomes = [error] * len(batch)
            except asyncio.CancelledError:  # the loop is being closed
                for here in batch:
                    here.done.cancel()
                raise
            for here, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Exception):
                    here.done.set_exception(outcome)
                else:
                    here.done.set_result(outcome)

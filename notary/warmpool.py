"""The pool: for each kind of task a warm process, and spares that it has forked already and that wait for their job.

A request takes a spare, which is dropped, confined and attached long before, and a new one is forked behind it. A warm process
is retired when it was idle, after so many tasks, or when the installed packages changed; its running tasks end first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from integrity.errors import DagsealError, FetchError
from launcher.kinds import Kind
from notary.taskprocess import TaskProcess
from notary.warmprocess import WarmProcess


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRules:
    """How many and how long."""

    spares: int
    max_tasks: int
    idle_seconds: float


@dataclass(slots=True)
class _Place:
    """What there is of one kind."""

    starting: asyncio.Lock = field(default_factory=asyncio.Lock)
    filling: asyncio.Task[None] | None = None
    renewing: asyncio.Task[None] | None = None
    warm: WarmProcess | None = None
    stamp: object = None
    spares: deque[TaskProcess] = field(default_factory=deque)


class WarmPool:
    """`stamp` changes when the installed packages do."""

    def __init__(
        self,
        *,
        rules: PoolRules,
        start: Callable[[Kind], Awaitable[WarmProcess]],
        fork: Callable[[WarmProcess], Awaitable[TaskProcess]],
        stamp: Callable[[], object],
    ) -> None:
        self._rules = rules
        self._start = start
        self._fork = fork
        self._stamp = stamp
        self._places: dict[Kind, _Place] = {}
        self._retired: list[WarmProcess] = []

    async def take(self, kind: Kind) -> TaskProcess:
        """A task process that waits for its job; for `give_back`. Raises `SettingsError` when no warm process can be started,
        `FetchError` or a `SecurityError` when no task can be forked."""
        try:
            return await self._take(kind)
        except FetchError:  # its warm process died or was stopped just now; the next one is new
            return await self._take(kind)

    async def _take(self, kind: Kind) -> TaskProcess:
        place = self._places.setdefault(kind, _Place())
        async with place.starting:
            warm = await self._ready(kind, place)
            warm.tasks += 1  # from here on it is not ended under us
        warm.used_at = asyncio.get_running_loop().time()
        try:
            while place.spares and place.spares[0].warm is warm:
                spare = place.spares.popleft()
                if spare.alive:
                    return spare
                await spare.end()
            return await self._fork(warm)
        except BaseException:
            warm.tasks -= 1
            raise
        finally:
            if not place.spares:
                self._refill(place)

    async def give_back(self, task: TaskProcess) -> None:
        """End a task process that was taken. While spares are left the new one is forked now: not beside the task that took it,
        which wants the processor itself."""
        try:
            await task.end()
        finally:
            task.warm.tasks -= 1
            self._refill(self._places[task.warm.kind])

    async def _ready(self, kind: Kind, place: _Place) -> WarmProcess:
        if place.warm is not None and (not place.warm.alive or place.stamp != self._stamp()):
            await self._retire(place)
        if place.warm is None:
            place.stamp = self._stamp()
            place.warm = await self._start(kind)
        return place.warm

    def _refill(self, place: _Place) -> None:
        if place.filling is None or place.filling.done():
            place.filling = asyncio.create_task(self._fill(place))

    async def _fill(self, place: _Place) -> None:
        with contextlib.suppress(DagsealError):  # the next request meets it, and says so
            await self._bury(place)
            while (warm := place.warm) is not None and warm.alive and len(place.spares) < self._rules.spares:
                spare = await self._fork(warm)
                if place.warm is not warm:  # retired meanwhile: its successor wants spares too
                    await spare.end()
                    continue
                place.spares.append(spare)
                if warm.forks >= self._rules.max_tasks and (place.renewing is None or place.renewing.done()):
                    place.renewing = asyncio.create_task(self._renew(place, warm))

    async def _renew(self, place: _Place, worn: WarmProcess) -> None:
        """Its successor is made before it goes, which takes seconds; meanwhile it forks as ever."""
        with contextlib.suppress(DagsealError):
            fresh = await self._start(worn.kind)
            if place.warm is not worn:
                await fresh.end()
                return
            await self._retire(place, fresh)
            self._refill(place)

    async def _bury(self, place: _Place) -> None:
        """Spares that died while they waited: another process of their user may have killed them."""
        dead = [spare for spare in place.spares if not spare.alive]
        place.spares = deque(spare for spare in place.spares if spare.alive)
        for spare in dead:
            await spare.end()

    async def _retire(self, place: _Place, successor: WarmProcess | None = None) -> None:
        warm, place.warm = place.warm, successor
        if warm is not None:
            self._retired.append(warm)
        spares, place.spares = place.spares, deque()
        for spare in spares:
            await spare.end()
        await self._end_retired()

    async def _end_retired(self) -> None:
        ended = [warm for warm in self._retired if not warm.tasks]
        self._retired = [warm for warm in self._retired if warm.tasks]
        for warm in ended:
            await warm.end()

    async def retire_idle(self) -> None:
        """Retire those that were not used for long, and end retired ones whose last task has ended."""
        now = asyncio.get_running_loop().time()
        for place in list(self._places.values()):
            warm = place.warm
            if warm is not None and not warm.tasks and now - warm.used_at > self._rules.idle_seconds:
                await self._retire(place)
        await self._end_retired()

    async def end(self) -> None:
        """End all; the tasks that were taken are ended before."""
        places = self._places.values()
        under_way = [task for place in places for task in (place.filling, place.renewing) if task is not None]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        for place in self._places.values():
            await self._retire(place)
        await self._end_retired()

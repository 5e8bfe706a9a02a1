"""What every launch of this agent shares: the API, the cache, the log, the spool, the launcher, time and chance."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import structlog

from worker_cache import backoff
from worker_cache.authors import Authors
from worker_cache.cache import Cache
from worker_cache.client import Client
from worker_cache.following import Follower
from worker_cache.keeping import Keeper
from worker_cache.launchers import Launcher
from worker_cache.spool import Spool


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """`stopping`: take nothing new. `cancelling`: end what runs."""

    api: Client
    cache: Cache
    follower: Follower
    authors: Authors
    keeper: Keeper
    spool: Spool
    launcher: Launcher
    worker: str
    queues: tuple[str, ...]
    heartbeat_seconds: float
    log_sync_seconds: float
    now: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    jitter: backoff.Jitter
    log: structlog.typing.FilteringBoundLogger
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    cancelling: asyncio.Event = field(default_factory=asyncio.Event)

    def delays(self) -> Iterator[float]:
        return backoff.delays(self.jitter)

    async def pause(self, seconds: float) -> bool:
        """Wait, but not once the agent is to stop; False when it is."""
        sleeping = asyncio.ensure_future(self.sleep(seconds))
        stopped = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait({sleeping, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            stopped.cancel()
        return not self.stopping.is_set()

"""The agent has what its queues will need before a launch asks, and says so to the server.

Promise: whatever the log makes active is fetched as soon as it is known, unless it lacks the author that this host asks for;
an entry that an earlier agent left counts only
after it was hashed. A report says what is true at its moment, by this process's own record; a server that is away misses
reports and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import structlog

from integrity.digests import Digest
from integrity.errors import DagsealError, FetchError
from vocabulary import holdings
from vocabulary.logview import LogView
from worker_cache.authors import Authors
from worker_cache.cache import Cache
from worker_cache.client import Client, Report
from worker_cache.following import Follower

MAX_NAMED = 100
MAX_ALARM_CHARS = 500


@dataclass(slots=True, kw_only=True)
class Keeper:
    """For one event loop. `report_seconds`: how long the server hears nothing at most."""

    cache: Cache
    api: Client
    authors: Authors
    worker: str
    queues: frozenset[str]
    report_seconds: float
    log: structlog.typing.FilteringBoundLogger
    _view: LogView = field(default_factory=LogView)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _to_tell: asyncio.Event = field(default_factory=asyncio.Event)

    def changed(self, view: LogView) -> None:
        """The log says more than before."""
        self._view = view
        self._changed.set()

    async def keep(self, delays: Callable[[], Iterator[float]]) -> None:
        """Until cancelled: fetch what is wanted, and again what could not be had."""
        waits = delays()
        while True:
            self._changed.clear()
            wanted = await asyncio.to_thread(self._view.wanted, self.queues, self.authors.permit)
            self.cache.want(wanted)
            refused = await self._have(wanted)
            self._to_tell.set()
            if not refused:
                waits = delays()
                await self._changed.wait()
                continue
            self.log.warning("not fetched ahead", blobs=len(refused), slug=refused[0].slug, error=str(refused[0]))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(next(waits)):
                    await self._changed.wait()

    async def _have(self, wanted: Mapping[Digest, int]) -> list[DagsealError]:
        """Why not all of it is there; empty when it is."""
        try:
            await self.cache.look_through(wanted)
            refused = list((await self.cache.prefetch(wanted.items())).values())
        except OSError as error:  # an agent whose folder cannot be listed now goes on, and tries again
            return [FetchError(f"the cache cannot be read: {error}")]
        if refused or not (left := wanted.keys() - self.cache.held(wanted)):
            return refused
        return [FetchError(f"{len(left)} of {len(wanted)} are on their way by another fetch")]

    async def report(self, follower: Follower) -> None:
        """Until cancelled: say what is held, when that changed and every so often."""
        told = ""
        while True:
            try:
                state = await self.api.report(self.worker, self.said(follower))
            except DagsealError as error:
                self.log.warning("not reported", slug=error.slug, error=str(error))
            else:
                if state != told:
                    self.log.info("reported", state=state)
                told = state
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.report_seconds):
                    await self._to_tell.wait()
            self._to_tell.clear()

    def said(self, follower: Follower) -> Report:
        """What is to be said now."""
        tree, wanted = follower.known.tree, follower.known.view.wanted(self.queues)
        held = self.cache.held(wanted)
        missing = sorted(wanted.keys() - held, key=str)
        damaged = sorted(self.cache.holdings().damaged, key=str)
        return Report(
            log_size=tree.size,
            log_root=tree.root,
            held_root=holdings.root(held),
            missing=missing[:MAX_NAMED],
            missing_count=len(missing),
            damaged=damaged[:MAX_NAMED],
            alarm=follower.alarm[:MAX_ALARM_CHARS],
        )

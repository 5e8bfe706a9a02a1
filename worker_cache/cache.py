"""The verified cache: a digest in, a descriptor of exactly those bytes out; fetched when it is not there.

Promise: what `open` returns was hashed on the descriptor it returns. A damaged entry refuses that one use. Many callers
who want one digest cause one fetch; a caller who goes away takes nobody else's fetch with him. Bytes that are wrong, too
many or too few are never named in the cache.

How: `fetching` one blob from `sources`, `prefetching` many by a `batch`; `evicting` to keep the quota, by what `holdings` has
on record; `scrubbing` in the background.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress

import structlog

from integrity.digests import Digest
from integrity.errors import DagsealError, DigestMismatchError, FetchError, NotFoundError, SecurityError
from vocabulary.lognews import Blob
from worker_cache.bandwidth import Bandwidth
from worker_cache.evicting import Room
from worker_cache.fetching import Fetcher
from worker_cache.holdings import Holdings, Record
from worker_cache.limits import Limits
from worker_cache.prefetching import Batch, Prefetcher
from worker_cache.receiving import INLINE_BYTES
from worker_cache.scrubbing import PAUSE_SECONDS, Scrubber
from worker_cache.sources import Fetch, Source, Sources, api_source
from worker_cache.store import LostError, Store
from worker_cache.urgency import Job, Urgency

USED_SECONDS = 3600.0
OnDamage = Callable[[Digest, str], None]
_log = structlog.get_logger("worker_cache")


def log_damage(digest: Digest, detail: str) -> None:
    """For now: an operator's log is where damage is told."""
    _log.error("cache damaged", digest=str(digest), detail=detail)


async def _no_batch(digests: Sequence[Digest]) -> AsyncGenerator[bytes, None]:
    raise FetchError("there is nobody who could be asked for many blobs at once")
    yield b""


class Cache:
    """Verified blobs over one `Store`, for one event loop."""

    def __init__(
        self,
        store: Store,
        fetch: Fetch,
        *,
        max_blob_bytes: int,
        batch: Batch = _no_batch,
        mirrors: Sequence[Source] = (),
        mirrors_first: bool = True,
        limits: Limits | None = None,
        on_damage: OnDamage = log_damage,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        limits = limits or Limits()
        self._store, self._max_blob_bytes = store, max_blob_bytes
        self._on_damage, self._clock, self._sleep = on_damage, clock, sleep
        self._record, self._urgency = Record(), Urgency()
        self._room = Room(store, self._record, limits.max_cache_bytes)
        bandwidth = Bandwidth(limits.max_fetch_bytes_per_second, clock=clock, sleep=sleep)
        sources = Sources(api_source(fetch), mirrors, mirrors_first=mirrors_first, clock=clock)
        self._fetcher = Fetcher(store, self._record, sources, bandwidth, self._urgency)
        self._prefetcher = Prefetcher(
            store,
            self._record,
            self._room,
            ask=batch,
            alone=lambda digest, size: self._fetch_once(digest, size, urgent=False),
            named=self._named,
            bandwidth=bandwidth,
            urgency=self._urgency,
        )
        scrubbing = Bandwidth(limits.scrub_bytes_per_second, clock=clock, sleep=sleep)
        self._scrubs = limits.scrub_bytes_per_second > 0
        self.scrubber = Scrubber(store, self._record, scrubbing, spoilt=self._spoilt, clock=clock, sleep=sleep)
        self._under_way: dict[Digest, tuple[Job, asyncio.Task[None]]] = {}
        self._background: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """What goes on beside the launches: reading the folder's names, scrubbing. Not needed for `open`."""
        self._beside(self._tend())

    async def open(self, digest: Digest, *, size: int) -> int:
        """A descriptor of the blob, to be closed by the caller. `size` is what the signed manifest says.

        Raises `DigestMismatchError` for a damaged entry or wrong bytes from the server, `FetchError` when it could not be
        had, `SecurityError` when the size is over the limit.
        """
        self._require_size(size)
        with self.pin(digest):
            try:
                return await self._open_cached(digest, size)
            except NotFoundError:
                if digest not in self._record.entries:  # else it was named while this one looked
                    await self._fetch_once(digest, size, urgent=True)
            return await self._open_cached(digest, size)

    async def prefetch(self, wanted: Iterable[tuple[Digest, int]]) -> dict[Digest, DagsealError]:
        """Have these before a launch asks, with the lengths that their signed manifests say; of the others, why not."""
        given = dict(wanted)
        small = {digest: size for digest, size in given.items() if size <= self._max_blob_bytes}
        refused = await self._prefetcher.fetch(small.items())
        for digest in given.keys() - small.keys():
            refused[digest] = SecurityError(f"{digest} has {given[digest]} bytes: over max_blob_mib")
        return refused

    def offer(self, blobs: Iterable[Blob]) -> None:
        """What somebody sent unasked, for the next `prefetch`: verified there, like all that comes."""
        self._prefetcher.offer(blobs)

    def want(self, wanted: Mapping[Digest, int]) -> None:
        """What is wanted from now on, instead of before, with the lengths that signed manifests say: evicted last, and fetched
        again when it is found damaged."""
        self._record.wanted = dict(wanted)

    def pin(self, digest: Digest) -> AbstractContextManager[None]:
        """Within it the entry is not evicted."""
        return self._record.pin(digest)

    def holdings(self) -> Holdings:
        return self._record.holdings()

    def held(self, digests: Iterable[Digest]) -> frozenset[Digest]:
        """Those that are there and were found right since this process began."""
        entries = self._record.entries
        return frozenset(one for one in digests if (entry := entries.get(one)) is not None and entry.verified_at)

    async def look_through(self, digests: Iterable[Digest]) -> None:
        """Hash those that were there when this process began and were not used since: until then they are not `held`."""
        await self._room.ready()
        for digest in digests:
            entry = self._record.entries.get(digest)
            if entry is not None and not entry.verified_at:
                with suppress(DagsealError):
                    os.close(await self.open_held(digest))

    async def open_held(self, digest: Digest) -> int:
        """As `open`, for who is to cause no fetch. Raises `NotFoundError`."""
        return await self._open_cached(digest, INLINE_BYTES + 1)

    def _require_size(self, size: int) -> None:
        if size > self._max_blob_bytes:
            raise SecurityError(
                f"the archive has {size} bytes and this host caches at most {self._max_blob_bytes}: "
                "raise max_blob_mib in its configuration, or make the archive smaller"
            )

    async def _open_cached(self, digest: Digest, size: int) -> int:
        entry = self._record.entries.get(digest)
        try:
            if size <= INLINE_BYTES:
                fd = self._store.open_verified(digest)
            else:
                fd = await self._open_in_thread(digest)
            self._record.verified(digest, _used(fd), self._clock())
        except OSError as error:
            raise FetchError(f"the cache cannot be read: {error}") from None
        except (DigestMismatchError, LostError) as error:
            self._spoilt(digest, str(error))
            raise
        except NotFoundError:
            if self._record.entries.get(digest) is entry:
                self._record.removed(digest)
            raise
        return fd

    async def _open_in_thread(self, digest: Digest) -> int:
        opening = asyncio.ensure_future(asyncio.to_thread(self._store.open_verified, digest))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)  # a thread is not cancelled, and opens it all the same
            raise

    async def _fetch_once(self, digest: Digest, size: int, *, urgent: bool) -> None:
        found = self._under_way.get(digest)
        if found is None:
            job = Job()
            task = asyncio.create_task(self._fetch_into_store(digest, size, job, urgent=urgent))
            self._under_way[digest] = found = job, task
            task.add_done_callback(lambda done: self._forget(digest, done))
        job, task = found
        if not urgent:
            await asyncio.shield(task)
            return
        with self._urgency.waiting(job):
            await asyncio.shield(task)

    def _forget(self, digest: Digest, done: asyncio.Task[None]) -> None:
        del self._under_way[digest]
        if not done.cancelled():
            done.exception()  # read here too: every waiter may have gone away

    async def _fetch_into_store(self, digest: Digest, size: int, job: Job, *, urgent: bool) -> None:
        try:
            await self._room.ready()
            with self._room.reserve(digest, size, urgent=urgent):
                await self._fetcher.fetch(digest, size, job)
                self._named(digest, size)
        except OSError as error:
            raise FetchError(f"the cache cannot be written: {error}; make room or repair the disk") from None

    def _named(self, digest: Digest, size: int) -> None:
        self._record.verified(digest, size, self._clock())

    def _spoilt(self, digest: Digest, detail: str) -> None:
        """Told once, however many found it; fetched again when it is wanted."""
        if self._record.spoilt(digest):
            self._on_damage(digest, detail)
        size = self._record.wanted.get(digest)  # a damaged entry has any length
        if size is not None:
            self._beside(self._repair(digest, size))

    async def _repair(self, digest: Digest, size: int) -> None:
        try:
            await self._fetch_once(digest, size, urgent=False)
        except DagsealError as error:
            _log.warning("not repaired yet", digest=str(digest), error=str(error))

    async def _tend(self) -> None:
        while True:
            try:
                await self._room.ready()
                break
            except OSError as error:
                _log.warning("the cache cannot be listed", error=str(error))
                await self._sleep(PAUSE_SECONDS)
        if self._scrubs:
            await self.scrubber.run()

    def _beside(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def close(self) -> None:
        """Stop the fetches under way. The store is the caller's to close."""
        tasks = [*self._background, *(task for _, task in self._under_way.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._room.close()


def _used(fd: int) -> int:
    """The length of an entry. That it was used, its file says to the next agent: to the hour, so that few uses write."""
    try:
        found = os.fstat(fd)
    except OSError:
        os.close(fd)
        raise
    if time.time() - found.st_mtime > USED_SECONDS:
        with suppress(OSError):
            os.utime(fd)
    return found.st_size


def _close_opened(opening: asyncio.Future[int]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result())

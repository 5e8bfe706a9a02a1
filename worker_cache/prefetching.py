"""Fetching what will be asked for: small blobs many at a time, large ones alone.

Promise: no launch waits longer for it. It lets every fetch pass that a launch waits for, between any two chunks; a launch that
wants what is on its way in a batch fetches it by itself. It evicts nothing that is wanted. At most `AT_ONCE` answers of at
most `BATCH_BYTES` are on their way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, aclosing

from integrity.digests import Digest
from integrity.errors import DagsealError, DigestMismatchError, FetchError
from vocabulary import blobframes
from vocabulary.lognews import Blob
from worker_cache import batch
from worker_cache.bandwidth import Bandwidth
from worker_cache.batch import BATCH_BYTES, BLOB_BYTES, Wanted
from worker_cache.evicting import Room
from worker_cache.holdings import Record
from worker_cache.store import Store
from worker_cache.urgency import Job, Urgency

AT_ONCE = 2

Batch = Callable[[Sequence[Digest]], AsyncGenerator[bytes, None]]
Alone = Callable[[Digest, int], Awaitable[None]]


class Prefetcher:
    """`ask` is the API's batch; `alone` fetches one blob and joins who is at it already."""

    def __init__(
        self,
        store: Store,
        record: Record,
        room: Room,
        *,
        ask: Batch,
        alone: Alone,
        named: Callable[[Digest, int], None],
        bandwidth: Bandwidth,
        urgency: Urgency,
    ) -> None:
        self._store, self._record, self._room = store, record, room
        self._ask, self._alone, self._named = ask, alone, named
        self._bandwidth, self._urgency = bandwidth, urgency
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._offered: dict[Digest, bytes] = {}

    def offer(self, blobs: Iterable[Blob]) -> None:
        """What came without being asked for, instead of what was offered before. Held until the next `fetch`, which takes of it
        what is wanted and what it is said to be."""
        self._offered = dict(blobs)

    async def fetch(self, wanted: Iterable[Wanted]) -> dict[Digest, DagsealError]:
        """Have each of these; of those that could not be had, why."""
        await self._room.ready()
        missing = [(digest, size) for digest, size in dict(wanted).items() if digest not in self._record.entries]
        refused: dict[Digest, DagsealError] = {}
        offered, self._offered = self._offered, {}
        for digest, size in [one for one in missing if one[0] in offered]:
            if await self._take(digest, size, offered[digest]):
                missing.remove((digest, size))
        small = _batches([one for one in missing if one[1] <= BLOB_BYTES])
        large = [one for one in missing if one[1] > BLOB_BYTES]
        async with asyncio.TaskGroup() as group:
            for some in small:
                group.create_task(self._in_turn(self._together(some, refused)))
            for digest, size in large:
                group.create_task(self._in_turn(self._large(digest, size, refused)))
        return refused

    async def _take(self, digest: Digest, size: int, data: bytes) -> bool:
        """Whether it is there now."""
        if len(data) != size or digest in self._record.reserved:
            return False
        try:
            with self._room.reserve(digest, size, urgent=False):
                await batch.keep(self._store, digest, data)
        except (DigestMismatchError, FetchError, OSError):
            return False  # fetched, it is refused for a reason that is told
        self._named(digest, size)
        return True

    async def _in_turn(self, work: Awaitable[None]) -> None:
        async with self._at_once:
            await work

    async def _together(self, some: Sequence[Wanted], refused: dict[Digest, DagsealError]) -> None:
        with ExitStack() as reserved:
            asked: list[Wanted] = []
            for digest, size in some:
                if digest in self._record.reserved or digest in self._record.entries:
                    continue  # a launch is at it, or was
                try:
                    reserved.enter_context(self._room.reserve(digest, size, urgent=False))
                except FetchError as error:
                    refused[digest] = error
                else:
                    asked.append((digest, size))
            if not asked:
                return
            try:
                chunks = self._unhurried(self._ask([digest for digest, _ in asked]))
                found = await batch.receive(self._store, chunks, asked, self._named)
            except OSError as error:
                found = {digest: FetchError(f"the cache cannot be written: {error}") for digest, _ in asked}
        refused |= found

    async def _large(self, digest: Digest, size: int, refused: dict[Digest, DagsealError]) -> None:
        try:
            await self._alone(digest, size)
        except DagsealError as error:
            refused[digest] = error

    async def _unhurried(self, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        job = Job()
        async with aclosing(chunks):
            await self._urgency.let_pass(job)
            async for chunk in chunks:
                await self._urgency.let_pass(job)
                await self._bandwidth.take(len(chunk))
                yield chunk


def _batches(small: Iterable[Wanted]) -> Iterator[list[Wanted]]:
    some: list[Wanted] = []
    total = 0
    for digest, size in small:
        if some and (len(some) == blobframes.MAX_DIGESTS or total + size > BATCH_BYTES):
            yield some
            some, total = [], 0
        some.append((digest, size))
        total += size
    if some:
        yield some

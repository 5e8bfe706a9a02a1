"""Room for what is fetched: the quota on the disk, and what goes when it is reached.

Promise: entries, what is under way and what is kept of cut fetches are together never more than the quota. What a launch has
in use, what is pinned and what is under way is never evicted; what is wanted only for a launch, when nothing else is left.
Choosing, removing and reserving are one step of the event loop, so that no two fetches are given the same room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from integrity.digests import Digest
from integrity.errors import FetchError
from worker_cache.holdings import Record
from worker_cache.store import Store


class Room:
    """The quota over one store and its record; 0 bytes is none."""

    def __init__(self, store: Store, record: Record, most_bytes: int) -> None:
        self._store, self._record, self._most = store, record, most_bytes
        self._filling: asyncio.Task[None] | None = None

    async def ready(self) -> None:
        """Returns when the record has what the folder held at the start. Raises `OSError`, and is to be tried again then."""
        if self._filling is None or (self._filling.done() and self._filling.exception() is not None):
            self._filling = asyncio.create_task(self._fill())
        await asyncio.shield(self._filling)

    async def _fill(self) -> None:
        found, parts = await asyncio.to_thread(lambda: (list(self._store.entries()), list(self._store.parts())))
        self._record.fill(found, parts)

    @contextmanager
    def reserve(self, digest: Digest, size: int, *, urgent: bool) -> Iterator[None]:
        """Room for these bytes while they are fetched. After `ready`. Raises `FetchError` when there is none."""
        self._make(size, urgent=urgent)
        sizes = self._record.reserved.setdefault(digest, [])
        sizes.append(size)
        try:
            yield
        finally:
            sizes.remove(size)
            if not sizes:
                del self._record.reserved[digest]

    def _make(self, size: int, *, urgent: bool) -> None:
        record = self._record
        if not self._most or record.taken + size <= self._most:
            return
        while record.parts and record.taken + size > self._most:
            part, _ = record.parts.popitem()
            self._store.remove_part(part)
        victims = record.victims(record.taken + size - self._most, also_wanted=urgent)
        if victims is None:
            raise FetchError(
                f"the cache has no room for {size} bytes, as what is left is in use or wanted: "
                "raise max_cache_mib, or wait for a task to end"
            )
        for digest in victims:
            self._store.remove(digest)
            record.removed(digest)

    async def close(self) -> None:
        if self._filling is not None:
            await asyncio.gather(self._filling, return_exceptions=True)

"""The verified cache: a digest in, a descriptor of exactly those bytes out; fetched when it is not there.

Promise: what `open` returns was hashed on the descriptor it returns. A damaged entry refuses that one use. Many callers
who want one digest cause one fetch; a caller who goes away takes nobody else's fetch with him. Bytes that are wrong, too
many or too few are never named in the cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from integrity.digests import Digest
from integrity.errors import FetchError, NotFoundError, SecurityError
from worker_cache.store import Receiver, Store

# Hashing and writing this much takes less time than a hop to a thread and back.
INLINE_BYTES = 64 * 1024

Fetch = Callable[[Digest], AsyncGenerator[bytes, None]]


class Cache:
    """Verified blobs over one `Store`, for one event loop."""

    def __init__(self, store: Store, fetch: Fetch, *, max_blob_bytes: int) -> None:
        self._store = store
        self._fetch = fetch
        self._max_blob_bytes = max_blob_bytes
        self._under_way: dict[Digest, asyncio.Task[None]] = {}

    async def open(self, digest: Digest, *, size: int) -> int:
        """A descriptor of the blob, to be closed by the caller. `size` is what the signed manifest says.

        Raises `DigestMismatchError` for a damaged entry or wrong bytes from the server, `FetchError` when it could not be
        had, `SecurityError` when the size is over the limit.
        """
        if size > self._max_blob_bytes:
            raise SecurityError(
                f"the archive has {size} bytes and this host caches at most {self._max_blob_bytes}: "
                "raise max_blob_mib in its configuration, or make the archive smaller"
            )
        try:
            return await self._open_cached(digest, size)
        except NotFoundError:
            await self._fetch_once(digest, size)
        return await self._open_cached(digest, size)

    async def _open_cached(self, digest: Digest, size: int) -> int:
        try:
            if size <= INLINE_BYTES:
                return self._store.open_verified(digest)
            return await asyncio.to_thread(self._store.open_verified, digest)
        except OSError as error:
            raise FetchError(f"the cache cannot be read: {error}") from None

    async def _fetch_once(self, digest: Digest, size: int) -> None:
        task = self._under_way.get(digest)
        if task is None:
            task = asyncio.create_task(self._fetch_into_store(digest, size))
            self._under_way[digest] = task
            task.add_done_callback(lambda done: self._forget(digest, done))
        await asyncio.shield(task)

    def _forget(self, digest: Digest, done: asyncio.Task[None]) -> None:
        del self._under_way[digest]
        if not done.cancelled():
            done.exception()  # read here too: every waiter may have gone away

    async def _fetch_into_store(self, digest: Digest, size: int) -> None:
        try:
            receiver = self._store.receive()
            try:
                await self._receive(receiver, digest, size)
            finally:
                receiver.close()
        except OSError as error:
            raise FetchError(f"the cache cannot be written: {error}; make room or repair the disk") from None

    async def _receive(self, receiver: Receiver, digest: Digest, size: int) -> None:
        async with aclosing(self._fetch(digest)) as chunks:
            async for chunk in chunks:
                if receiver.size + len(chunk) > size:
                    raise FetchError(f"the server sent more than the {size} bytes of {digest}: nothing was kept")
                if len(chunk) <= INLINE_BYTES:
                    receiver.write(chunk)
                else:
                    await asyncio.to_thread(receiver.write, chunk)
        if receiver.size < size:
            raise FetchError(f"the server sent {receiver.size} of the {size} bytes of {digest}: try again")
        await asyncio.to_thread(receiver.finish, digest)

    async def close(self) -> None:
        """Stop the fetches under way. The store is the caller's to close."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

"""One blob, from the first source that has it, gone on with where an answer was cut.

Promise: nothing is named that was not hashed whole. What is kept of a cut answer is hashed anew before more is added; when the
whole is then wrong it is fetched once more from nothing, as nobody knows whose part was wrong. More than the signed manifest
says is cut off, and a source that drips is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from integrity.digests import Digest
from integrity.errors import DagsealError, DigestMismatchError, FetchError
from worker_cache.bandwidth import Bandwidth
from worker_cache.holdings import Record
from worker_cache.problems import RequestError
from worker_cache.receiving import INLINE_BYTES, Receiver
from worker_cache.sources import Source, Sources
from worker_cache.store import Store
from worker_cache.urgency import Job, Urgency

ATTEMPTS = 4
MOST_PARTS = 16


class TooLongError(FetchError):
    """The answer goes on after the last byte of the blob."""


class Fetcher:
    """Into one store, from some sources; for one event loop."""

    def __init__(self, store: Store, record: Record, sources: Sources, bandwidth: Bandwidth, urgency: Urgency) -> None:
        self._store, self._record, self._sources = store, record, sources
        self._bandwidth, self._urgency = bandwidth, urgency

    async def fetch(self, digest: Digest, size: int, job: Job) -> None:
        """Have it named in the store. Raises what the API said when no mirror had it either, and `OSError`."""
        receiver, keep = self._store.resume(digest), False
        self._record.parts.pop(digest, None)
        try:
            await _rehash(receiver, size)
            await self._from_any(receiver, digest, size, job)
        except (FetchError, asyncio.CancelledError):
            keep = True
            raise
        finally:
            kept, parts = receiver.close(keep=keep), self._record.parts
            if kept:
                parts[digest] = kept
            if len(parts) > MOST_PARTS:
                oldest = next(iter(parts))
                del parts[oldest]
                self._store.remove_part(oldest)

    async def _from_any(self, receiver: Receiver, digest: Digest, size: int, job: Job) -> None:
        refused: DagsealError | None = None
        for source in self._sources.awake():
            try:
                await self._from(source, receiver, digest, size, job)
                return
            except (DigestMismatchError, TooLongError) as error:
                self._sources.lied(source, digest, str(error))
                failure: DagsealError = error
            except (FetchError, RequestError) as error:
                self._sources.failed(source, digest, str(error))
                failure = error
            except DagsealError as error:
                failure = error  # it has none, or gives us none
            if refused is None or not source.is_mirror:
                refused = failure
        assert refused is not None  # the API is always awake
        raise refused

    async def _from(self, source: Source, receiver: Receiver, digest: Digest, size: int, job: Job) -> None:
        for _ in range(ATTEMPTS):
            begun = receiver.size
            try:
                await self._receive(source, receiver, digest, size, job)
                return
            except (DigestMismatchError, TooLongError, RequestError):
                receiver.restart()
                if begun == 0:
                    raise
            except FetchError:
                if receiver.size == begun:
                    raise
                await _rehash(receiver, size)
        raise FetchError(f"{source.name} broke off {ATTEMPTS} times while it sent {digest}: try again")

    async def _receive(self, source: Source, receiver: Receiver, digest: Digest, size: int, job: Job) -> None:
        async with aclosing(_patiently(source, source.fetch(digest, receiver.size))) as chunks:
            async for chunk in chunks:
                if receiver.size + len(chunk) > size:
                    raise TooLongError(f"the server sent more than the {size} bytes of {digest}: nothing was kept")
                await self._urgency.let_pass(job)
                await self._bandwidth.take(len(chunk))
                if len(chunk) <= INLINE_BYTES:
                    receiver.write(chunk)
                else:
                    await asyncio.to_thread(receiver.write, chunk)
        if receiver.size < size:
            raise FetchError(f"the server sent {receiver.size} of the {size} bytes of {digest}: try again")
        receiver.finish(digest)


async def _rehash(receiver: Receiver, size: int) -> None:
    if receiver.on_disk > INLINE_BYTES:
        await asyncio.to_thread(receiver.rehash, size)
    else:
        receiver.rehash(size)


async def _patiently(source: Source, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The chunks, while they come fast enough; what the reader does with them takes none of the time."""
    clock = asyncio.get_running_loop().time
    waited, came = 0.0, 0
    async with aclosing(chunks):
        while True:
            began = clock()
            try:
                async with asyncio.timeout(source.patience_seconds + came / source.least_bytes_per_second - waited):
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise FetchError(f"{source.name} sends too slowly: {came} bytes in {waited:.0f} s; try again") from None
            waited, came = waited + clock() - began, came + len(chunk)
            yield chunk

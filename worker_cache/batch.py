"""Many blobs from one answer (`vocabulary.blobframes`): each frame proves itself, and no other.

Promise: a frame is named only when its length is the signed manifest's and its bytes have its digest. A wrong one is refused
and the others are kept; where frames cannot be told apart any more, what came before is kept and the rest is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from integrity.digests import Digest
from integrity.errors import DagsealError, DigestMismatchError, FetchError, MalformedError
from vocabulary import blobframes
from worker_cache import problems
from worker_cache.receiving import INLINE_BYTES
from worker_cache.store import Store

BLOB_BYTES = 256 * 1024  # what is larger is fetched alone, where it can be gone on with
BATCH_BYTES = 8 * 1024 * 1024

Wanted = tuple[Digest, int]


async def receive(
    store: Store,
    chunks: AsyncGenerator[bytes, None],
    wanted: Sequence[Wanted],
    named: Callable[[Digest, int], None],
) -> dict[Digest, DagsealError]:
    """Name what is right, telling `named`; of the others, why not. `wanted` is what was asked for, in that order, with the
    lengths that signed manifests say. Raises `OSError`."""
    refused: dict[Digest, DagsealError] = {}
    async with aclosing(chunks):
        reader = _Reader(chunks)
        for at, (digest, size) in enumerate(wanted):
            try:
                data = await _frame(reader, digest, size, refused)
            except DagsealError as error:
                for rest, _ in wanted[at:]:
                    refused.setdefault(rest, error)
                break
            if data is None:
                continue
            try:
                await keep(store, digest, data)
            except DigestMismatchError as error:
                refused[digest] = error
            else:
                named(digest, size)
    return refused


async def _frame(reader: _Reader, digest: Digest, size: int, refused: dict[Digest, DagsealError]) -> bytes | None:
    """The bytes of the next frame, unverified; None where this one is refused. Raises when no frame can follow."""
    frame = blobframes.parse(await reader.line())
    if frame.digest != digest:
        raise MalformedError(f"the batch has a frame of {frame.digest} where {digest} was asked for")
    if frame.slug:
        refused[digest] = problems.from_slug(frame.slug, f"the API does not send {digest}: {frame.slug}")
        return None
    if frame.size == size:
        return await reader.exactly(size)
    wrong = MalformedError(f"the batch's frame of {digest} has {frame.size} bytes, and its manifest says {size}")
    if frame.size > BATCH_BYTES:
        raise wrong
    refused[digest] = wrong
    await reader.exactly(frame.size)
    return None


async def keep(store: Store, digest: Digest, data: bytes) -> None:
    """Name it. Raises `DigestMismatchError`, `OSError`, and then nothing is named."""
    if len(data) <= INLINE_BYTES:
        _keep(store, digest, data)
    else:
        await asyncio.to_thread(_keep, store, digest, data)


def _keep(store: Store, digest: Digest, data: bytes) -> None:
    receiver = store.receive()
    try:
        receiver.write(data)
        receiver.finish(digest)
    finally:
        receiver.close()


class _Reader:
    """Lines and counted bytes out of chunks. Holds at most one frame and one chunk."""

    def __init__(self, chunks: AsyncGenerator[bytes, None]) -> None:
        self._chunks = chunks
        self._held = bytearray()

    async def line(self) -> bytes:
        while (end := self._held.find(b"\n", 0, blobframes.MAX_LINE_BYTES)) < 0:
            if len(self._held) >= blobframes.MAX_LINE_BYTES:
                raise MalformedError("the batch goes on with what is not the line of a frame")
            await self._more()
        return self._cut(end + 1)

    async def exactly(self, count: int) -> bytes:
        while len(self._held) < count:
            await self._more()
        return self._cut(count)

    async def _more(self) -> None:
        try:
            self._held += await anext(self._chunks)
        except StopAsyncIteration:
            raise FetchError("the batch ended before its last frame: try again") from None

    def _cut(self, count: int) -> bytes:
        data = bytes(self._held[:count])
        del self._held[:count]
        return data

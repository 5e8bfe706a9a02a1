"""Blobs in a bucket: one object per SHA-512, `<prefix>/<first two digits>/<hex>`, as the folder has them.

Promise, beyond the store's: an object is put whole and only where none is; a bad one is removed first. A large upload rests on
local disk until the bucket has acknowledged it. While the bucket fails, uploads are refused at once for some seconds, as
each waits with the one writer's lock in hand. Whose the prefix is stands in it: nobody else's blobs are removed.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from weakref import WeakValueDictionary

from integrity.digests import Digest
from integrity.errors import DigestMismatchError, NotFoundError, SettingsError
from submit_api.blobs.bucket import MADE, UNSURE, BeyondEndError, Bucket, DeniedError
from submit_api.blobs.incoming import Incoming, Upload, in_thread
from submit_api.blobs.local import path_of
from submit_api.blobs.section import BlobsSection
from submit_api.refusals import UnavailableError

OWNER = ".dagseal-owner"
PIECE_BYTES = 4 * 1024 * 1024
_MAX_BYTES = 5 * 1024**3  # of one PUT, by S3's own limits: what is larger this service did not make
_ROUNDS = 3
_AT_ONCE = 8


class BucketStore(Incoming):
    """`submit_api.blobs.store`. `owner` names the service: the id of its signing key."""

    def __init__(
        self,
        folder: str,
        bucket: Bucket,
        *,
        section: BlobsSection,
        owner: str,
        inline_bytes: int,
        cached_blob_bytes: int,
        cache_bytes: int,
    ) -> None:
        super().__init__(
            folder, inline_bytes=inline_bytes, cached_blob_bytes=cached_blob_bytes, cache_bytes=cache_bytes
        )
        self._bucket = bucket
        self._section, self._owner, self._rests_until = section, owner.encode(), 0.0
        self._publishing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def check_writable(self) -> None:
        """One PUT of what is there already, which costs no space: that a larger one fits is not known by it."""
        await super().check_writable()
        await self._bucket.create(OWNER, self._owner)

    async def claim(self) -> None:
        try:
            if await self._bucket.create(OWNER, self._owner) != MADE and not await self._owns():
                raise SettingsError(
                    f"blobs.url: this prefix is another dagseal's, as its object {OWNER} says: give each one its own, or, "
                    "when nobody uses it any more, empty it"
                )
            if await self._bucket.create(OWNER, self._owner) == MADE:
                raise SettingsError(
                    "blobs.url: the bucket replaces objects that are there (it ignores If-None-Match): take a store that has "
                    "conditional writes"
                )
        except DeniedError as error:
            raise SettingsError(
                f"blobs.url: {error}. Credentials need s3:GetObject, s3:PutObject, s3:DeleteObject on the prefix and "
                "s3:ListBucket on the bucket, which has to exist: see 'Archives in a bucket' in docs/operations.md"
            ) from None

    async def _owns(self) -> bool:
        try:
            held, size = await self._bucket.fetch(OWNER, 0, len(self._owner) + 1)
        except BeyondEndError:
            return False
        except NotFoundError:
            raise UnavailableError(
                f"the bucket says that its {OWNER} is there, and that it is not: try again"
            ) from None
        return held == self._owner and size == len(held)

    async def publish(self, upload: Upload) -> bool:
        loop = asyncio.get_running_loop()
        if loop.time() < self._rests_until:
            raise UnavailableError("the bucket failed a moment ago: nothing was stored, try again in some seconds")
        # Who removes a bad one does not remove the good one that another has just put, and acknowledged, in its place.
        alone = self._publishing.setdefault(upload.digest.hex, asyncio.Lock())
        try:
            async with asyncio.timeout(_ROUNDS * self._section.seconds_for(upload.size)), alone:
                return await self._publish(upload)
        except UnavailableError as error:
            failure = error
        except TimeoutError:
            failure = UnavailableError("the bucket is too slow: nothing counts as stored, try again")
        self._rests_until = loop.time() + self._section.rest_seconds
        raise failure

    async def publish_all(self, uploads: Sequence[Upload]) -> None:
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def one(upload: Upload) -> None:
            async with at_once:
                await self.publish(upload)

        # To the end of each: what an upload owns is gone when its submission has been answered.
        for outcome in await asyncio.gather(*map(one, uploads), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _publish(self, upload: Upload) -> bool:
        digest, replaced = upload.digest, False
        data = await in_thread(upload.size > self._inline_bytes, upload.read)
        for _ in range(_ROUNDS):
            made = await self._bucket.create(path_of(digest), data)
            if made == MADE:
                return True
            try:
                await self.verify(digest)
                return replaced or made == UNSURE
            except NotFoundError:
                continue  # another one's PUT is under way, or was removed meanwhile
            except DigestMismatchError:
                await self.remove(digest)
                replaced = True
        raise UnavailableError("somebody else changes this object in the bucket: nothing was stored, try again")

    async def remove(self, digest: Digest) -> None:
        self._cache.drop(digest)
        await self._bucket.delete(path_of(digest))

    async def verify(self, digest: Digest) -> None:
        hashed = hashlib.sha512()
        async for piece in self._pieces(digest, 0, None):
            await in_thread(len(piece) > self._inline_bytes, hashed.update, piece)
        digest.require(Digest(hashed.hexdigest()), "the stored blob")

    async def _fetch(self, digest: Digest, size: int) -> bytes:
        return b"".join([piece async for piece in self._pieces(digest, 0, size - 1)])

    def read(self, digest: Digest, first: int, last: int) -> AsyncGenerator[bytes, None]:
        return self._pieces(digest, first, last)

    async def _pieces(self, digest: Digest, first: int, last: int | None) -> AsyncGenerator[bytes, None]:
        """Range by range, so that a slow reader keeps no connection and no more than one piece; no `last` is the end."""
        whole = None
        while last is None or first <= last:
            count = PIECE_BYTES if last is None else min(PIECE_BYTES, last - first + 1)
            try:
                piece, size = await self._bucket.fetch(path_of(digest), first, count)
            except NotFoundError:
                raise NotFoundError(f"there is no blob {digest}") from None
            except BeyondEndError:
                raise DigestMismatchError("the stored blob is shorter than its release says") from None
            if size > _MAX_BYTES or whole not in (None, size):
                raise DigestMismatchError(f"the stored blob has {size} bytes, which no release has")
            whole = size
            yield piece
            first += len(piece)
            if last is None and first >= size:
                return

    async def names(self) -> AsyncIterator[tuple[str, str]]:
        async for key in self._bucket.keys():
            if key != OWNER:
                folder, _, name = key.rpartition("/")
                yield folder, name

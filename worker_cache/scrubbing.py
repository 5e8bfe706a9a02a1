"""Hashing every entry again and again, slowly: a disk that forgets is found out before a launch is refused for it.

Promise: at most so many bytes a second; nothing that is not due. An entry is due an hour after it was last found right, by a
use or by this. What is wrong is put aside and told; a good one that took its place meanwhile stays.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import Awaitable, Callable

import structlog

from integrity.digests import Digest
from integrity.errors import DigestMismatchError, NotFoundError
from worker_cache.bandwidth import Bandwidth
from worker_cache.holdings import Record
from worker_cache.store import LostError, Store

EVERY_SECONDS = 3600.0
PAUSE_SECONDS = 60.0
PIECE_BYTES = 1024 * 1024
_log = structlog.get_logger("worker_cache")


class Scrubber:
    """`spoilt` is told of what was put aside, after it was."""

    def __init__(
        self,
        store: Store,
        record: Record,
        bandwidth: Bandwidth,
        *,
        spoilt: Callable[[Digest, str], None],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._store, self._record, self._bandwidth = store, record, bandwidth
        self._spoilt = spoilt
        self._clock, self._sleep = clock, sleep

    async def run(self) -> None:
        """For ever. The record has what the folder held."""
        while True:
            due = await self.round()
            await self._sleep(max(PAUSE_SECONDS, due))

    async def round(self) -> float:
        """Every entry that is due now, the longest unverified first; seconds until the next one is."""
        now = self._clock()
        due = [(entry.verified_at, digest) for digest, entry in self._record.entries.items()]
        due = [one for one in due if not one[0] or one[0] + EVERY_SECONDS <= now]
        for _, digest in sorted(due, key=lambda one: one[0]):
            await self._one(digest)
        verified = [entry.verified_at for entry in self._record.entries.values()]
        return min(verified, default=now) + EVERY_SECONDS - self._clock()

    async def _one(self, digest: Digest) -> None:
        entry = self._record.entries.get(digest)
        if entry is None:
            return
        try:
            size = await self._hash(digest)
        except (DigestMismatchError, LostError) as error:
            self._spoilt(digest, str(error))
        except OSError as error:
            _log.warning("not scrubbed", digest=str(digest), error=str(error))
        except NotFoundError:
            if self._record.entries.get(digest) is entry:
                self._record.removed(digest)
        else:
            if digest in self._record.entries:
                self._record.verified(digest, size, self._clock(), used=False)

    async def _hash(self, digest: Digest) -> int:
        """Its length. Raises as `Store.open_verified` does."""
        fd = self._store.open_unverified(digest)
        try:
            hasher, size = hashlib.sha512(), 0

            def piece() -> int:
                chunk = os.pread(fd, PIECE_BYTES, size)
                hasher.update(chunk)
                return len(chunk)

            while count := await asyncio.to_thread(piece):
                size += count
                await self._bandwidth.take(count)
            if (actual := Digest(hasher.hexdigest())) != digest:
                raise self._store.set_aside(digest, fd, f"has the bytes of {actual}")
            return size
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise self._store.set_aside(digest, None, "cannot be read from the disk") from None
        finally:
            os.close(fd)

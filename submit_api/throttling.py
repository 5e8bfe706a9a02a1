"""Failed authentications are limited: a token bucket for each client address, and one for each token id that is tried.

Promise: a right token is answered whatever failed before, from anywhere: the limit is on failures, so nobody is locked out by
others, nor by a neighbour behind the same address. (Tokens hold 256 random bits, so a lock would protect nothing. What a
failure costs is a durable audit event, and that must not be had without end.) A failure over the limit is answered 429 with
the time to wait, and only the first of them is audited until its bucket has something again. The memory is bounded: the
buckets that were used the longest ago are forgotten first, which only ever forgives.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from submit_api.effects import MICROSECONDS, Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Over:
    """A failure too many: the next may come after so many seconds. `first` since its bucket had something left."""

    seconds: int
    first: bool


class Bucket:
    """`left` failures may follow at once; a new one is given every so often."""

    __slots__ = ("at", "left", "told")

    def __init__(self, left: float, at: int) -> None:
        self.left, self.at, self.told = left, at, False


class Throttle:
    """Buckets by key. `spend` is all that others call."""

    def __init__(self, clock: Clock, *, burst: int, seconds_each: float, max_keys: int) -> None:
        self._clock, self._burst, self._seconds, self._max = clock, burst, seconds_each, max_keys
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def spend(self, *keys: str) -> Over | None:
        """Count one failure against each of these keys. None while all of them have something left."""
        over = [found for key in keys if (found := self._spend(key)) is not None]
        if not over:
            return None
        return Over(seconds=max(one.seconds for one in over), first=any(one.first for one in over))

    def _spend(self, key: str) -> Over | None:
        bucket = self._filled(key)
        if bucket.left >= 1:
            bucket.left -= 1
            bucket.told = False
            return None
        first, bucket.told = not bucket.told, True
        return Over(seconds=math.ceil((1 - bucket.left) * self._seconds), first=first)

    def _filled(self, key: str) -> Bucket:
        """The key's bucket with what was given since. A clock that was set back gives nothing."""
        now = self._clock.now_us()
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(self._burst, now)
            if len(self._buckets) > self._max:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(key)
        given = max(0, now - bucket.at) / MICROSECONDS / self._seconds
        bucket.left, bucket.at = min(self._burst, bucket.left + given), now
        return bucket

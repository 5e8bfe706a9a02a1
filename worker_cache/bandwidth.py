"""So many bytes a second, and no more: a token bucket that holds one second's worth.

>>> import asyncio
>>> slept = []
>>> async def sleep(seconds): slept.append(seconds)
>>> bucket = Bandwidth(100, clock=lambda: 5.0, sleep=sleep)
>>> async def take(): await bucket.take(100); await bucket.take(50); await bucket.take(50)
>>> asyncio.run(take()); slept
[0.5, 1.0]
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable


class Bandwidth:
    """For one event loop. A rate of 0 is no limit."""

    def __init__(
        self, bytes_per_second: float, *, clock: Callable[[], float], sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self._rate = bytes_per_second
        self._clock, self._sleep = clock, sleep
        self._held, self._at = bytes_per_second, clock()

    async def take(self, count: int) -> None:
        """Returns when these bytes are within the rate. Who comes later waits for who came before."""
        if not self._rate:
            return
        now = self._clock()
        self._held = min(self._rate, self._held + (now - self._at) * self._rate) - count
        self._at = now
        if self._held < 0:
            await self._sleep(-self._held / self._rate)

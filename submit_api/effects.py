"""What the service needs of the outside world besides disk and network: the time and randomness, as arguments."""

from __future__ import annotations

import secrets
import time
from typing import Protocol

MICROSECONDS = 1_000_000  # in a second


class Clock(Protocol):
    """Wall-clock time."""

    def now_us(self) -> int:
        """Microseconds since 1970 (UTC)."""


class Randomness(Protocol):
    """Unpredictable bytes."""

    def token_bytes(self, count: int) -> bytes:
        """`count` bytes that nobody can guess."""


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        return time.time_ns() // 1000


class SystemRandomness:
    """The kernel's random number generator."""

    def token_bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)

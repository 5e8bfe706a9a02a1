"""How long to wait before trying again: doubling, capped, with full jitter so that many agents do not come back at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

Jitter = Callable[[], float]

FIRST_SECONDS = 0.5
CAP_SECONDS = 30.0


def delays(jitter: Jitter, *, first: float = FIRST_SECONDS, cap: float = CAP_SECONDS) -> Iterator[float]:
    """Endless seconds to wait. `jitter` gives a number in [0, 1); a wait is never under a tenth of its step.

    >>> steps = delays(lambda: 0.5, first=1.0, cap=4.0)
    >>> [round(next(steps), 2) for _ in range(4)]
    [0.55, 1.1, 2.2, 2.2]
    """
    step = first
    while True:
        yield step * (0.1 + 0.9 * jitter())
        step = min(cap, step * 2)

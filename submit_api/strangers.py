"""Refusals of callers who prove nothing. Anybody who reaches the port can cause them, so their record has a limit.

Promise: in each minute at most `per_minute` of them are written one by one, at most a quarter of that for one address; the
rest is counted, and when the minute is over one event says how many there were. What is counted and not yet written is
lost with the process. No I/O: the time is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_US = 60_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """So many were not written one by one, from `since` on."""

    refusals: int
    since: int

    def __str__(self) -> str:
        return f"{self.refusals} more requests that proved nothing were refused and not written one by one"


class Strangers:
    """The count of one process."""

    def __init__(self, per_minute: int) -> None:
        self._most, self._most_of_one = per_minute, max(per_minute // 4, 1)
        self._begin(0)

    def _begin(self, now: int) -> None:
        self._since, self._written, self._left_out = now, 0, 0
        self._of: dict[str, int] = {}

    def admit(self, address: str, now: int) -> bool:
        """Whether this refusal is written. Ask `over` first: a minute that is over is not begun anew here."""
        if self._since == 0:
            self._since = now
        if self._written >= self._most or self._of.get(address, 0) >= self._most_of_one:
            self._left_out += 1
            return False
        self._written += 1
        self._of[address] = self._of.get(address, 0) + 1
        return True

    def over(self, now: int, *, anyway: bool = False) -> LeftOut | None:
        """Begin a new minute when the last is over, or `anyway`: what it left out, to be written now. A clock that was set
        back ends it too."""
        if not anyway and 0 <= now - self._since < WINDOW_US:
            return None
        left_out = LeftOut(refusals=self._left_out, since=self._since) if self._left_out else None
        self._begin(now)
        return left_out

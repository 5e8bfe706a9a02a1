"""The numbers of the audit log: each is one more than the one before, and what is missing is explained by what is there.

Retention takes events away from the front only, and leaves `audit.remove` with the object `audit:1-N`: numbers 1 to N are
gone. Whatever else is missing was taken by somebody else. No I/O: used by fsck, and by `dagseal audit verify`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

REMOVE, EXPORT = "audit.remove", "audit.export"
MAX_FINDINGS = 20
_RANGE = re.compile(r"audit:([0-9]{1,16})-([0-9]{1,16})")


def named(first: int, last: int) -> str:
    """How an event names a range of events, both ends included, as its object."""
    return f"audit:{first}-{last}"


def read(about: str) -> tuple[int, int] | None:
    """The range that an object names, if it names one."""
    found = _RANGE.fullmatch(about)
    return (int(found[1]), int(found[2])) if found else None


def exported_through(first: int, exports: Iterable[str]) -> int:
    """Up to which number exports that joined on to each other left nothing out; what is before `first` is gone already.
    `exports` are their objects, in order."""
    through = first - 1
    for begin, end in filter(None, map(read, exports)):
        if begin <= through + 1:
            through = max(through, end)
    return through


class Numbers:
    """Hears events in their order, or of each only what matters; then says what is wrong. `after`: the number before the
    log that is heard."""

    def __init__(self, after: int = 0) -> None:
        self.first, self.last, self.count, self.removed_through = 0, after, 0, 0
        self._jumps: list[tuple[int, int]] = []

    def hear(self, seq: int, action: str, about: str) -> None:
        """One event."""
        self.jump(self.last, seq)
        self.last, self.count = seq, self.count + 1
        if action == REMOVE:
            self.removed(about)

    def jump(self, before: int, seq: int) -> None:
        """These two stand beside each other."""
        self.first = self.first or seq
        if seq != before + 1:
            self._jumps.append((before, seq))

    def removed(self, about: str) -> None:
        """Retention said this of what it removed."""
        self.removed_through = max(self.removed_through, (read(about) or (0, 0))[1])

    def findings(self) -> list[str]:
        """Each is a sentence; none when every number is there or explained."""
        found = []
        for before, seq in self._jumps:
            if seq <= before:
                found.append(f"number {seq} stands after number {before}")
            elif seq - 1 > self.removed_through:
                found.append(f"numbers {before + 1} to {seq - 1} are missing, and no event says why")
        if 0 < self.first <= self.removed_through:
            found.append(
                f"number {self.first} is there, but numbers 1 to {self.removed_through} are said to be removed"
            )
        return found[:MAX_FINDINGS]

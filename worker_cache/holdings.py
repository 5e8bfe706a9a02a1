"""What the cache holds, by its own record: how long each entry is, when it was used and verified; what is pinned and wanted.

The record is of this process: it is filled from the folder's names once, in the background, and kept up from then on. It
decides what is evicted and scrubbed, and is what a drift report says. It is believed in no use: each hashes the bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from integrity.digests import Digest


@dataclass(slots=True, kw_only=True)
class Entry:
    """`verified_at` is 0 where it was not yet, by this process."""

    size: int
    verified_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What a report says: every entry, in order; and what was found damaged since the start and is not good again."""

    digests: tuple[Digest, ...]
    damaged: frozenset[Digest]


class Record:
    """For one event loop. Entries are in the order of their use, the last used at the end."""

    def __init__(self) -> None:
        self.entries: OrderedDict[Digest, Entry] = OrderedDict()
        self.size = 0
        self.reserved: dict[Digest, list[int]] = {}  # by each who fetches it
        self.parts: dict[Digest, int] = {}
        self.wanted: dict[Digest, int] = {}
        self.damaged: set[Digest] = set()
        self._pinned: dict[str, int] = {}  # by text, whose hash is kept: every launch asks here
        self._gone: set[Digest] | None = set()  # while the folder's names are being read

    @property
    def taken(self) -> int:
        """Bytes on disk, or soon to be."""
        return self.size + sum(map(sum, self.reserved.values())) + sum(self.parts.values())

    def fill(self, found: Iterable[tuple[Digest, int, float]], parts: Iterable[tuple[Digest, int]]) -> None:
        """What the folder held, with the time of its last use; what was done meanwhile is newer."""
        gone, self._gone = self._gone or set(), None
        for digest, size, _ in sorted(found, key=lambda one: one[2], reverse=True):
            if digest not in gone and digest not in self.entries:
                self.entries[digest] = Entry(size=size, verified_at=0.0)
                self.entries.move_to_end(digest, last=False)
                self.size += size
        self.parts |= {digest: size for digest, size in parts if digest not in self.reserved}

    def verified(self, digest: Digest, size: int, now: float, *, used: bool = True) -> None:
        """It is there, and was just found right."""
        entry = self.entries.get(digest)
        if entry is None:
            self.entries[digest] = Entry(size=size, verified_at=now)
            self.size += size
        else:
            entry.verified_at = now
            if used:
                self.entries.move_to_end(digest)
        if self.damaged:
            self.damaged.discard(digest)

    def removed(self, digest: Digest) -> None:
        """It is not there, or not any more."""
        if self._gone is not None:
            self._gone.add(digest)
        entry = self.entries.pop(digest, None)
        if entry is not None:
            self.size -= entry.size

    def spoilt(self, digest: Digest) -> bool:
        """It was found damaged and is put aside; whether that is news."""
        known = digest in self.damaged
        self.removed(digest)
        self.damaged.add(digest)
        return not known

    @contextmanager
    def pin(self, digest: Digest) -> Iterator[None]:
        self._pinned[digest.hex] = self._pinned.get(digest.hex, 0) + 1
        try:
            yield
        finally:
            left = self._pinned.pop(digest.hex) - 1
            if left:
                self._pinned[digest.hex] = left

    def victims(self, excess: int, *, also_wanted: bool) -> list[Digest] | None:
        """Whose removal frees so many bytes: what is not wanted first, the longest unused of each first; None where all of
        them would not do. What is pinned or under way is none."""
        chosen: list[Digest] = []
        for of_wanted in (False, True) if also_wanted else (False,):
            for digest, entry in self.entries.items():
                if excess <= 0:
                    return chosen
                if (digest in self.wanted) != of_wanted or digest.hex in self._pinned or digest in self.reserved:
                    continue
                chosen.append(digest)
                excess -= entry.size
        return chosen if excess <= 0 else None

    def holdings(self) -> Holdings:
        return Holdings(
            digests=tuple(sorted(self.entries, key=lambda digest: digest.hex)), damaged=frozenset(self.damaged)
        )

"""RFC 6962, section 2.1, and RFC 9162, sections 2.1.3.2 and 2.1.4.2, written down again: as slow and as plain as the text.

`vocabulary.merkle` keeps peaks and walks bits; here a tree is a list of entries that is split in two, and a proof is verified
by computing both roots from it. Nothing here is imported from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def below(size: int) -> int:
    """The largest power of two smaller than `size`."""
    power = 1
    while power * 2 < size:
        power *= 2
    return power


class Log:
    """The definitions over one list of entries; what was computed of a range is kept."""

    def __init__(self, entries: Sequence[bytes]) -> None:
        self.entries = entries
        self.root = cache(self._root)

    def _root(self, start: int, end: int) -> bytes:
        """MTH(D[start:end])."""
        size = end - start
        if size == 0:
            return sha256(b"")
        if size == 1:
            return sha256(b"\x00" + self.entries[start])
        middle = start + below(size)
        return sha256(b"\x01" + self.root(start, middle) + self.root(middle, end))

    def path(self, index: int, start: int, end: int) -> list[bytes]:
        """PATH(m, D[n])."""
        if end - start == 1:
            return []
        middle = start + below(end - start)
        if start + index < middle:
            return [*self.path(index, start, middle), self.root(middle, end)]
        return [*self.path(index - (middle - start), middle, end), self.root(start, middle)]

    def proof(self, old: int, new: int) -> list[bytes]:
        """PROOF(m, D[n]), for 0 < m < n; of none and of all there is nothing to prove."""
        return [] if old in (0, new) else self._subproof(old, 0, new, True)

    def _subproof(self, old: int, start: int, end: int, whole: bool) -> list[bytes]:
        size = end - start
        if old == size:
            return [] if whole else [self.root(start, end)]
        middle = start + below(size)
        if old <= middle - start:
            return [*self._subproof(old, start, middle, whole), self.root(middle, end)]
        return [*self._subproof(old - (middle - start), middle, end, False), self.root(start, middle)]


def root_by_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root that this path leads to, from the top down; None where it has another length."""
    if size == 1:
        return leaf if not path else None
    if not path:
        return None
    middle, rest, other = below(size), path[:-1], path[-1]
    if index < middle:
        left = root_by_path(leaf, index, middle, rest)
        return None if left is None else sha256(b"\x01" + left + other)
    right = root_by_path(leaf, index - middle, size - middle, rest)
    return None if right is None else sha256(b"\x01" + other + right)


def roots_by_proof(
    old: int, size: int, known: bytes, proof: Sequence[bytes], whole: bool = True
) -> tuple[bytes, bytes] | None:
    """The old and the new root that this proof leads to, from the top down; `known` is the old one."""
    if old == size:
        if whole:
            return (known, known) if not proof else None
        return (proof[0], proof[0]) if len(proof) == 1 else None
    if not proof:
        return None
    middle, rest, other = below(size), proof[:-1], proof[-1]
    if old <= middle:
        found = roots_by_proof(old, middle, known, rest, whole)
        return None if found is None else (found[0], sha256(b"\x01" + found[1] + other))
    found = roots_by_proof(old - middle, size - middle, known, rest, False)
    return None if found is None else (sha256(b"\x01" + other + found[0]), sha256(b"\x01" + other + found[1]))

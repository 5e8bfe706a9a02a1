"""Merkle trees as RFC 6962, section 2.1, has them (SHA-256): a log's root, and proofs that need little of the log.

A leaf's hash begins with 0x00, a node's with 0x01, so that neither is taken for the other. Proofs are lists of hashes from
the bottom up, as in RFC 9162, sections 2.1.3 and 2.1.4. `Tree` is all that has to be kept of a log to go on with it: the roots
of its perfect subtrees, at most one for each bit of the size.

>>> Tree().root.hex()[:16]
'e3b0c44298fc1c14'
>>> one, two = leaf_hash(b"one"), leaf_hash(b"two")
>>> Tree().extended([one, two]).root == node_hash(one, two)
True
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from integrity.errors import MalformedError, SignatureError

HASH_BYTES = 32
MAX_PATH = 63
RangeHash = Callable[[int, int], bytes]  # the root of the leaves from here to before there


def leaf_hash(entry: bytes) -> bytes:
    return hashlib.sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


@dataclass(frozen=True, slots=True)
class Tree:
    """A log of `size` leaves by its `peaks`: the roots of its perfect subtrees, from the largest to the smallest."""

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 0 or len(self.peaks) != self.size.bit_count():
            raise MalformedError(f"a tree of {self.size} leaves does not have {len(self.peaks)} perfect subtrees")
        if any(len(peak) != HASH_BYTES for peak in self.peaks):
            raise MalformedError(f"a hash of a tree is {HASH_BYTES} bytes")

    @classmethod
    def from_bytes(cls, size: int, peaks: bytes) -> Tree:
        """Undo `joined`. Raises `MalformedError`."""
        found = (peaks[at : at + HASH_BYTES] for at in range(0, len(peaks), HASH_BYTES))
        return cls(size, tuple(found))

    @property
    def joined(self) -> bytes:
        """The peaks, one after the other."""
        return b"".join(self.peaks)

    @property
    def root(self) -> bytes:
        if not self.peaks:
            return hashlib.sha256(b"").digest()
        root = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            root = node_hash(peak, root)
        return root

    def extended(self, hashes: Iterable[bytes]) -> Tree:
        """With these leaves' hashes after its own."""
        size, peaks = self.size, list(self.peaks)
        for found in hashes:
            for _ in range((size ^ (size + 1)).bit_length() - 1):  # as many carries as the size ends with ones
                found = node_hash(peaks.pop(), found)
            peaks.append(found)
            size += 1
        return Tree(size, tuple(peaks))


def root_of(hashes: Sequence[bytes]) -> bytes:
    """Of the leaves' hashes."""
    return Tree().extended(hashes).root


def inclusion_proof(index: int, size: int, of: RangeHash) -> list[bytes]:
    """That leaf `index` is in the tree of `size` leaves. `IndexError` when it is not."""
    if not 0 <= index < size:
        raise IndexError(f"a log of {size} leaves has no leaf {index}")
    return _path(index, 0, size, of)


def _path(index: int, start: int, end: int, of: RangeHash) -> list[bytes]:
    if end - start == 1:
        return []
    split = start + _split(end - start)
    if index < split:
        return [*_path(index, start, split, of), of(split, end)]
    return [*_path(index, split, end, of), of(start, split)]


def consistency_proof(old: int, new: int, of: RangeHash) -> list[bytes]:
    """That the tree of `old` leaves is the beginning of that of `new`. `IndexError` when it cannot be."""
    if not 0 <= old <= new:
        raise IndexError(f"a log of {old} leaves is not the beginning of one of {new}")
    return [] if old in (0, new) else _subproof(old, 0, new, of, whole=True)


def _subproof(old: int, start: int, end: int, of: RangeHash, *, whole: bool) -> list[bytes]:
    if old == end - start:
        return [] if whole else [of(start, end)]
    split = _split(end - start)
    if old <= split:
        return [*_subproof(old, start, start + split, of, whole=whole), of(start + split, end)]
    return [*_subproof(old - split, start + split, end, of, whole=False), of(start, start + split)]


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """RFC 9162, section 2.1.3.2. Raises `SignatureError` unless the leaf of this hash is number `index` below `root`."""
    _check(proof)
    if not 0 <= index < size:
        raise SignatureError(f"a log of {size} leaves has no leaf {index}")
    at, last, found = index, size - 1, leaf
    for other in proof:
        if last == 0:
            raise SignatureError("the inclusion proof is too long")
        if at & 1 or at == last:
            found = node_hash(other, found)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, other)
        at, last = at >> 1, last >> 1
    if last or found != root:
        raise SignatureError(f"leaf {index} is not in the log of {size} leaves with that root")


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> None:
    """RFC 9162, section 2.1.4.2. Raises `SignatureError` unless the log of `old` leaves is the beginning of that of `new`."""
    _check(proof)
    wrong = SignatureError(
        f"the log of {new} leaves does not go on from the known one of {old}: somebody changed its past"
    )
    if not 0 <= old <= new or (old in (0, new) and proof):
        raise wrong
    if old == 0 or old == new:
        if old_root != (new_root if old else root_of([])):
            raise wrong
        return
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not path:
        raise wrong
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    first = second = path[0]
    for other in path[1:]:
        if last == 0:
            raise wrong
        if at & 1 or at == last:
            first, second = node_hash(other, first), node_hash(other, second)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            second = node_hash(second, other)
        at, last = at >> 1, last >> 1
    if last or first != old_root or second != new_root:
        raise wrong


def _check(proof: Sequence[bytes]) -> None:
    if len(proof) > MAX_PATH or any(len(found) != HASH_BYTES for found in proof):
        raise MalformedError(f"a proof is at most {MAX_PATH} hashes of {HASH_BYTES} bytes")

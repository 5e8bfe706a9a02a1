"""What a cache holds, as one hash: the root of a Merkle tree over its digests in order.

An agent that says this root says of every blob that it has it, and that it has no other; the same root from the other side
is agreement about all of them.

>>> root([Digest.of(b"b"), Digest.of(b"a")]) == root([Digest.of(b"a"), Digest.of(b"b")])
True
"""

from __future__ import annotations

from collections.abc import Iterable

from integrity.digests import Digest
from vocabulary import merkle


def root(digests: Iterable[Digest]) -> bytes:
    """32 bytes. Each digest counts once."""
    return merkle.root_of([merkle.leaf_hash(bytes.fromhex(one)) for one in sorted({digest.hex for digest in digests})])

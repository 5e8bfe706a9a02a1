"""New leaves and their blobs in one answer: read as they were written, or refused."""

from __future__ import annotations

import pytest

from integrity.digests import Digest
from integrity.errors import MalformedError
from vocabulary import blobframes, lognews, tiles

LEAVES = tiles.bundle([b"one", b"two"])
BLOBS = [(Digest.of(body), body) for body in (b"dag\n", b"", b"x" * 5000)]


@pytest.mark.parametrize("count", range(4))
def test_what_was_written_is_read(count: int) -> None:
    assert lognews.decode(lognews.encode(LEAVES, BLOBS[:count])) == (LEAVES, BLOBS[:count])


def test_every_beginning_is_refused_or_ends_between_two_blobs() -> None:
    whole = lognews.encode(LEAVES, BLOBS)
    ends = {len(lognews.encode(LEAVES, BLOBS[:count])): BLOBS[:count] for count in range(4)}
    for end in range(len(whole)):
        if end in ends:
            assert lognews.decode(whole[:end]) == (LEAVES, ends[end])
        else:
            with pytest.raises(MalformedError):
                lognews.decode(whole[:end])


@pytest.mark.parametrize(
    "after",
    [b"\n", b"x" * 500, blobframes.refusal(BLOBS[0][0], "not-found"), blobframes.header(BLOBS[0][0], 5) + b"dag\n"],
)
def test_what_is_no_frame_is_refused(after: bytes) -> None:
    with pytest.raises(MalformedError):
        lognews.decode(lognews.encode(LEAVES, BLOBS) + after)

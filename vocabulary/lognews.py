"""New leaves of the log, and beside them the small blobs that they make active: one answer, where each would be asked for next.

    <length of the leaves, 4 bytes, big-endian><the leaves (`vocabulary.tiles`)><frames of blobs (`vocabulary.blobframes`)>

>>> encode(b"\\0\\1a", [])
b'\\x00\\x00\\x00\\x03\\x00\\x01a'
>>> decode(encode(b"\\0\\1a", [(Digest.of(b"dag"), b"dag")]))[1][0][1]
b'dag'

Neither part vouches for the other: leaves are believed by the checkpoint that they lead to, and a blob by its digest, when one
of them names it.
"""

from __future__ import annotations

from collections.abc import Iterable

from integrity.digests import Digest
from integrity.errors import MalformedError
from vocabulary import blobframes

MEDIA_TYPE = "application/vnd.dagseal.log-news"
MAX_BLOBS_BYTES = 1024 * 1024
_LENGTH_BYTES = 4

Blob = tuple[Digest, bytes]  # what it is said to be, and what it is


def encode(leaves: bytes, blobs: Iterable[Blob]) -> bytes:
    frames = (blobframes.header(digest, len(data)) + data for digest, data in blobs)
    return len(leaves).to_bytes(_LENGTH_BYTES, "big") + leaves + b"".join(frames)


def decode(data: bytes) -> tuple[bytes, list[Blob]]:
    """The leaves and the blobs, none of which is verified. Raises `MalformedError`."""
    at = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "big")
    if len(data) < at:
        raise MalformedError("the log's news end within their leaves")
    leaves, blobs = data[_LENGTH_BYTES:at], []
    while at < len(data):
        begin = data.find(b"\n", at, at + blobframes.MAX_LINE_BYTES) + 1
        frame = blobframes.parse(data[at:begin])
        at = begin + frame.size
        if frame.slug or at > len(data):
            raise MalformedError("the log's news end within a blob, or have one without its bytes")
        blobs.append((frame.digest, data[begin:at]))
    return leaves, blobs

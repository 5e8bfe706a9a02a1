"""Many blobs in one answer: for each digest that was asked for, in that order, one line, and then its bytes or nothing.

    <digest> <length in decimal>\\n<that many bytes>
    <digest> <slug of the error, as its problem document has it>\\n

>>> header(Digest.of(b"dag"), 3)[-7:] + b"dag"
b'8e80 3\\ndag'
>>> refusal(Digest.of(b"dag"), "not-found")[-15:]
b'8e80 not-found\\n'
>>> parse(header(Digest.of(b"dag"), 3)).size
3

Nothing ends the answer but the last frame: who counts them knows that none is missing. A line is at most `MAX_LINE_BYTES`
with its newline. The bytes prove themselves by their digest, and the reader has their length from elsewhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from integrity.digests import Digest
from integrity.errors import MalformedError

MEDIA_TYPE = "application/vnd.dagseal.blobs"
MAX_DIGESTS = 256
MAX_LINE_BYTES = 200
_LINE = re.compile(rb"(sha512:[0-9a-f]{128}) (?:(0|[1-9][0-9]{0,15})|([a-z][a-z0-9-]{0,39}))\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A frame's line: `size` bytes follow, or none does and `slug` says why."""

    digest: Digest
    size: int
    slug: str


def header(digest: Digest, size: int) -> bytes:
    return f"{digest} {size}\n".encode()


def refusal(digest: Digest, slug: str) -> bytes:
    return f"{digest} {slug}\n".encode()


def parse(line: bytes) -> Frame:
    """Raises `MalformedError`."""
    found = _LINE.fullmatch(line)
    if not found:
        raise MalformedError("this is not the line of a blob's frame")
    return Frame(digest=Digest.parse(found[1].decode()), size=int(found[2] or 0), slug=(found[3] or b"").decode())

"""Frames on a unix socket: four bytes of length, big-endian, then canonical JSON `{"kind": …, …}`.

Used between API or agent and launcher, and between launcher, warm process and task. Descriptors travel beside the first
byte of a frame (SCM_RIGHTS); the frame says how many in `fds`. Bytes inside a frame are base64.

>>> encode("cancel", launch_id="00")
b'\\x00\\x00\\x00*{"fds":0,"kind":"cancel","launch_id":"00"}'
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from integrity import canonical
from integrity.errors import MalformedError
from integrity.fields import Fields

HEADER_BYTES = 4
MAX_FRAME_BYTES = 24 * 1024 * 1024
MAX_FDS = 5


@dataclass(frozen=True, slots=True)
class Message:
    """One frame. `fields` still has to be read, by the receiver of that kind, and `done()`."""

    kind: str
    fds: int
    fields: Fields


def encode(kind: str, *, fds: int = 0, **fields: Any) -> bytes:
    """Header and body. Raises `MalformedError` when it is over the limit."""
    body = canonical.dump({"kind": kind, "fds": fds, **fields})
    if len(body) > MAX_FRAME_BYTES:
        raise MalformedError(f"a frame of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return struct.pack(">I", len(body)) + body


def body_length(header: bytes, *, limit: int = MAX_FRAME_BYTES) -> int:
    """The length that a header announces. Raises `MalformedError` before anything of that size is allocated."""
    (length,) = struct.unpack(">I", header)
    if not 0 < length <= limit:
        raise MalformedError(f"a frame of {length} bytes is announced, the limit is {limit}")
    return int(length)


def decode(body: bytes) -> Message:
    """Raises `MalformedError` for anything but one canonical frame body."""
    fields = Fields(canonical.load(body, max_bytes=MAX_FRAME_BYTES), "frame")
    kind = fields.text("kind", max_chars=32)
    fds = fields.integer("fds")
    if fds > MAX_FDS:
        raise MalformedError(f"frame {kind!r}: {fds} descriptors are announced, the limit is {MAX_FDS}")
    return Message(kind=kind, fds=fds, fields=fields)

"""Checkpoints (C2SP tlog-checkpoint): what the log's key says of the whole log at one moment, in a signed note.

    dagseal.dev/log/<id of the log's first key>
    <how many leaves, decimal>
    <base64 of the root's 32 bytes>
    time <seconds since 1970, decimal>

The last line is an extension of ours: without it an old checkpoint could be shown for ever. The signature's key name is
the first line, which stays when the key is changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from integrity.errors import MalformedError, SignatureError, StaleError
from integrity.fields import from_base64, to_base64
from vocabulary import merkle, notes
from vocabulary.keys import SigningKey, VerifyKey
from vocabulary.notes import Note

MAX_BYTES = 16 * 1024
CLOCK_SKEW_SECONDS = 60
_ORIGIN = re.compile(r"dagseal\.dev/log/[0-9a-f]{64}")
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,15}")


def origin_of(first_key: VerifyKey) -> str:
    """The name of the log that begins with this key."""
    return f"dagseal.dev/log/{first_key.key_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """`time` in seconds since 1970."""

    origin: str
    size: int
    root: bytes
    time: int

    def __post_init__(self) -> None:
        if not _ORIGIN.fullmatch(self.origin):
            raise MalformedError(f"checkpoint: {self.origin[:80]!r} is not the name of a dagseal log")
        if len(self.root) != merkle.HASH_BYTES or self.size < 0 or self.time < 0:
            raise MalformedError("checkpoint: a root is 32 bytes; size and time are not negative")

    @property
    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{to_base64(self.root)}\ntime {self.time}\n"

    @classmethod
    def from_text(cls, text: str) -> Checkpoint:
        """Raises `MalformedError` for anything but the four lines above."""
        lines = text.split("\n")
        if len(lines) != 5 or lines[4] or not lines[3].startswith("time "):
            raise MalformedError("checkpoint: it is to have four lines: origin, size, root, time")
        return cls(
            origin=lines[0],
            size=_decimal(lines[1], "size"),
            root=from_base64(lines[2], "checkpoint: the root", max_bytes=merkle.HASH_BYTES),
            time=_decimal(lines[3].removeprefix("time "), "time"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedCheckpoint:
    """Signed by `key_id`. `note` is what was signed, with its signatures: evidence for anybody."""

    checkpoint: Checkpoint
    key_id: str
    note: bytes


def sign(checkpoint: Checkpoint, key: SigningKey) -> bytes:
    """The note's bytes."""
    return notes.sign(checkpoint.text, name=checkpoint.origin, key=key).to_bytes()


def verify(data: bytes, keys: Iterable[VerifyKey], *, origin: str | None = None) -> VerifiedCheckpoint:
    """The checks, in this order: 1 a signed note of at most 16 KiB; 2 one of `keys` signed exactly its text, under the name
    in its first line; 3 the text is a checkpoint's; 4 of the log `origin`, if one is wanted.

    Raises `MalformedError`, `SignatureError`. Not checked here: how old it is (`require_fresh`), and that its log goes on from
    what is known (`merkle.verify_consistency`)."""
    if len(data) > MAX_BYTES:
        raise MalformedError(f"a checkpoint is at most {MAX_BYTES} bytes, not {len(data)}")
    note = Note.from_bytes(data)
    name = note.text.partition("\n")[0]
    signers = note.signers(keys, name)
    if not signers:
        raise SignatureError("the checkpoint is not signed by a key of the log that is trusted here")
    checkpoint = Checkpoint.from_text(note.text)
    if origin is not None and checkpoint.origin != origin:
        raise SignatureError(f"the checkpoint is of log {checkpoint.origin}, followed is {origin}")
    return VerifiedCheckpoint(checkpoint=checkpoint, key_id=signers[-1].key_id, note=data)


def require_fresh(checkpoint: Checkpoint, *, now: int, max_age_seconds: int) -> None:
    """Raises `StaleError` when it is older than that, or from the future by more than a minute."""
    age = now - checkpoint.time
    if age > max_age_seconds:
        raise StaleError(
            f"the newest checkpoint of the log is {age} s old, the limit is {max_age_seconds} s: a revocation could be hidden; "
            "see that the server answers, and that both clocks are right"
        )
    if age < -CLOCK_SKEW_SECONDS:
        raise StaleError(f"the checkpoint is {-age} s in the future: set the clock of this host, or of the server")


def _decimal(text: str, what: str) -> int:
    if not _DECIMAL.fullmatch(text):
        raise MalformedError(f"checkpoint: the {what} is to be a decimal number")
    return int(text)

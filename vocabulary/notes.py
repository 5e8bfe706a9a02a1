"""Signed notes (C2SP signed-note, v1.0.0): a text for people, with signatures below it.

    <text, which ends with a newline>
    <empty line>
    — <key name> <base64 of: key hash, 4 bytes, big-endian; signature>

A key is told by its name and its hash: the first four bytes of SHA-256(name, newline, signature type, public key). Here a
type is 0x01 (Ed25519 over the text) or 0x04 (a witness's timestamped cosignature, C2SP tlog-cosignature).
Signatures of others are allowed and not looked at.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from integrity.errors import MalformedError, SignatureError
from integrity.fields import from_base64, to_base64
from vocabulary.keys import SigningKey, VerifyKey

ED25519, COSIGNATURE = b"\x01", b"\x04"
MAX_NOTE_BYTES = 64 * 1024
MAX_SIGNATURES = 100
_DASH = "\u2014 "
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_NOT_IN_NAME = re.compile(r"[+\s]")


@dataclass(frozen=True, slots=True)
class Signature:
    """One line: whose it says it is, and the bytes after the key's hash."""

    name: str
    key_hash: bytes
    raw: bytes

    @property
    def line(self) -> str:
        return f"{_DASH}{self.name} {to_base64(self.key_hash + self.raw)}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """Parsed, not verified."""

    text: str
    signatures: tuple[Signature, ...]

    def to_bytes(self) -> bytes:
        return (self.text + "\n" + "".join(one.line for one in self.signatures)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Note:
        """Raises `MalformedError`."""
        if len(data) > MAX_NOTE_BYTES:
            raise MalformedError(f"a signed note is at most {MAX_NOTE_BYTES} bytes, not {len(data)}")
        try:
            whole = data.decode()
        except UnicodeDecodeError:
            raise MalformedError("a signed note is UTF-8") from None
        if _CONTROL.search(whole):
            raise MalformedError("a signed note has no control characters but newlines")
        text, gap, below = whole.rpartition("\n\n")
        if not gap or not below.endswith("\n"):
            raise MalformedError(
                "a signed note is a text, an empty line, and signatures, each with a newline at its end"
            )
        lines = below.split("\n")[:-1]
        if len(lines) > MAX_SIGNATURES:
            raise MalformedError(f"a signed note has at most {MAX_SIGNATURES} signatures, not {len(lines)}")
        return cls(text + "\n", tuple(_signature(line) for line in lines))

    def of(self, name: str, key: VerifyKey, kind: bytes = ED25519) -> list[bytes]:
        """What stands there as this key's signatures."""
        wanted = key_hash(name, key, kind)
        return [one.raw for one in self.signatures if one.name == name and one.key_hash == wanted]

    def signers(self, keys: Iterable[VerifyKey], name: str) -> list[VerifyKey]:
        """Which of these keys, under this name, signed exactly this text."""
        return [key for key in keys if any(_holds(key, raw, self.text) for raw in self.of(name, key))]


def _signature(line: str) -> Signature:
    name, space, encoded = line.removeprefix(_DASH).rpartition(" ")
    if not line.startswith(_DASH) or not space:
        raise MalformedError("a signed note: a signature's line is a dash, a name, and base64")
    check_name(name)
    raw = from_base64(encoded, "a signed note: a signature", max_bytes=8 * 1024)
    if len(raw) < 5:
        raise MalformedError("a signed note: a signature is shorter than its key's hash")
    return Signature(name, raw[:4], raw[4:])


def check_name(name: str) -> str:
    """Raises `MalformedError` unless this can name a key: no plus sign, no space of any kind, not empty."""
    if not name or _NOT_IN_NAME.search(name):
        raise MalformedError(f"{name[:80]!r} is not a good name for a note's key: not empty, no '+', no spaces")
    return name


def key_hash(name: str, key: VerifyKey, kind: bytes = ED25519) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + kind + key.raw).digest()[:4]


def sign(text: str, *, name: str, key: SigningKey) -> Note:
    """A note with one signature."""
    if not text.endswith("\n"):
        raise MalformedError("a note's text ends with a newline")
    signature = Signature(check_name(name), key_hash(name, key.public), key.sign(text.encode()))
    return Note(text, (signature,))


def _holds(key: VerifyKey, raw: bytes, text: str) -> bool:
    try:
        key.verify(raw, text.encode())
    except SignatureError:
        return False
    return True

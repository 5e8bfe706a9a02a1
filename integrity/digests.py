"""SHA-512 digests and their two spellings.

`sha512:<128 lower-case hex>` in documents and on screens; `sha-512=:<base64>:` in the `Repr-Digest` header (RFC 9530).

>>> Digest.of(b"").hex[:16]
'cf83e1357eefb8bd'
>>> str(Digest.of(b"dag"))[:23]
'sha512:129af2836b0c5dd9'
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass

from integrity.errors import DigestMismatchError, MalformedError

_HEX = re.compile(r"[0-9a-f]{128}")
_REPR = re.compile(r"sha-512=:([A-Za-z0-9+/]{86}==):")


@dataclass(frozen=True, slots=True)
class Digest:
    """A SHA-512 value; valid by construction."""

    hex: str

    def __post_init__(self) -> None:
        if not _HEX.fullmatch(self.hex):
            raise MalformedError("a SHA-512 digest is 128 lower-case hexadecimal characters")

    @classmethod
    def of(cls, data: bytes | memoryview) -> Digest:
        """Hash `data`."""
        return cls(hashlib.sha512(data).hexdigest())

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read `sha512:<hex>`. Raises `MalformedError`."""
        algorithm, _, value = text.partition(":")
        if algorithm != "sha512":
            raise MalformedError("a digest is written sha512:<128 hexadecimal characters>")
        return cls(value)

    @classmethod
    def from_repr_digest(cls, header: str) -> Digest:
        """Read a `Repr-Digest` field (RFC 9530, section 3) whose only member is sha-512. Raises `MalformedError`."""
        found = _REPR.fullmatch(header.strip())
        if not found:
            raise MalformedError("Repr-Digest is to be sha-512=:<base64 of the 64 digest bytes>:")
        digest = cls(base64.b64decode(found[1]).hex())
        if digest.repr_digest != header.strip():
            raise MalformedError("Repr-Digest: the base64 has stray bits at its end")
        return digest

    @property
    def repr_digest(self) -> str:
        """The `Repr-Digest` field value (RFC 9530)."""
        return f"sha-512=:{base64.b64encode(bytes.fromhex(self.hex)).decode()}:"

    def require(self, actual: Digest, what: str) -> None:
        """Raise `DigestMismatchError`, naming `what`, unless `actual` is this digest."""
        if not hmac.compare_digest(self.hex, actual.hex):
            raise DigestMismatchError(f"{what} is {actual}, not the recorded {self}")

    def __str__(self) -> str:
        return f"sha512:{self.hex}"

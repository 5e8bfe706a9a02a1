"""Strict reading of one decoded JSON object: every field taken once by type, nothing missing, nothing left over."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any, TypeVar

from integrity import names
from integrity.digests import Digest
from integrity.errors import MalformedError

T = TypeVar("T")


class Fields:
    """The fields of one object. Each reader takes its field; `done` refuses what was not taken.

    Every reader raises `MalformedError`, naming the document and the field.
    """

    def __init__(self, value: Any, what: str) -> None:
        if not isinstance(value, dict):
            raise MalformedError(f"{what} is to be an object, not {type(value).__name__}")
        self._left = dict(value)
        self._what = what

    def take(self, key: str) -> Any:
        try:
            return self._left.pop(key)
        except KeyError:
            raise MalformedError(f"{self._what} lacks {key!r}") from None

    def _typed(self, key: str, kind: type[T]) -> T:
        value = self.take(key)
        if type(value) is not kind:
            raise MalformedError(f"{self._what}: {key!r} is to be {kind.__name__}, not {type(value).__name__}")
        return value

    def text(self, key: str, *, max_chars: int = 4096) -> str:
        value = self._typed(key, str)
        if len(value) > max_chars:
            raise MalformedError(f"{self._what}: {key!r} has {len(value)} characters, the limit is {max_chars}")
        return value

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        value = self.text(key)
        if value not in choices:
            raise MalformedError(f"{self._what}: {key!r} is to be one of {', '.join(choices)}, not {value!r}")
        return value

    def name(self, key: str, kind: str) -> str:
        return names.check(kind, self.take(key))

    def integer(self, key: str, *, least: int = 0) -> int:
        value = self._typed(key, int)
        if value < least:
            raise MalformedError(f"{self._what}: {key!r} is {value}, the least is {least}")
        return value

    def boolean(self, key: str) -> bool:
        return self._typed(key, bool)

    def digest(self, key: str) -> Digest:
        return Digest.parse(self.text(key))

    def binary(self, key: str, *, max_bytes: int) -> bytes:
        max_chars = (max_bytes + 2) // 3 * 4
        return from_base64(self.text(key, max_chars=max_chars), f"{self._what}: {key!r}", max_bytes=max_bytes)

    def optional(self, key: str, read: Callable[[str], T]) -> T | None:
        """`None` where the field is null, else what `read` (a method of this object) makes of it."""
        if key in self._left and self._left[key] is None:
            del self._left[key]
            return None
        return read(key)

    def items(self, key: str, *, max_items: int) -> list[Any]:
        value = self._typed(key, list)
        if len(value) > max_items:
            raise MalformedError(f"{self._what}: {key!r} has {len(value)} items, the limit is {max_items}")
        return value

    def keys(self) -> list[str]:
        """The names that were not taken yet, for objects whose keys are data."""
        return sorted(self._left)

    def version(self, expected: int) -> None:
        found = self.integer("v")
        if found != expected:
            raise MalformedError(f"{self._what}: version {found} is not known here, only {expected}")

    def done(self) -> None:
        if self._left:
            raise MalformedError(f"{self._what} has unknown fields: {', '.join(sorted(self._left))[:200]}")


def to_base64(raw: bytes) -> str:
    """Standard base64 with padding (RFC 4648, section 4)."""
    return base64.b64encode(raw).decode()


def from_base64(text: str, what: str, *, max_bytes: int) -> bytes:
    """The one reading of `text`: stray bits, white space and missing padding are refused (`MalformedError`)."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedError(f"{what} is not base64") from None
    if len(raw) > max_bytes:
        raise MalformedError(f"{what} is {len(raw)} bytes, the limit is {max_bytes}")
    if to_base64(raw) != text:
        raise MalformedError(f"{what} is not canonical base64")
    return raw

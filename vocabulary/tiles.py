"""Tiles (C2SP tlog-tiles): the log as files that never change, which any web server or cache can hand out.

A tile of level 0 holds the hashes of 256 leaves, one of level n those of 256 tiles below; an entry bundle holds 256 leaves
themselves, each with its length before it (two bytes, big-endian). The last of each may be partial: `….p/<width>`.

    tile/<level>/<number>[.p/<width>]      tile/entries/<number>[.p/<width>]

Numbers are written in groups of three digits, all but the last with an x: 1234067 is x001/x234/067.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from integrity.errors import MalformedError

WIDTH = 256
MAX_ENTRY_BYTES = 65535
ENTRIES = "entries"
_PATH = re.compile(r"(entries|[0-7])/((?:x[0-9]{3}/){0,4}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


@dataclass(frozen=True, slots=True)
class TilePath:
    """`level` None is the entries'. `width` of 256 is a full one."""

    level: int | None
    number: int
    width: int = WIDTH

    @classmethod
    def parse(cls, path: str) -> TilePath:
        """What stands after `tile/`. Raises `MalformedError` unless it is the one spelling."""
        found = _PATH.fullmatch(path)
        if found:
            number = int(found[2].replace("x", "").replace("/", ""))
            made = cls(None if found[1] == ENTRIES else int(found[1]), number, int(found[3] or WIDTH))
            if made.width <= WIDTH and str(made) == path:
                return made
        raise MalformedError(f"{path[:80]!r} is not the path of a tile")

    def __str__(self) -> str:
        digits = f"{self.number:03}"
        digits = digits.rjust(-(-len(digits) // 3) * 3, "0")
        groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
        named = "/".join([*("x" + group for group in groups[:-1]), groups[-1]])
        partial = "" if self.width == WIDTH else f".p/{self.width}"
        return f"{ENTRIES if self.level is None else self.level}/{named}{partial}"


def bundle(entries: Iterable[bytes]) -> bytes:
    """Entries with their lengths. Raises `MalformedError` for one over 65,535 bytes."""
    parts = []
    for entry in entries:
        if not 0 < len(entry) <= MAX_ENTRY_BYTES:
            raise MalformedError(f"an entry of the log is 1 to {MAX_ENTRY_BYTES} bytes, not {len(entry)}")
        parts += [len(entry).to_bytes(2, "big"), entry]
    return b"".join(parts)


def entries_of(data: bytes) -> list[bytes]:
    """Undo `bundle`. Raises `MalformedError` when it ends within an entry, or has an empty one."""
    found, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        if not size or at + 2 + size > len(data):
            raise MalformedError("the bundle of log entries is cut off, or has an empty entry")
        found.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    return found

"""Python source is text that a person and every interpreter read alike; syntax is not looked at, nothing is compiled.

Refused, by rule: `source-too-large`, `source-bom`, `source-encoding` (not UTF-8, or a control character in it),
`source-encoding-cookie` (PEP 263, any but utf-8: some codecs turn a comment into code), `source-bare-cr` (a line end to
Python, not to an editor), `source-bidi` (text that is shown in another order than it runs), `line-too-long`.

>>> check("etl.py", b"# coding: utf-7\\n")
Traceback (most recent call last):
integrity.errors.UnsafeArchiveError: etl.py: declares the encoding 'utf-7': save it as UTF-8 and remove the declaration
"""

from __future__ import annotations

import re

from integrity.errors import UnsafeArchiveError
from integrity.limits import DEFAULT, Limits

_BOM = b"\xef\xbb\xbf"
_COOKIE = re.compile(rb"[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)", re.ASCII)  # PEP 263, and how the tokenizer reads it
_CONTROL = re.compile(r"[^\t\n\f\r\x20-\x7e\x80-\U0010ffff]")
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")
_BARE_CR = re.compile(rb"\r(?!\n)")


def check(name: str, source: bytes, limits: Limits = DEFAULT) -> None:
    """Raise `UnsafeArchiveError` naming the first rule that `source` breaks."""
    if len(source) > limits.max_source_bytes:
        raise UnsafeArchiveError(
            "source-too-large",
            f"{len(source)} bytes of Python, the limit is {limits.max_source_bytes}: split it into modules of a zip",
            name,
        )
    if source.startswith(_BOM):
        raise UnsafeArchiveError("source-bom", "begins with a byte order mark: save it as UTF-8 without one", name)
    try:
        text = source.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnsafeArchiveError(
            "source-encoding", f"is not UTF-8 at byte {error.start}: save it as UTF-8", name
        ) from None
    if found := _CONTROL.search(text):
        raise UnsafeArchiveError(
            "source-encoding",
            f"line {_line(text, found)} holds the control character U+{ord(found[0]):04X}: write it as an escape",
            name,
        )
    if bare := _BARE_CR.search(source):
        raise UnsafeArchiveError(
            "source-bare-cr",
            f"byte {bare.start()} is a carriage return without a line feed: use one kind of line end",
            name,
        )
    for line in source.split(b"\n", 2)[:2]:
        cookie = _COOKIE.match(line)
        if cookie and cookie[1].lower().replace(b"_", b"-") not in (b"utf-8", b"utf8"):
            raise UnsafeArchiveError(
                "source-encoding-cookie",
                f"declares the encoding {cookie[1].decode()!r}: save it as UTF-8 and remove the declaration",
                name,
            )
    if found := _BIDI.search(text):
        raise UnsafeArchiveError(
            "source-bidi",
            f"line {_line(text, found)} holds U+{ord(found[0]):04X}, which reorders the text: write it as an escape",
            name,
        )
    for number, line in enumerate(source.split(b"\n"), 1):
        if len(line) > limits.max_line_bytes:
            raise UnsafeArchiveError(
                "line-too-long", f"line {number} has {len(line)} bytes, the limit is {limits.max_line_bytes}", name
            )


def _line(text: str, found: re.Match[str]) -> int:
    return text.count("\n", 0, found.start()) + 1

"""Python source is text that a person and every interpreter read alike; syntax is not looked at, nothing is compiled.

Refused, by rule: `source-too-large`, `source-bom`, `source-encoding` (not UTF-8, or a control character in it),
`source-encoding-cookie` (PEP 263, any but utf-8: some codecs turn a comment into code), `source-bare-cr` (a line end to
Python, not to an editor), `source-bidi` (text that is shown in another order than it runs), `line-too-long`.
`check_identifiers` is for the process that is about to compile the source, and for no other: it reads tokens. It refuses
`source-homoglyph`, a name that Python takes for another one (PEP 3131: `ｏｓ` is `os`), which a search does not find.

>>> check("etl.py", b"# coding: utf-7\\n")
Traceback (most recent call last):
integrity.errors.UnsafeArchiveError: etl.py: declares the encoding 'utf-7': save it as UTF-8 and remove the declaration
"""

from __future__ import annotations

import io
import re
import tokenize
import unicodedata
from collections.abc import Iterator

from integrity.errors import UnsafeArchiveError
from vocabulary.limits import DEFAULT, Limits

_BOM = b"\xef\xbb\xbf"
_COOKIE = re.compile(rb"[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)", re.ASCII)  # PEP 263, and how the tokenizer reads it
_CONTROL = re.compile(r"[^\t\n\f\r\x20-\x7e\x80-\U0010ffff]")
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")
_BARE_CR = re.compile(rb"\r(?!\n)")
_TEMPLATE = re.compile(r"(?i)(?:[ft]r?|r[ft])['\"]")
_WORD = re.compile(r"\w+")


def check(name: str, source: bytes, limits: Limits = DEFAULT) -> None:
    """Raise `UnsafeArchiveError` naming the first rule that `source` breaks."""
    check_size(name, len(source), limits)
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


def check_size(name: str, size: int, limits: Limits = DEFAULT) -> None:
    """What needs no more than the size. Raises `UnsafeArchiveError`."""
    if size > limits.max_source_bytes:
        raise UnsafeArchiveError(
            "source-too-large",
            f"{size} bytes of Python, the limit is {limits.max_source_bytes}: split it into modules of a zip",
            name,
        )


def check_identifiers(name: str, source: bytes) -> None:
    """Raise `UnsafeArchiveError` where an identifier of a checked source is not its own NFKC form."""
    text = source.decode("utf-8")
    if unicodedata.is_normalized("NFKC", text):
        return
    try:
        for line, word in _words_of_code(text):
            if not unicodedata.is_normalized("NFKC", word):
                raise UnsafeArchiveError(
                    "source-homoglyph",
                    f"line {line} writes {unicodedata.normalize('NFKC', word)!r} in other characters: use the plain ones",
                    name,
                )
    except (tokenize.TokenError, SyntaxError):
        return  # no Python at all, which the compiler says better


def _words_of_code(text: str) -> Iterator[tuple[int, str]]:
    """Every identifier with its line. Before Python 3.12 an f-string is one token: of it, what is in braces."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string
        elif token.type == tokenize.STRING and _TEMPLATE.match(token.string):
            for part in token.string.replace("{{", "").split("{")[1:]:
                yield from ((token.start[0], word) for word in _WORD.findall(part))
        elif token.type == tokenize.ERRORTOKEN and token.string.isidentifier():
            yield token.start[0], token.string


def _line(text: str, found: re.Match[str]) -> int:
    return text.count("\n", 0, found.start()) + 1

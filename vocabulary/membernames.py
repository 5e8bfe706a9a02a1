"""Which names the members of a zip may have: those that every reader and every file system take for the same file.

A name is relative, slash-separated, NFC, short, without empty, `.` or `..` segments, control, format or reserved characters,
characters that Unicode does not have yet, or device names. Together no two names may be one file anywhere (case, Unicode,
file or folder).
What Python would run unasked, or instead of its own modules, is refused by name as well.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable
from typing import NoReturn

from integrity.errors import UnsafeArchiveError
from vocabulary.limits import DEFAULT, Limits

_DRIVE = re.compile(r"[A-Za-z]:")
_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$", *(f"{d}{n}" for d in ("com", "lpt") for n in "0123456789¹²³")]
)
_COMPILED = re.compile(r".*\.(?:py[cod]|so(?:\.[0-9]+)*|dll|dylib)")
_NESTED = re.compile(r".*\.(?:zip|whl|egg|jar|pyz|7z|rar|tgz|tbz2?|txz|tar(?:\.(?:gz|bz2|xz|zst|lzma|z))?)")
_STARTUP = frozenset({"sitecustomize", "usercustomize"})
_OURS = frozenset(
    {
        *("integrity", "vocabulary", "submit_api", "worker_cache", "launcher", "notary", "dagseal"),
        *("airflow", "cryptography", "__main__"),
    }
)


def decode(raw: bytes, *, utf8: bool) -> str:
    """The name's text. Without the UTF-8 flag only ASCII has one reading."""
    try:
        return raw.decode("utf-8" if utf8 else "ascii")
    except UnicodeDecodeError:
        what = "not UTF-8 though flagged so" if utf8 else "not ASCII and not flagged as UTF-8"
        _refuse(
            "zip-name-encoding",
            f"a name that is {what}: make the zip with UTF-8 names",
            raw.decode("ascii", "backslashreplace"),
        )


def shown(name: str) -> str:
    """`name` for an error or a log: what is not printable is escaped, what is long is cut."""
    return (name if name.isprintable() else ascii(name)[1:-1])[:300]


def check(name: str, limits: Limits = DEFAULT) -> None:
    """Raise `UnsafeArchiveError` naming the first rule that this one name breaks. A folder's name ends in a slash."""
    size = len(name.encode("utf-8"))
    if size > limits.max_name_bytes:
        _refuse("zip-name-too-long", f"the name has {size} bytes, the limit is {limits.max_name_bytes}", name)
    for character in name:
        match unicodedata.category(character):
            case "Cc" | "Zl" | "Zp":
                _refuse("zip-name-control-char", f"the name holds U+{ord(character):04X}: rename the file", name)
            case "Cf":
                _refuse("zip-name-bidi", f"the name holds the invisible U+{ord(character):04X}: rename the file", name)
            case "Cn" | "Co" | "Cs":  # to the next Unicode it may be anything, and equal to any other
                _refuse(
                    "zip-name-control-char",
                    f"U+{ord(character):04X} in the name is no character: rename the file",
                    name,
                )
    if unicodedata.normalize("NFC", name) != name:
        _refuse(
            "zip-unicode-collision",
            "the name is not in Unicode form NFC, so systems differ on it: rename the file",
            name,
        )
    if "\\" in name:
        _refuse("zip-backslash", "the name holds a backslash: separate folders by '/'", name)
    if name.startswith("/"):
        _refuse("zip-absolute-path", "the name is absolute: names are relative to the archive", name)
    if _DRIVE.match(name):
        _refuse("zip-drive-letter", "the name begins with a drive letter: names are relative to the archive", name)
    segments = name.removesuffix("/").split("/")
    if ".." in segments:
        _refuse("zip-path-traversal", "the name leaves the archive by '..'", name)
    if "" in segments or "." in segments:
        _refuse("zip-path-not-canonical", "the name has an empty or '.' segment", name)
    if len(segments) > limits.max_depth:
        _refuse("zip-name-too-long", f"the file is {len(segments)} folders deep, the limit is {limits.max_depth}", name)
    for segment in segments:
        _check_segment(segment, name)


def _check_segment(segment: str, name: str) -> None:
    lower = segment.lower()
    stem = lower.partition(".")[0]
    if segment[-1] in ". " or ":" in segment or stem.rstrip() in _DEVICES:
        _refuse("zip-reserved-name", f"{segment!r} is a name that some systems change or reserve: rename it", name)
    if lower == "__pycache__" or _COMPILED.fullmatch(lower):
        _refuse("forbidden-file-type", "compiled code cannot be reviewed: leave it out", name)
    if stem in _STARTUP or lower.endswith(".pth"):
        _refuse("forbidden-file-name", "Python runs files of this name unasked: leave it out", name)
    if _NESTED.fullmatch(lower):
        _refuse("nested-archive", "an archive in the archive is not looked into: put its files here instead", name)


def check_together(names: Iterable[str]) -> None:
    """Raise `UnsafeArchiveError` where two names, or a name and a folder, are one thing on some file system."""
    seen: dict[str, tuple[str, bool]] = {}
    listed: set[str] = set()
    for name in names:
        if name in listed:
            _refuse("zip-duplicate", "the name is there twice", name)
        listed.add(name)
        path = name.removesuffix("/")
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            here = "/".join(parts[:depth])
            is_folder = depth < len(parts) or path != name
            other, other_is_folder = seen.setdefault(_everywhere(here), (here, is_folder))
            if other != here:
                rule = "zip-case-collision" if other.lower() == here.lower() else "zip-unicode-collision"
                _refuse(rule, f"some systems take it for {shown(other)!r}: rename one", name)
            if other_is_folder is not is_folder:
                _refuse("zip-path-conflict", f"{shown(here)!r} is both a file and a folder", name)


def check_modules(names: Iterable[str]) -> None:
    """Raise `UnsafeArchiveError` where a top-level module would stand in for one of Python's, Airflow's or ours."""
    for name in names:
        if name.endswith(".py"):
            module = name.partition("/")[0].removesuffix(".py")
            if module in sys.stdlib_module_names or module in _OURS:
                _refuse("shadows-module", f"its module {module!r} would hide the installed one: rename it", name)


def _everywhere(path: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", path).casefold())


def _refuse(rule: str, detail: str, name: str) -> NoReturn:
    raise UnsafeArchiveError(rule, detail, shown(name))

"""What the user names on the command line, as an archive: a `.py`, a `.zip`, or a folder that is zipped.

The same folder gives the same bytes on every machine. Left out: what begins with a dot, `__pycache__`, `*.pyc`. Symbolic
links are refused: what they point at is not part of the folder.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

from dagseal.cli.exits import UsageError
from integrity.errors import UnsafeArchiveError

MAX_BYTES = 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """An archive's name and its bytes, not judged yet."""

    name: str
    data: bytes = field(repr=False)


def read(path: str, name: str | None = None) -> Named:
    """Read a file, a folder, or stdin for `-` (which needs a name). Raises `UsageError`, `UnsafeArchiveError`."""
    if path == "-":
        import sys

        if name is None:
            raise UsageError("stdin has no name: add --name NAME.py or --name NAME.zip")
        return Named(name=name, data=sys.stdin.buffer.read(MAX_BYTES))
    try:
        if os.path.isdir(path):
            stem = os.path.basename(os.path.abspath(path))
            return Named(name=name or f"{stem}.zip", data=_zipped(path))
        with open(path, "rb") as file:
            return Named(name=name or os.path.basename(path), data=file.read(MAX_BYTES))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def _zipped(path: str) -> bytes:
    from vocabulary import zipwriter

    files: dict[str, bytes] = {}
    for folder, subfolders, names in os.walk(path, onerror=_raise):
        subfolders[:] = sorted(name for name in subfolders if _wanted(name))
        for name in sorted([*names, *(s for s in subfolders if os.path.islink(os.path.join(folder, s)))]):
            if not _wanted(name):
                continue
            full = os.path.join(folder, name)
            inside = os.path.relpath(full, path)
            if not stat.S_ISREG(os.lstat(full).st_mode):
                raise UnsafeArchiveError(
                    "zip-symlink", "is a symbolic link or no file: put the file itself there", inside
                )
            with open(full, "rb") as file:
                files[inside] = file.read(MAX_BYTES)
    if not files:
        raise UsageError(f"there is no file in the folder {path}")
    return zipwriter.pack(files)


def _wanted(name: str) -> bool:
    return not name.startswith(".") and name != "__pycache__" and not name.endswith(".pyc")


def _raise(error: OSError) -> None:
    raise error

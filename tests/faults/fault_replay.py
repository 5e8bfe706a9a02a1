"""What a power loss leaves: a recording (`recorder.c`) played back on a model of a disk that keeps nothing it was not told to.

The strictest reading of POSIX. Bytes of a file, and its length, are durable when fsync or fdatasync of that file returned, as
they were at that moment; a name (created, linked, renamed, removed, a folder made) is durable when fsync of its folder
returned. So a rename between two folders of which only the second was synced leaves the file under both names. The folders
that are recorded (`roots`) exist themselves, and were empty: what is done to a file whose making was not recorded is a
`KeyError`, as such a recording has a hole.

`Disk.durable` materialises that. `names_first` is the other kind of disk: every name reached it at once, and only the bytes
had to wait; it shows a file that was named before it was whole.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HEADER = struct.Struct("<IIQQQQIIII")
CREATE, MKDIR, WRITE, TRUNCATE, RENAME, LINK, UNLINK, FSYNC, SAY, ACKNOWLEDGED = range(1, 11)


@dataclass(frozen=True, slots=True)
class Record:
    """One thing that happened. `about` is what an ACKNOWLEDGED record says."""

    kind: int
    pid: int
    inode: int
    folder: int
    to_folder: int
    offset: int
    name: str
    to_name: str
    data: bytes

    @property
    def about(self) -> Any:
        return json.loads(self.data)


def acknowledge(log: Path, about: Any) -> None:
    """Put into the recording that, here, somebody was told `about`. One write, so that it is one whole record."""
    data = json.dumps(about).encode()
    with log.open("ab", buffering=0) as file:
        file.write(_HEADER.pack(ACKNOWLEDGED, 0, 0, 0, 0, 0, 0, 0, len(data), 0) + data)


def records(log: Path) -> Iterator[Record]:
    data, at = log.read_bytes(), 0
    while at < len(data):
        kind, pid, inode, folder, to_folder, offset, names, to_names, count, _ = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        ends = at + names, at + names + to_names, at + names + to_names + count
        assert ends[2] <= len(data), "the recording ends inside a record"
        name, to_name = data[at : ends[0]].decode(), data[ends[0] : ends[1]].decode()
        yield Record(kind, pid, inode, folder, to_folder, offset, name, to_name, data[ends[1] : ends[2]])
        at = ends[2]


@dataclass(slots=True, eq=False)
class _File:
    data: bytearray = field(default_factory=bytearray)
    kept: bytes = b""

    def sync(self) -> None:
        self.kept = bytes(self.data)


@dataclass(slots=True, eq=False)
class _Folder:
    names: dict[str, _File | _Folder] = field(default_factory=dict)
    kept: dict[str, _File | _Folder] = field(default_factory=dict)

    def sync(self) -> None:
        self.kept = dict(self.names)


class Disk:
    """`roots`: inode number to name. `deaf` lists what fsync is made to do nothing for: "files", "folders"."""

    def __init__(self, roots: dict[int, str], *, deaf: frozenset[str] = frozenset()) -> None:
        self._roots = {name: _Folder() for name in roots.values()}
        self._known: dict[int, _File | _Folder] = {inode: self._roots[name] for inode, name in roots.items()}
        self._owner = dict(roots)
        self._deaf = deaf
        self.version = dict.fromkeys(roots.values(), 0)  # grows when what is durable below that root may have changed

    def apply(self, record: Record) -> None:
        if record.kind in (SAY, ACKNOWLEDGED):
            return
        if record.kind == FSYNC:
            self._sync(record.inode)
        elif record.kind in (WRITE, TRUNCATE):
            self._change(record)
        else:
            self._rename(record)

    def _sync(self, inode: int) -> None:
        found = self._known[inode]
        if ("folders" if isinstance(found, _Folder) else "files") in self._deaf:
            return
        found.sync()
        self.version[self._owner[inode]] += 1

    def _change(self, record: Record) -> None:
        found = self._known[record.inode]
        assert isinstance(found, _File)
        if record.kind == TRUNCATE:
            del found.data[record.offset :]
            found.data.extend(bytes(record.offset - len(found.data)))
        else:
            found.data.extend(bytes(max(0, record.offset - len(found.data))))
            found.data[record.offset : record.offset + len(record.data)] = record.data

    def _rename(self, record: Record) -> None:
        folder, to_folder = self._folder(record.folder), self._folder(record.to_folder)
        if record.kind in (CREATE, MKDIR):
            assert folder is not None
            made = _Folder() if record.kind == MKDIR else _File()
            folder.names[record.name] = self._known[record.inode] = made
            self._owner[record.inode] = self._owner[record.folder]
        elif record.kind == UNLINK and folder is not None:
            folder.names.pop(record.name, None)
        elif record.kind == RENAME and folder is not None:
            moved = folder.names.pop(record.name, None)
            if moved is not None and to_folder is not None:
                to_folder.names[record.to_name] = moved
        elif record.kind == LINK and to_folder is not None:
            to_folder.names[record.to_name] = self._known[record.inode]

    def _folder(self, inode: int) -> _Folder | None:
        found = self._known.get(inode)
        assert not isinstance(found, _File)
        return found

    def owner(self, inode: int) -> str | None:
        """The root below which that file is."""
        return self._owner.get(inode)

    def files(self, root: str, *, names_first: bool = False) -> dict[str, bytes | None]:
        """What is left below that root: path to bytes, or to None for a folder."""
        found: dict[str, bytes | None] = {}

        def visit(folder: _Folder, path: str) -> None:
            for name, inside in (folder.names if names_first else folder.kept).items():
                if isinstance(inside, _Folder):
                    found[f"{path}{name}"] = None
                    visit(inside, f"{path}{name}/")
                else:
                    found[f"{path}{name}"] = inside.kept

        visit(self._roots[root], "")
        return found

    def materialise(self, root: str, into: Path, *, names_first: bool = False) -> Path:
        """Write that below `into`, which is made new, for this account alone."""
        into.mkdir(mode=0o700)
        for path, data in self.files(root, names_first=names_first).items():
            if data is None:
                (into / path).mkdir(mode=0o700)
            else:
                fd = os.open(into / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(fd, "wb") as file:
                    file.write(data)
        return into

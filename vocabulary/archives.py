"""An archive: one `.py`, or one `.zip` of modules and the files beside them, accepted or refused by its bytes alone.

Promise: `read` extracts nothing to disk, executes, compiles and parses no Python, and gives the same answer for the
same bytes (under one version of Python, whose module names are reserved). Everything accepted is extracted by `zipfile`
to exactly the members listed, and `zipimport` sees the same. A `.py` has one member, of the archive's own name; a zip's
modules begin at its top level, as Airflow puts a packaged DAG on `sys.path`. That the source is Python, imports and
defines a DAG is for the sandboxed describe to find out.

Each refusal is an `UnsafeArchiveError` (or `InvalidArchiveError`: nothing in it, or no zip) with a stable `rule`, listed in
`vocabulary.archiverules`.

>>> [member.name for member in read("etl.py", b"import datetime\\n").members]
['etl.py']
>>> read("etl.zip", b"PK")
Traceback (most recent call last):
integrity.errors.InvalidArchiveError: this is not a zip file
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from integrity import names
from integrity.digests import Digest
from integrity.errors import InvalidArchiveError
from vocabulary import manifest, membernames, sources
from vocabulary.limits import DEFAULT, Limits
from vocabulary.zipreader import END_MAGIC, LOCAL_MAGIC, read_members

__all__ = ["Archive", "ArchiveMember", "Limits", "check_identifiers", "manifest_members", "read", "read_digests"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveMember:
    """One file: its slash-separated relative name and its content."""

    name: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """What `read` accepted; `members` are sorted by name."""

    name: str
    kind: Literal["py", "zip"]
    members: tuple[ArchiveMember, ...]


def read(name: str, data: bytes | memoryview, limits: Limits = DEFAULT) -> Archive:
    """The archive that `data` is. Raises `UnsafeArchiveError`, `InvalidArchiveError`; `MalformedError` for `name`."""
    files = sorted(_files(name, data, limits))
    _check([member for member, _ in files], [file for file in files if file[0].endswith(".py")], limits)
    kind: Literal["py", "zip"] = "py" if name.endswith(".py") else "zip"
    return Archive(name=name, kind=kind, members=tuple(ArchiveMember(name=n, data=content) for n, content in files))


def read_digests(name: str, data: bytes | memoryview, limits: Limits = DEFAULT) -> tuple[manifest.Member, ...]:
    """`manifest_members(read(...))` in less memory: besides the sources one file at a time."""
    found, kept = [], []
    for member, content in _files(name, data, limits):
        found.append(manifest.Member(name=member, size=len(content), digest=Digest.of(content)))
        if member.endswith(".py"):
            kept.append((member, content))
    found.sort(key=lambda member: member.name)
    _check([member.name for member in found], sorted(kept), limits)
    return tuple(found)


def check_identifiers(archive: Archive) -> None:
    """`sources.check_identifiers` of every source: for a process that may take its time. Raises `UnsafeArchiveError`."""
    for member in archive.members:
        if member.name.endswith(".py"):
            sources.check_identifiers(member.name, member.data)


def manifest_members(archive: Archive) -> tuple[manifest.Member, ...]:
    """What the manifest says of the members, in its order."""
    return tuple(
        manifest.Member(name=member.name, size=len(member.data), digest=Digest.of(member.data))
        for member in archive.members
    )


def _files(name: str, data: bytes | memoryview, limits: Limits) -> Iterator[tuple[str, bytes]]:
    view = memoryview(data).cast("B")
    if names.check("archive", name).endswith(".py"):
        yield _single_source(name, view, limits)
    else:
        yield from read_members(view, limits)


def _check(members: list[str], found: list[tuple[str, bytes]], limits: Limits) -> None:
    if not found:
        raise InvalidArchiveError("no-dag-found", "there is no .py file in the archive")
    membernames.check_modules(members)
    for member, source in found:
        sources.check(member, source, limits)


def _single_source(name: str, view: memoryview, limits: Limits) -> tuple[str, bytes]:
    membernames.check(name, limits)
    if view[:4] in (LOCAL_MAGIC, END_MAGIC):
        raise InvalidArchiveError(
            "unsupported-media-type", "this is a zip file: give it a name that ends in .zip", name
        )
    sources.check_size(name, len(view), limits)  # before it is copied
    source = bytes(view)
    if not source.strip():
        raise InvalidArchiveError("no-dag-found", "the file is empty", name)
    return name, source

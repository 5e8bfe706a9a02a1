"""Sets: which release of each archive is one version of what Airflow sees, by the verified log; the rules, without any I/O.

A set is canonical JSON, its archives in order, each once; its name is the SHA-512 of these bytes (docs/protocol.md). The active
set of a reader has the active release of each archive that it may read and that fits its globs, where that release could run on
this host: not revoked, not waiting, its bytes kept, by an author whom this host trusts. What is not in it is left out without a
word; a set without a release is none.

>>> release = LoggedRelease(archive="etl.py", number=3, digest=Digest("c" * 128), size=9, manifest=Digest("d" * 128), index=1,
...     waits=False)
>>> print(ReleaseSet((release,)).to_bytes().decode().replace("c" * 128, "c…"))
{"releases":[{"archive":"etl.py","digest":"sha512:c…","number":3}],"v":1}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import pairwise

from integrity import canonical
from integrity.digests import Digest
from integrity.errors import MalformedError, NotFoundError, NotOwnerError
from integrity.fields import Fields
from integrity.logview import LoggedArchive, LoggedRelease, LogView
from worker_cache.authors import Authors
from worker_cache.readers import Reader

MAX_RELEASES = 10_000
MAX_BYTES = 4 * 1024 * 1024
MAX_GLOBS = 100
_GLOB = re.compile(r"[A-Za-z0-9_.*?!\[\]-]{1,200}")


@dataclass(frozen=True)
class ReleaseSet:
    """Releases as the log has them, in the order of their archives: at least one."""

    releases: tuple[LoggedRelease, ...]

    def to_bytes(self) -> bytes:
        releases = [{"archive": one.archive, "number": one.number, "digest": str(one.digest)} for one in self.releases]
        return canonical.dump({"v": 1, "releases": releases})

    @cached_property
    def digest(self) -> Digest:
        return Digest.of(self.to_bytes())


def read_globs(fields: Fields) -> tuple[str, ...]:
    """The field `archives`: of which one is to fit. Raises `MalformedError`."""
    globs = tuple(fields.items("archives", max_items=MAX_GLOBS))
    if not globs or not all(isinstance(glob, str) and _GLOB.fullmatch(glob) for glob in globs):
        raise MalformedError(f"archives: 1 to {MAX_GLOBS} globs of archives' names")
    return globs


def active(view: LogView, reader: Reader, globs: Sequence[str], authors: Authors) -> ReleaseSet | None:
    """The active set of this reader, or None where nothing is in it."""
    found = tuple(
        release
        for _, archive in sorted(view.archives.items())
        if archive.active is not None and reader.may_read(archive)
        for release in [archive.releases[archive.active]]
        if _fits(release, globs) and not release.retired and authors.permit(release)
    )
    if len(found) > MAX_RELEASES:
        raise MalformedError(f"{len(found)} archives are active, a set has at most {MAX_RELEASES}: give narrower globs")
    return ReleaseSet(found) if found else None


def recalled(
    body: bytes, name: Digest, view: LogView, reader: Reader, globs: Sequence[str], authors: Authors
) -> ReleaseSet:
    """What a set was, where all of it may still be run and read. Raises `DigestMismatchError` for the bytes of another,
    `MalformedError`, `NotFoundError`, `NotOwnerError`, `RevokedError`, `AuthorError`."""
    name.require(Digest.of(body), "the set's digest")
    fields = Fields(canonical.load(body, max_bytes=MAX_BYTES), "set")
    fields.version(1)
    found = tuple(_recalled(fields, view))
    fields.done()
    if not found or any(one.archive >= other.archive for one, other in pairwise(found)):
        raise MalformedError("set: its releases are to be in the order of their archives, each archive once")
    for release in found:
        if not reader.may_read(view.archives.get(release.archive, LoggedArchive())) or not _fits(release, globs):
            raise NotOwnerError(f"set {name.hex[:16]}… has an archive that is not yours to read, or was not asked for")
        authors.require(release)
    return ReleaseSet(found)


def _recalled(fields: Fields, view: LogView) -> Iterator[LoggedRelease]:
    for item in fields.items("releases", max_items=MAX_RELEASES):
        one = Fields(item, "release")
        archive, number, digest = one.name("archive", "archive"), one.integer("number", least=1), one.digest("digest")
        one.done()
        release = view.runnable(archive, number)
        digest.require(release.digest, f"the digest of {release.name}")
        if release.retired:
            raise NotFoundError(f"the bytes of {release.name} are not kept any more")
        yield release


def _fits(release: LoggedRelease, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(release.archive, glob) for glob in globs)

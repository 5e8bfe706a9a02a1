"""Sets: which release of each archive is one version of what Airflow sees, by the verified log; the rules, without any I/O.

Their format is `vocabulary.sets`. The active set of a reader has the active release of each archive that it may read and that
fits its globs, where that release could run on this host: not revoked, not waiting, its bytes kept, by an author whom this host
trusts. What is not in it is left out without a word; a set without a release is none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from integrity.digests import Digest
from integrity.errors import MalformedError, NotFoundError, NotOwnerError
from integrity.fields import Fields
from vocabulary import sets
from vocabulary.logview import LoggedArchive, LoggedRelease, LogView
from vocabulary.sets import Member
from worker_cache.authors import Authors
from worker_cache.readers import Reader

MAX_GLOBS = 100
_GLOB = re.compile(r"[A-Za-z0-9_.*?!\[\]-]{1,200}")


@dataclass(frozen=True)
class ReleaseSet:
    """Releases as the log has them, in the order of their archives: at least one."""

    releases: tuple[LoggedRelease, ...]

    def to_bytes(self) -> bytes:
        return sets.to_bytes(Member(archive=one.archive, number=one.number, digest=one.digest) for one in self.releases)

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
    if len(found) > sets.MAX_RELEASES:
        raise MalformedError(
            f"{len(found)} archives are active, a set has at most {sets.MAX_RELEASES}: give narrower globs"
        )
    return ReleaseSet(found) if found else None


def recalled(
    body: bytes, name: Digest, view: LogView, reader: Reader, globs: Sequence[str], authors: Authors
) -> ReleaseSet:
    """What a set was, where all of it may still be run and read. Raises `DigestMismatchError` for the bytes of another,
    `MalformedError`, `NotFoundError`, `NotOwnerError`, `RevokedError`, `AuthorError`."""
    found = tuple(_recalled(one, view) for one in sets.parse(body, name).values())
    for release in found:
        if not reader.may_read(view.archives.get(release.archive, LoggedArchive())) or not _fits(release, globs):
            raise NotOwnerError(f"set {name.hex[:16]}… has an archive that is not yours to read, or was not asked for")
        authors.require(release)
    return ReleaseSet(found)


def _recalled(member: Member, view: LogView) -> LoggedRelease:
    release = view.runnable(member.archive, member.number)
    member.digest.require(release.digest, f"the digest of {release.name}")
    if release.retired:
        raise NotFoundError(f"the bytes of {release.name} are not kept any more")
    return release


def _fits(release: LoggedRelease, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(release.archive, glob) for glob in globs)

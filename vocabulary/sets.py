"""Sets: which release of each archive is one version of what Airflow sees; their one format, written and read here.

A set is canonical JSON, its archives in order, each once; its name is the SHA-512 of these bytes. So a run that is pinned to a
name is pinned to bytes, and nobody can put another set under it. A set grants nothing and vouches for nothing: it says which
release a dag's name means, and that release is judged as any other when it is reserved.

>>> print(to_bytes([Member(archive="etl.py", number=3, digest=Digest("c" * 128))]).decode().replace("c" * 128, "c…"))
{"releases":[{"archive":"etl.py","digest":"sha512:c…","number":3}],"v":1}
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from integrity import canonical
from integrity.digests import Digest
from integrity.errors import MalformedError
from integrity.fields import Fields

MAX_RELEASES = 10_000
MAX_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One release, by its number and its bytes."""

    archive: str
    number: int
    digest: Digest


def to_bytes(members: Iterable[Member]) -> bytes:
    releases = [
        {"archive": one.archive, "number": one.number, "digest": str(one.digest)}
        for one in sorted(members, key=lambda one: one.archive)
    ]
    return canonical.dump({"v": 1, "releases": releases})


def parse(body: bytes, name: Digest) -> dict[str, Member]:
    """By archive. Raises `DigestMismatchError` for bytes of another name, `MalformedError` for what is no set."""
    name.require(Digest.of(body), "the set's digest")
    fields = Fields(canonical.load(body, max_bytes=MAX_BYTES), "set")
    fields.version(1)
    members = [_member(item) for item in fields.items("releases", max_items=MAX_RELEASES)]
    fields.done()
    if not members:
        raise MalformedError("set: it has no release")
    if any(one.archive >= other.archive for one, other in pairwise(members)):
        raise MalformedError("set: its releases are to be in the order of their archives, each archive once")
    return {one.archive: one for one in members}


def _member(value: Any) -> Member:
    fields = Fields(value, "release")
    member = Member(
        archive=fields.name("archive", "archive"),
        number=fields.integer("number", least=1),
        digest=fields.digest("digest"),
    )
    fields.done()
    return member

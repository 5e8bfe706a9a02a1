"""The rules of `dagseal verify`: numbered checks over bytes, without any I/O.

| check | threat it answers                                                        |
|-------|--------------------------------------------------------------------------|
| 1     | the archive is one that two readers read differently                     |
| 2     | bytes that were never submitted, or changed since                        |
| 3     | a server or network that invents a manifest                              |
| 4     | a genuine manifest of another archive, release or bytes                  |
| 5     | members that are not the ones that were described                        |
| 6     | a release that was withdrawn                                             |

Not checked: that the release is the active one (an older one may well be meant; it is said), and that the server hides
no newer release. What the tasks do is for a reviewer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from integrity import archives, manifest
from integrity.digests import Digest
from integrity.errors import DagsealError
from integrity.keys import KeyRing
from integrity.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """`release` and `newest` are the server's words; `envelope` is that release's manifest as it came."""

    name: str
    data: bytes = field(repr=False)
    release: Any
    newest: Any
    envelope: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the report."""

    number: int
    ok: bool
    detail: str


def judge(evidence: Evidence, ring: KeyRing | None) -> list[Check]:
    """The checks in order, up to the first that fails. `ring` None leaves out check 3 and what only a manifest can say."""
    checks: list[Check] = []
    try:
        for number, detail in _steps(evidence, ring):
            checks.append(Check(number=number, ok=True, detail=detail))
    except _FailedError as failed:
        checks.append(Check(number=failed.number, ok=False, detail=failed.detail))
    return checks


class _FailedError(Exception):
    def __init__(self, number: int, detail: str) -> None:
        super().__init__(detail)
        self.number = number
        self.detail = detail


def _steps(evidence: Evidence, ring: KeyRing | None) -> Any:
    """Yields (number, what holds); raises `_FailedError` at the first that does not."""
    try:
        archive = archives.read(evidence.name, evidence.data)
    except DagsealError as error:
        raise _FailedError(1, f"the archive is refused: {error}") from None
    yield 1, f"{evidence.name} is one {archive.kind} archive with {len(archive.members)} members"

    actual, release = Digest.of(evidence.data), evidence.release
    if release is None or release["digest"] != str(actual):
        recorded = (release or evidence.newest or {}).get("digest", "nothing")
        raise _FailedError(2, f"the bytes are {actual}, recorded is {recorded}")
    yield 2, f"the bytes are {actual}, recorded as {evidence.name}@{release['number']}"

    if ring is not None:
        stated, key_id = _manifest(evidence, ring)
        yield 3, f"the manifest is signed by key {key_id}"
        expected = (stated.archive, stated.number, str(stated.digest), stated.size)
        if expected != (evidence.name, release["number"], str(actual), len(evidence.data)):
            raise _FailedError(4, f"the signed manifest is of {stated.archive}@{stated.number}, {stated.digest}")
        yield (
            4,
            f"it states these bytes, submitted by {stated.submitted_by}, owner {stated.owner}, group {stated.group}",
        )
        if stated.members != archives.manifest_members(archive):
            raise _FailedError(5, "the archive's members are not those of the signed manifest")
        yield 5, f"it lists exactly these members, {len(stated.dags)} dags"

    if release["state"] == "revoked":
        raise _FailedError(6, f"{evidence.name}@{release['number']} is revoked: it is not launched any more")
    yield 6, f"the release is {release['state']}, not revoked"


def _manifest(evidence: Evidence, ring: KeyRing) -> tuple[Manifest, str]:
    if evidence.envelope is None:
        raise _FailedError(3, "there is no manifest of these bytes")
    try:
        verified = manifest.verify(evidence.envelope, ring)
    except DagsealError as error:
        raise _FailedError(3, f"the manifest is not to be believed: {error}") from None
    return verified.manifest, verified.key_id

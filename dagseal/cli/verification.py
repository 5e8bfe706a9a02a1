"""The rules of `dagseal verify` for an archive: numbered checks over bytes, without any I/O.

| check | threat it answers                                                                   |
|-------|-------------------------------------------------------------------------------------|
| 1     | the archive is one that two readers read differently                                |
| 2     | a server that somebody else runs: another log, or keys that nobody handed on        |
| 3     | a log that was invented, or, of a server, one that is shown no further than it suits |
| 4     | a release that was never recorded                                                   |
| 5     | a manifest that a server or network invents                                         |
| 6     | bytes that were never submitted, or changed since; a genuine manifest of others     |
| 7     | members that are not the ones that were described                                   |
| 8     | somebody else's release under a name that one trusts                                |
| 9     | a release that was withdrawn                                                        |
| 10    | a server that was taken over, and recorded what nobody wrote                        |

A check that cannot be made is said with its reason, and is never counted as one that holds: without a key 2 to 5 and, as the
leaf has the signature, 10; without the server 9. Not checked: that the release is the active one (an older one may well be
meant; it is said), and that others see the same log (`dagseal verify --server-log`, and the agents do). What the tasks do is
for a reviewer.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dagseal.cli import report
from dagseal.cli.report import Check, Difference, FailedError, Report, ok, unmade
from integrity.digests import Digest
from integrity.errors import DagsealError
from vocabulary import archives, authorship, checkpoints, proofs
from vocabulary.archives import Archive
from vocabulary.checkpoints import Checkpoint
from vocabulary.keys import VerifyKey
from vocabulary.leaves import Released
from vocabulary.manifest import Manifest, Member
from vocabulary.notes import Note
from vocabulary.proofs import Proof, VerifiedProof
from worker_cache.authors import Authors

MAX_AGE_SECONDS = 300
CHECKS = {
    1: "whether every reader reads the same archive",
    2: "whether the log is one that is trusted",
    3: "whether the log's checkpoint is genuine",
    4: "whether the release is in the log",
    5: "whether the manifest is the one that the log names",
    6: "whether the bytes are those of the release",
    7: "whether its members are those that were described",
    8: "whether it belongs to who was expected",
    9: "whether it was revoked",
    10: "whether its author signed it",
}
_NO_KEY = "there is no key, this is the server's word only (--unsafe-trust-server)"
_OFFLINE = "nobody is asked what happened after the checkpoint of {}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """`release` is the server's word of the release that `data` is compared with, None offline; `proof` is that release's.
    `missing`: why there is nothing to compare with. `now` in seconds: the checkpoint is to be fresh; None: of any age."""

    name: str
    data: bytes = field(repr=False)
    release: Any = None
    proof: Proof | None = None
    missing: str = ""
    now: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """What a release is. `members` None: that is not known."""

    name: str
    digest: Digest
    size: int
    owner: str
    members: tuple[Member, ...] | None


def judge(
    evidence: Evidence,
    trusted: Collection[VerifyKey] | None,
    *,
    owner: str | None = None,
    authors: Authors | None = None,
) -> Report:
    """The checks in order, up to the first that fails. `trusted` None leaves out 2 to 5, and what only a manifest or a leaf can
    say."""
    steps = _steps(evidence, trusted, owner, authors)
    return report.made("archive", evidence.name, CHECKS, steps, release=evidence.release)


def _steps(
    evidence: Evidence, trusted: Collection[VerifyKey] | None, owner: str | None, authors: Authors | None
) -> Iterator[Check]:
    """Yields what holds and what was not made; raises `FailedError` at the first that does not hold."""
    try:
        archive = archives.read(evidence.name, evidence.data)
    except DagsealError as error:
        raise FailedError(1, f"the archive is refused: {error}") from None
    yield ok(1, f"{evidence.name} is one {archive.kind} archive with {len(archive.members)} members")
    if evidence.missing:
        yield unmade(2, evidence.missing)
        yield from (unmade(number, "for the same reason") for number in CHECKS if number > 2)
        return
    if trusted is None:
        yield from (unmade(number, _NO_KEY, matters=False) for number in (2, 3, 4, 5))
        leaf, said = None, _believed(evidence.release)
    else:
        proved = yield from _proved(evidence, trusted)
        leaf, said = proved.leaf, _stated(proved.manifest)
    yield from _compared(evidence, archive, said)
    if owner is None:
        yield unmade(8, "nobody was named (--expect-owner)", matters=False)
    elif said.owner != owner:
        raise FailedError(8, f"{said.name} belongs to {said.owner}, expected is {owner}")
    else:
        yield ok(8, f"it belongs to {owner}")
    yield _revoked(evidence, said)
    yield _authored(leaf, authors)


def _proved(evidence: Evidence, trusted: Collection[VerifyKey]) -> Generator[Check, None, VerifiedProof]:
    """Checks 2 to 5 are the four of a proof."""
    proof, number = evidence.proof, 2
    if proof is None:
        raise RuntimeError("a proof, or why there is none")
    try:
        for found in proofs.steps(proof, trusted):
            if isinstance(found, VerifiedProof):
                return found
            if number == 3 and evidence.now is not None:
                checkpoints.require_fresh(_point(proof), now=evidence.now, max_age_seconds=MAX_AGE_SECONDS)
            yield ok(number, found)
            number += 1
    except DagsealError as error:
        raise FailedError(number, str(error)) from None
    raise RuntimeError("the last step is the result")


def _stated(found: Manifest) -> _Said:
    name = f"{found.archive}@{found.number}"
    return _Said(name=name, digest=found.digest, size=found.size, owner=found.owner, members=found.members)


def _believed(release: Any) -> _Said:
    """By the server's word."""
    return _Said(
        name=f"{release['archive']}@{release['number']}",
        digest=Digest.parse(release["digest"]),
        size=release["size"],
        owner=release["owner"],
        members=None,
    )


def _point(proof: Proof) -> Checkpoint:
    return Checkpoint.from_text(Note.from_bytes(proof.checkpoint).text)


def _compared(evidence: Evidence, archive: Archive, said: _Said) -> Iterator[Check]:
    actual, found = Digest.of(evidence.data), archives.manifest_members(archive)
    if said.name.rpartition("@")[0] != evidence.name:
        raise FailedError(6, f"what is proved is {said.name}, the bytes are said to be {evidence.name}")
    if evidence.release is not None and said.name != f"{evidence.release['archive']}@{evidence.release['number']}":
        raise FailedError(6, f"what is proved is {said.name}, the server was asked for {evidence.release['number']}")
    if (said.digest, said.size) != (actual, len(evidence.data)):
        raise FailedError(6, f"the bytes are {actual}, {said.name} is {said.digest}", differences(said.members, found))
    yield ok(6, f"the bytes are {actual}, those of {said.name}")
    if said.members is None:
        yield unmade(7, _NO_KEY, matters=False)
    elif said.members != found:
        raise FailedError(7, f"the members are not those of {said.name}", differences(said.members, found))
    else:
        yield ok(7, f"the manifest lists exactly these {len(found)} members")


def _revoked(evidence: Evidence, said: _Said) -> Check:
    if evidence.release is not None:
        state = evidence.release["state"]
        if state == "revoked":
            raise FailedError(9, f"{said.name} is revoked: it is not launched any more")
        return ok(9, f"{said.name} is {state}, says the server: not revoked")
    at = datetime.fromtimestamp(_point(evidence.proof).time, UTC).isoformat() if evidence.proof else ""
    return unmade(9, _OFFLINE.format(at), matters=False)


def _authored(leaf: Released | None, authors: Authors | None) -> Check:
    if authors is None:
        return unmade(10, "nobody was asked for (--require-author)", matters=False)
    if leaf is None:
        return unmade(10, _NO_KEY)
    name, keys = f"{leaf.archive}@{leaf.number}", authors.of(leaf.archive)
    if not keys:
        raise FailedError(10, f"there is no author for {leaf.archive} in the file of authors")
    if leaf.author is None:
        raise FailedError(10, f"{name} is not signed by an author")
    try:
        found = authorship.verify(leaf.author, archive=leaf.archive, digest=leaf.digest, keys=keys)
    except DagsealError as error:
        raise FailedError(10, f"{name} is not signed by an author of the file: {error}") from None
    return ok(10, f"{name} is signed by author key {found.key.key_id}")


def differences(stated: tuple[Member, ...] | None, found: tuple[Member, ...]) -> tuple[Difference, ...]:
    """Which files are not what the manifest says, by name."""
    if stated is None:
        return ()
    before, after = ({one.name: (one.size, one.digest) for one in members} for members in (stated, found))
    names = {
        "changed": [name for name in before if name in after and before[name] != after[name]],
        "missing": [name for name in before if name not in after],
        "unexpected": [name for name in after if name not in before],
    }
    return tuple(Difference(change=change, name=name) for change in names for name in sorted(names[change]))

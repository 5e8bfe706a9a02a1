"""The rules of `dagseal verify`: each check refuses what it is there for, and what was not checked is not said to be.

Seen to fail when weakened: `_steps` that returns where something is missing, without saying so; `_compared` that does not look
which release was asked for; `require_fresh` left out; `_disagreements` without each of its pairs; `_manifests` of any key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from dagseal.cli import logverification, report
from dagseal.cli.logreading import Told
from dagseal.cli.report import FAILED, NOT_MADE, NOT_VERIFIED, OK, VERIFIED, Report
from dagseal.cli.verification import Evidence, judge
from integrity.digests import Digest
from submit_api import modes
from tests.golden_verify import (
    AT,
    FILES,
    FIRST,
    LEAVES,
    MALLORY,
    ONE,
    ORIGIN,
    SECOND,
    TWO,
    history,
    proof_of,
    released,
    stated,
)
from vocabulary import authorship, checkpoints, leaves, manifest, merkle, zipwriter
from vocabulary.checkpoints import Checkpoint
from vocabulary.keys import SigningKey, VerifyKey
from vocabulary.leaves import Activated, Approved, Keyed, Leaf, Owned, Revoked
from vocabulary.manifest import Member
from worker_cache.authors import Authors

DATA, NOW = zipwriter.pack(FILES), AT + 3600
TRUSTED = [FIRST.public]
ANN = SigningKey(bytes([7]) * 32)
AUTHORS = Authors(rules=(("etl.*", (ANN.public,)),))


def release(state: str = "active", **changes: Any) -> dict[str, Any]:
    said = {"archive": "etl.zip", "number": 2, "digest": str(TWO.digest), "size": TWO.size, "owner": "ann"}
    return {**said, "state": state, **changes}


def evidence(**changes: Any) -> Evidence:
    found = Evidence(name="etl.zip", data=DATA, release=release(), proof=proof_of(TWO, LEAVES), now=NOW)
    return replace(found, **changes)


def elsewhere(size: int) -> bytes:
    """A checkpoint of another log, by the key of this one."""
    root = merkle.root_of([merkle.leaf_hash(leaves.to_bytes(leaf)) for leaf in LEAVES[:size]])
    origin = checkpoints.origin_of(MALLORY.public)
    return checkpoints.sign(Checkpoint(origin=origin, size=size, root=root, time=NOW), SECOND)


def failed(found: Evidence, trusted: Sequence[VerifyKey] | None = TRUSTED, **options: Any) -> int | None:
    """The number of the check that failed."""
    told = judge(found, trusted, **options)
    numbers = [check.number for check in told.checks]
    assert numbers == list(range(1, len(numbers) + 1))
    assert all(check.state != FAILED for check in told.checks[:-1])
    assert told.verdict == (FAILED if told.checks[-1].state == FAILED else VERIFIED)
    return numbers[-1] if told.verdict == FAILED else None


def states(told: Report) -> dict[str, list[int]]:
    return {
        state: [one.number for one in told.checks if one.state == state]
        for state in (OK, FAILED, NOT_MADE)
        if any(one.state == state for one in told.checks)
    }


def test_what_was_submitted_is_verified_by_ten_checks() -> None:
    found = judge(signed(ANN), TRUSTED, owner="ann", authors=AUTHORS)
    assert states(found) == {OK: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}
    assert found.checks[-1].detail == f"etl.zip@2 is signed by author key {ANN.public.key_id}"
    assert failed(evidence()) is None


def test_what_was_not_made_is_said() -> None:
    assert states(judge(evidence(), TRUSTED)) == {OK: [1, 2, 3, 4, 5, 6, 7, 9], NOT_MADE: [8, 10]}
    assert states(judge(evidence(release=None, now=None), TRUSTED)) == {OK: [1, 2, 3, 4, 5, 6, 7], NOT_MADE: [8, 9, 10]}
    assert states(judge(evidence(), None)) == {OK: [1, 6, 9], NOT_MADE: [2, 3, 4, 5, 7, 8, 10]}


def signed(by: SigningKey, **changes: Any) -> Evidence:
    """With the author's signature in the leaf; `changes` go into what is signed."""
    made = authorship.sign(by, **{"archive": "etl.zip", "digest": TWO.digest, **changes})
    listed = [replace(leaf, author=made) if leaf == released(TWO) else leaf for leaf in LEAVES]
    return evidence(proof=proof_of(TWO, listed))


def test_a_release_that_its_author_did_not_sign() -> None:
    assert failed(signed(ANN), authors=AUTHORS) is None
    wrong = {
        "etl.zip@2 is not signed by an author": evidence(),
        "of the file: author key": signed(MALLORY),
        "of the file: the author signed something else": signed(ANN, digest=ONE.digest),
        "the author signed something else than etl.zip": signed(ANN, archive="elt.zip"),
    }
    for said, found in wrong.items():
        told = judge(found, TRUSTED, authors=AUTHORS)
        assert (told.checks[-1].number, told.verdict) == (10, FAILED) and said in told.checks[-1].detail
        assert failed(found) is None, "who does not ask for an author is not told of one"
    others = judge(signed(ANN), TRUSTED, authors=Authors(rules=(("ml.zip", (ANN.public,)),)))
    assert others.verdict == FAILED and "no author for etl.zip in the file" in others.checks[-1].detail


def test_who_asks_for_an_author_and_has_no_key_has_not_verified() -> None:
    told = judge(signed(ANN), None, authors=AUTHORS)
    assert told.verdict == NOT_VERIFIED and told.first(NOT_MADE).number == 10


def test_nothing_to_compare_with_is_never_verified() -> None:
    told = judge(evidence(proof=None, missing="no network"), TRUSTED)
    assert told.verdict == NOT_VERIFIED
    assert states(told) == {OK: [1], NOT_MADE: [2, 3, 4, 5, 6, 7, 8, 9, 10]}
    assert Report(kind="archive", subject="x", titles={}, checks=()).verdict == NOT_VERIFIED
    assert judge(evidence(missing="no network", data=b"PK"), TRUSTED).verdict == FAILED


@pytest.mark.parametrize("position", range(0, len(DATA), 7))
def test_a_flipped_byte_fails(position: int) -> None:
    changed = bytearray(DATA)
    changed[position] ^= 1
    assert failed(evidence(data=bytes(changed))) in (1, 6)
    assert failed(evidence(data=bytes(changed)), None) in (1, 6)


def test_a_refused_archive_fails_first() -> None:
    assert failed(evidence(data=b"PK\x03\x04")) == 1
    assert failed(evidence(data=b"")) == 1


def test_another_log() -> None:
    assert failed(evidence(), [MALLORY.public]) == 2
    assert failed(evidence(), []) == 2
    good = proof_of(TWO, LEAVES)
    assert failed(evidence(proof=replace(good, keys=()))) == 2
    assert failed(evidence(proof=replace(good, keys=good.keys[1:]))) == 2
    assert failed(evidence(proof=replace(good, keys=(good.keys[0], good.entry)))) == 2
    signed = leaves.to_bytes(Keyed.handed_on(ORIGIN, FIRST.public, by=SECOND, at=AT))
    assert failed(evidence(proof=replace(good, keys=(signed, *good.keys[1:])))) == 2


def test_a_checkpoint_that_is_not_genuine_or_old() -> None:
    assert failed(evidence(proof=proof_of(TWO, LEAVES, signed_by=MALLORY))) == 3
    assert failed(evidence(proof=replace(proof_of(TWO, LEAVES), keys=proof_of(TWO, LEAVES).keys[:1]))) == 3
    assert failed(evidence(proof=replace(proof_of(TWO, LEAVES), checkpoint=elsewhere(len(LEAVES))))) == 3
    assert failed(evidence(now=NOW + 301)) == 3
    assert failed(evidence(now=NOW - 61)) == 3
    assert failed(evidence(now=NOW + 300)) is None


def test_a_release_that_is_not_in_the_log() -> None:
    good = proof_of(TWO, LEAVES)
    other = proof_of(stated(FILES, 2, owner="bob"), history(ONE, stated(FILES, 2, owner="bob")))
    assert failed(evidence(proof=replace(other, checkpoint=good.checkpoint))) == 4
    assert failed(evidence(proof=replace(good, index=good.index + 1))) == 4
    assert failed(evidence(proof=replace(good, path=good.path[:-1]))) == 4
    hashes = [merkle.leaf_hash(leaves.to_bytes(leaf)) for leaf in LEAVES]
    for index in (0, 1, len(LEAVES) - 1):  # in the log, and no release
        path = tuple(merkle.inclusion_proof(index, len(hashes), lambda a, b: merkle.root_of(hashes[a:b])))
        entry = leaves.to_bytes(LEAVES[index])
        assert failed(evidence(proof=replace(good, entry=entry, index=index, path=path))) == 4


def test_a_manifest_that_somebody_else_signed_or_of_another_release() -> None:
    good = proof_of(TWO, LEAVES)
    assert failed(evidence(proof=proof_of(TWO, LEAVES, manifest_by=MALLORY))) == 5
    assert failed(evidence(proof=replace(good, manifest=b"{}"))) == 5
    for said in (ONE, stated(FILES, 2, owner="bob"), stated(FILES, 3), stated(FILES, 2, airflow_version="3.0.0")):
        assert failed(evidence(proof=replace(good, manifest=manifest.sign(said, FIRST)))) == 5


@pytest.mark.parametrize(
    "change", [{"by": "bob"}, {"owner": "bob"}, {"group": "g"}, {"size": 9}, {"digest": ONE.digest}]
)
def test_a_log_that_says_something_else_than_the_manifest_it_names(change: dict[str, Any]) -> None:
    listed = [replace(leaf, **change) if leaf == released(TWO) else leaf for leaf in LEAVES]
    hashes = [merkle.leaf_hash(leaves.to_bytes(leaf)) for leaf in listed]
    index = LEAVES.index(released(TWO))
    point = Checkpoint(origin=ORIGIN, size=len(listed), root=merkle.root_of(hashes), time=NOW)
    proof = replace(
        proof_of(TWO, LEAVES),
        entry=leaves.to_bytes(listed[index]),
        path=tuple(merkle.inclusion_proof(index, len(listed), lambda a, b: merkle.root_of(hashes[a:b]))),
        checkpoint=checkpoints.sign(point, SECOND),
    )
    assert failed(evidence(proof=proof)) == 5


def test_a_genuine_proof_of_something_else() -> None:
    """Of another name, of an older release with other bytes, of another number than the server was asked for."""
    assert failed(evidence(name="other.zip")) == 6
    assert failed(evidence(proof=proof_of(ONE, LEAVES), release=release(number=1))) == 6
    assert failed(evidence(release=release(number=3))) == 6
    assert failed(evidence(release=release(digest=str(ONE.digest))), None) == 6


def test_which_files_differ_is_said() -> None:
    told = judge(evidence(data=zipwriter.pack({"flow.py": b"", "new.py": b""})), TRUSTED)
    assert [(one.change, one.name) for one in told.differences] == [
        ("changed", "flow.py"),
        ("missing", "words.py"),
        ("unexpected", "new.py"),
    ]


def test_other_members_than_were_described() -> None:
    said = stated(FILES, 2, members=(Member(name="flow.py", size=1, digest=Digest.of(b"x")),))
    assert failed(evidence(proof=proof_of(said, history(ONE, said)))) == 7


def test_a_wrong_owner() -> None:
    assert failed(evidence(), owner="bob") == 8
    assert failed(evidence(), None, owner="bob") is not None


def test_a_revoked_release() -> None:
    assert failed(evidence(release=release("revoked"))) == 9
    for state in ("active", "inactive", "pending", "retired"):
        assert failed(evidence(release=release(state))) is None


# --server-log


def archive_said(**changes: Any) -> dict[str, Any]:
    said = {"name": "etl.zip", "owner": "ann", "group": "data", "mode": "rwxr-x---", "active": 2, "latest": 2}
    return {**said, **changes}


def release_said(number: int, state: str, **changes: Any) -> dict[str, Any]:
    said = {1: ONE, 2: TWO}[number]
    found = release(state, number=number, digest=str(said.digest), size=said.size, approved_by=[])
    return {**found, "manifest_digest": str(Digest.of(said.to_bytes())), **changes}


def told(listed: list[Leaf] = LEAVES, *, key: SigningKey = SECOND, **changes: Any) -> Told:
    entries = [leaves.to_bytes(leaf) for leaf in listed]
    root = merkle.root_of([merkle.leaf_hash(entry) for entry in entries])
    found = Told(
        checkpoint=checkpoints.sign(Checkpoint(origin=ORIGIN, size=len(entries), root=root, time=NOW), key),
        entries=entries,
        archives=[archive_said()],
        releases=[release_said(1, "inactive"), release_said(2, "active")],
        manifests={("etl.zip", 1): manifest.sign(ONE, FIRST), ("etl.zip", 2): manifest.sign(TWO, SECOND)},
    )
    return replace(found, **changes)


def log_failed(found: Told, trusted: Sequence[VerifyKey] = TRUSTED, now: int = NOW) -> int | None:
    judged = logverification.judge(found, trusted, server="here", now=now)
    assert judged.verdict == (FAILED if judged.checks[-1].state == FAILED else VERIFIED)
    return judged.checks[-1].number if judged.verdict == FAILED else None


def test_a_log_that_is_whole() -> None:
    judged = logverification.judge(told(), TRUSTED, server="here", now=NOW)
    assert states(judged) == {OK: [1, 2, 3, 4, 5, 6]} and judged.kind == "log"
    assert judged.to_json()["schema"] == report.SCHEMA
    unseen = told(archives=[], releases=[], manifests={})
    assert logverification.judge(unseen, TRUSTED, server="here", now=NOW).checks[-1].state == NOT_MADE


def test_a_log_that_is_not() -> None:
    again = [*LEAVES, released(ONE)]
    assert log_failed(told(again)) == 1
    assert log_failed(told(entries=[*told().entries, b"{}"])) == 1
    assert log_failed(told(), [MALLORY.public]) == 2
    assert log_failed(told(key=MALLORY)) == 3
    assert log_failed(told(), now=NOW + 301) == 3
    assert log_failed(told(checkpoint=elsewhere(len(LEAVES)))) == 3
    assert log_failed(told(LEAVES[:-1], checkpoint=told().checkpoint)) == 4
    other = [replace(leaf, at=leaf.at + 1) if isinstance(leaf, Activated) else leaf for leaf in LEAVES]
    assert log_failed(told(other, checkpoint=told().checkpoint)) == 4


ABOUT = {"at": AT, "by": "bob", "archive": "etl.zip", "number": 2, "digest": TWO.digest}
OTHERWISE: dict[str, dict[str, Any]] = {
    "an archive's owner": {"archives": [archive_said(owner="bob")]},
    "an archive's group": {"archives": [archive_said(group="bob")]},
    "an archive's mode": {"archives": [archive_said(mode="rwxrwx---")]},
    "an active release": {"archives": [archive_said(active=1)]},
    "no active release": {"archives": [archive_said(active=None)]},
    "more releases": {"archives": [archive_said(latest=3)]},
    "an archive that is not logged": {"archives": [archive_said(), archive_said(name="x.py")]},
    "a release that is not shown": {"releases": [release_said(2, "active")]},
    "a release that is not logged": {
        "releases": [release_said(1, "inactive"), release_said(2, "active"), {**release_said(2, "active"), "number": 3}]
    },
    "a state": {"releases": [release_said(1, "revoked"), release_said(2, "active")]},
    "a digest": {"releases": [release_said(1, "inactive", digest=str(TWO.digest)), release_said(2, "active")]},
    "a size": {"releases": [release_said(1, "inactive", size=1), release_said(2, "active")]},
    "a manifest": {"releases": [release_said(1, "inactive", manifest_digest="x"), release_said(2, "active")]},
    "an approval": {"releases": [release_said(1, "inactive", approved_by=["bob"]), release_said(2, "active")]},
    "a revocation that is hidden": {"listed": [*LEAVES, Revoked(**ABOUT)]},
    "an approval that is hidden": {"listed": [*LEAVES, Approved(**ABOUT, enough=True)]},
    "a change of mode that is hidden": {
        "listed": [*LEAVES, Owned(at=AT, by="ann", archive="etl.zip", owner="ann", group="data", mode=0)]
    },
}


@pytest.mark.parametrize("case", OTHERWISE)
def test_a_server_that_answers_otherwise_than_its_log(case: str) -> None:
    assert log_failed(told(**OTHERWISE[case])) == 5


def test_manifests_that_the_log_does_not_name() -> None:
    good = told().manifests
    for envelope in (
        manifest.sign(TWO, MALLORY),
        manifest.sign(ONE, FIRST),
        manifest.sign(stated(FILES, 2, owner="bob"), FIRST),
        b"{}",
    ):
        assert log_failed(told(manifests={**good, ("etl.zip", 2): envelope})) == 6


def test_a_mode_is_shown_as_the_server_shows_it() -> None:
    assert all(logverification.shown_mode(mode) == modes.shown(mode) for mode in range(0o1000))

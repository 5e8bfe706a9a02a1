"""What stands in the log, and what follows from it: every field bent is refused, and so is every contradiction.

Seen to fail when weakened: `_READ` that takes any text for a name; `_Changing._known` that does not compare the digest;
`_put` that leaves a revoked release active; `_activation` that does not look whether it waits; `Keyed.require_signed` that
verifies nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integrity import canonical
from integrity.digests import Digest
from integrity.errors import DigestMismatchError, MalformedError, NotFoundError, SecurityError, SignatureError
from integrity.fields import to_base64
from vocabulary import authorship, checkpoints, leaves
from vocabulary.keys import SigningKey
from vocabulary.leaves import Activated, Approved, Keyed, Leaf, Owned, Released, Retired, Revoked
from vocabulary.logview import LogView, RevokedError
from vocabulary.tiles import MAX_ENTRY_BYTES

FIRST, SECOND, THIRD = (SigningKey(bytes([number]) * 32) for number in (1, 2, 3))
ORIGIN = checkpoints.origin_of(FIRST.public)
ONE, TWO = Digest.of(b"one"), Digest.of(b"two")
QUEUES = frozenset({"default"})
ROOT = Keyed(at=1, key=FIRST.public, signature=None)
HANDED_ON = Keyed.handed_on(ORIGIN, SECOND.public, by=FIRST, at=9)


def released(number: int = 1, *, archive: str = "etl.py", digest: Digest = ONE, waits: bool = False) -> Released:
    return Released(
        at=2, by="alice", archive=archive, number=number, digest=digest, size=3, manifest=TWO, owner="alice",
        group="team", waits=waits, queues=("default", "gpu"),
    )  # fmt: skip


def activated(number: int = 1, archive: str = "etl.py") -> Activated:
    return Activated(at=3, by="alice", archive=archive, number=number)


def approved(number: int = 1, *, by: str = "bob", digest: Digest = ONE, enough: bool = True) -> Approved:
    return Approved(at=4, by=by, archive="etl.py", number=number, digest=digest, enough=enough)


def revoked(number: int = 1, digest: Digest = ONE) -> Revoked:
    return Revoked(at=5, by="corp:ada", archive="etl.py", number=number, digest=digest)


def retired(number: int = 1, digest: Digest = ONE) -> Retired:
    return Retired(at=6, by="dagseal", archive="etl.py", number=number, digest=digest)


OWNED = Owned(at=7, by="alice", archive="etl.py", owner="alice", group="corp:@team", mode=0o750)
EXAMPLES: dict[str, Leaf] = {
    "release": released(),
    "signed release": replace(released(), author=b"\x00\xff"),
    "activation": activated(),
    "approval": approved(),
    "revocation": revoked(),
    "retirement": retired(),
    "ownership": OWNED,
    "key": HANDED_ON,
    "first key": ROOT,
}
WRONG: dict[str, list[Any]] = {
    "v": [0, 2, "1", None, True],
    "kind": ["", "other", "Release", None, 1, ["release"]],
    "at": [-1, "1", None, True, 2**53],
    "by": ["", "Alice", "a b", "x" * 101, None, 1, "corp:@team"],
    "archive": ["", "etl", "../etl.py", "etl.py\n", None, 1],
    "number": [0, -1, "1", None, True],
    "digest": ["", "sha512:", "sha256:" + ONE.hex, str(ONE).upper(), str(ONE)[:-1], None, 1],
    "size": [0, -1, "1", None, True],
    "manifest": ["", str(ONE)[:-1], None],
    "owner": ["", "Alice", None, "corp:@team"],
    "group": ["", "Team", None, "@team"],
    "waits": [0, 1, "true", None],
    "queues": [None, "default", [""], [1], ["b", "a"], ["a", "a"], ["x" * 251], [f"q{n:03}" for n in range(101)]],
    "enough": [0, 1, "true", None],
    "mode": [-1, 0o1000, "750", None, True],
    "key": ["", "AAAA", None, 1, "A" * 43 + "="],
    "signature": ["", "====", 1, "A" * 92, "AAB=", "AAAA", "A" * 84],
    "author": [None, "", 1, "=", "YQ", "YR==", to_base64(b"a" * (authorship.MAX_BYTES + 1))],
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_what_is_written_is_read(kind: str) -> None:
    entry = leaves.to_bytes(EXAMPLES[kind])
    assert leaves.from_bytes(entry) == EXAMPLES[kind]
    assert leaves.to_bytes(leaves.from_bytes(entry)) == entry


def test_every_kind_has_an_example() -> None:
    assert {leaf.kind for leaf in EXAMPLES.values()} == set(leaves._KINDS)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_each_field_is_needed_typed_and_alone(kind: str) -> None:
    value = canonical.load(leaves.to_bytes(EXAMPLES[kind]), max_bytes=MAX_ENTRY_BYTES)
    for key in value:
        for wrong in WRONG[key]:
            with pytest.raises(MalformedError):
                leaves.from_bytes(canonical.dump(value | {key: wrong}))
        if key == "author":  # where nobody signed there is no such field, as in entries from before there were any
            continue
        with pytest.raises(MalformedError):
            leaves.from_bytes(canonical.dump({other: value[other] for other in value if other != key}))
    with pytest.raises(MalformedError, match="unknown fields: zz"):
        leaves.from_bytes(canonical.dump(value | {"zz": 1}))


@pytest.mark.parametrize("one", EXAMPLES)
@pytest.mark.parametrize("other", EXAMPLES)
def test_no_leaf_is_read_as_one_of_another_kind(one: str, other: str) -> None:
    value = canonical.load(leaves.to_bytes(EXAMPLES[one]), max_bytes=MAX_ENTRY_BYTES)
    kind = EXAMPLES[other].kind
    if value["kind"] == kind or {value["kind"], kind} == {"revocation", "retirement"}:  # these have the same fields
        return
    with pytest.raises(MalformedError):
        leaves.from_bytes(canonical.dump(value | {"kind": kind}))


@pytest.mark.parametrize("kind", EXAMPLES)
def test_only_the_canonical_bytes_are_an_entry(kind: str) -> None:
    entry = leaves.to_bytes(EXAMPLES[kind])
    for at in range(len(entry)):
        for wrong in (entry[:at], entry[:at] + b" " + entry[at:]):
            try:
                found = leaves.from_bytes(wrong)
            except MalformedError:
                continue
            raise AssertionError(f"{wrong!r} is read as {found}")
    with pytest.raises(MalformedError):
        leaves.from_bytes(b'{"a":"' + b"x" * MAX_ENTRY_BYTES + b'"}')


# views


@dataclass
class Model:
    """The same in the plainest words: what a reader of the log would write on paper."""

    releases: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    active: dict[str, int] = field(default_factory=dict)
    owned: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    leaves: list[Leaf] = field(default_factory=lambda: [ROOT])
    keys: list[SigningKey] = field(default_factory=lambda: [FIRST])

    def of(self, archive: str) -> list[int]:
        return [number for name, number in self.releases if name == archive]

    def launchable(self) -> list[tuple[str, int]]:
        return [one for one, said in self.releases.items() if not (said["waits"] or said["revoked"] or said["retired"])]

    def release(self, archive: str, waits: bool) -> None:
        number = len(self.of(archive)) + 1
        digest = Digest.of(f"{archive}{number}".encode())
        self.releases[archive, number] = {
            "digest": digest, "waits": waits, "revoked": False, "retired": False, "by": [], "index": len(self.leaves)
        }  # fmt: skip
        self.leaves.append(released(number, archive=archive, digest=digest, waits=waits))

    def say(self, what: str, one: tuple[str, int], by: str) -> None:
        archive, number = one
        said = self.releases[one]
        about: dict[str, Any] = {"at": 1, "by": by, "archive": archive, "number": number, "digest": said["digest"]}
        match what:
            case "activate":
                self.active[archive] = number
                self.leaves.append(Activated(at=1, by=by, archive=archive, number=number))
            case "approve" | "approve enough":
                said["by"].append(by)
                said["waits"] = said["waits"] and what == "approve"
                self.leaves.append(Approved(**about, enough=what != "approve"))
            case "revoke":
                said["revoked"] = True
                if self.active.get(archive) == number:
                    del self.active[archive]
                self.leaves.append(Revoked(**about))
            case "retire":
                said["retired"] = True
                self.leaves.append(Retired(**about))

    def own(self, archive: str, owner: str, mode: int) -> None:
        self.owned[archive] = (owner, "team", mode)
        self.leaves.append(Owned(at=1, by="alice", archive=archive, owner=owner, group="team", mode=mode))

    def key(self, seed: int) -> None:
        new = SigningKey(bytes([seed]) * 32)
        self.leaves.append(Keyed.handed_on(ORIGIN, new.public, by=self.keys[-1], at=1))
        self.keys.append(new)


ARCHIVES = st.sampled_from(["a.py", "b.zip", "c.py"])


def history(data: st.DataObject, steps: int) -> Model:
    model = Model()
    for _ in range(steps):
        doing = data.draw(st.sampled_from(["release", "say", "say", "activate", "own", "key"]))
        if doing == "release" or (doing == "say" and not model.releases):
            model.release(data.draw(ARCHIVES), data.draw(st.booleans()))
        elif doing == "activate" and model.launchable():
            model.say("activate", data.draw(st.sampled_from(model.launchable())), "alice")
        elif doing == "say":
            what = data.draw(st.sampled_from(["approve", "approve enough", "revoke", "retire"]))
            one = data.draw(st.sampled_from(list(model.releases)))
            if what != "retire" or model.active.get(one[0]) != one[1]:
                model.say(what, one, data.draw(st.sampled_from(["bob", "carol"])))
        elif doing == "own":
            model.own(
                data.draw(ARCHIVES), data.draw(st.sampled_from(["alice", "bob"])), data.draw(st.integers(0, 0o777))
            )
        elif doing == "key":
            model.key(data.draw(st.integers(4, 250)))
    return model


def compare(view: LogView, model: Model) -> None:
    assert view.size == len(model.leaves) and view.origin == ORIGIN
    assert list(view.keys) == [key.public for key in model.keys]
    found = {(name, number): one for name, archive in view.archives.items() for number, one in archive.releases.items()}
    assert {
        key: {"digest": one.digest, "waits": one.waits, "revoked": one.revoked, "retired": one.retired,
              "by": list(one.approved_by), "index": one.index}
        for key, one in found.items()
    } == model.releases  # fmt: skip
    assert {name: one.active for name, one in view.archives.items() if one.active is not None} == model.active
    owned = {name: (one.owner, one.group, one.mode) for name, one in view.archives.items() if one.owner is not None}
    assert owned == model.owned
    wanted = {model.releases[one]["digest"] for one in model.active.items() if not model.releases[one]["retired"]}
    assert set(view.wanted(QUEUES)) == wanted
    for (archive, number), said in model.releases.items():
        fit = not (said["waits"] or said["revoked"])
        try:
            view.require_launchable(archive, number, digest=said["digest"], manifest=TWO)
            assert fit
        except RevokedError:
            assert not fit


@given(st.integers(0, 25), st.data())
def test_honest_histories_are_seen_as_they_were_made_however_they_are_cut(steps: int, data: st.DataObject) -> None:
    model = history(data, steps)
    compare(LogView().extended(model.leaves), model)
    cut = data.draw(st.integers(0, len(model.leaves)))
    before = LogView().extended(model.leaves[:cut])
    told = repr(before)
    compare(before.extended(model.leaves[cut:]), model)
    assert repr(before) == told, "an older view was changed by a newer one"


BASE = [ROOT, OWNED, released(), activated()]
WAITING = [ROOT, released(waits=True)]
CONTRADICTIONS: dict[str, tuple[list[Leaf], Leaf]] = {
    "a first leaf that is no key": ([], OWNED),
    "a first key that somebody signed": ([], HANDED_ON),
    "a second key that nobody signed": (BASE, Keyed(at=9, key=SECOND.public, signature=None)),
    "a key that another key signed": (BASE, Keyed.handed_on(ORIGIN, SECOND.public, by=THIRD, at=9)),
    "a key that signed itself": (BASE, Keyed.handed_on(ORIGIN, SECOND.public, by=SECOND, at=9)),
    "a key that the one before the last signed": (
        [*BASE, HANDED_ON],
        Keyed.handed_on(ORIGIN, THIRD.public, by=FIRST, at=9),
    ),
    "a key of another log": (
        BASE,
        Keyed.handed_on(checkpoints.origin_of(THIRD.public), SECOND.public, by=FIRST, at=9),
    ),
    "a key under another's signature": (BASE, replace(HANDED_ON, key=THIRD.public)),
    "the same number twice": (BASE, released()),
    "the same number with other bytes": (BASE, released(digest=TWO)),
    "a number left out": (BASE, released(3)),
    "a first release that is not 1": ([ROOT], released(2)),
    "active, and not there": (BASE, activated(2)),
    "active, of an archive that is not there": (BASE, activated(1, "other.py")),
    "active after it was revoked": ([*BASE, revoked()], activated()),
    "active while it waits": (WAITING, activated()),
    "active with too few approvals": ([*WAITING, approved(enough=False)], activated()),
    "active after it was retired": ([*BASE, retired()], activated()),
    "approved, and not there": (BASE, approved(2)),
    "approved with other bytes": (WAITING, approved(digest=TWO)),
    "revoked, and not there": (BASE, revoked(2)),
    "revoked with other bytes": (BASE, revoked(digest=TWO)),
    "retired, and not there": (BASE, retired(2)),
    "retired with other bytes": (BASE, retired(digest=TWO)),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_contradiction_is_no_log_of_an_honest_server(case: str) -> None:
    before, wrong = CONTRADICTIONS[case]
    view = LogView().extended(before)
    with pytest.raises((MalformedError, SignatureError)):
        view.extended([wrong])
    assert view == LogView().extended(before)


def test_each_of_these_is_refused_for_what_it_says() -> None:
    """The leaves before them are fine, and so would be their right counterpart."""
    for before, good in (
        (BASE, released(2)),
        (BASE, revoked()),
        (BASE, HANDED_ON),
        ([*BASE, HANDED_ON], Keyed.handed_on(ORIGIN, THIRD.public, by=SECOND, at=9)),
        ([*WAITING, approved()], activated()),
        (BASE, retired()),
    ):
        assert LogView().extended([*before, good]).size == len(before) + 1


def test_what_may_be_launched() -> None:
    view = LogView().extended(BASE)
    assert view.require_launchable("etl.py", 1, digest=ONE, manifest=TWO).name == "etl.py@1"
    for digest, manifest in ((TWO, TWO), (ONE, ONE)):
        with pytest.raises(DigestMismatchError):
            view.require_launchable("etl.py", 1, digest=digest, manifest=manifest)
    for archive, number in (("etl.py", 2), ("other.py", 1)):
        with pytest.raises(NotFoundError):
            view.require_launchable(archive, number, digest=ONE, manifest=TWO)
    with pytest.raises(RevokedError, match="was revoked"):
        view.extended([revoked()]).require_launchable("etl.py", 1, digest=ONE, manifest=TWO)
    with pytest.raises(RevokedError, match="waits for approval"):
        LogView().extended(WAITING).require_launchable("etl.py", 1, digest=ONE, manifest=TWO)
    with pytest.raises(NotFoundError):
        _ = LogView().origin
    assert view.wanted(QUEUES) == {ONE: 3}
    assert view.extended([retired()]).wanted(QUEUES) == view.extended([revoked()]).wanted(QUEUES) == {}


@settings(max_examples=60)
@given(st.integers(2, 20), st.data())
def test_a_history_with_one_leaf_left_out_or_told_twice_is_refused_or_another(steps: int, data: st.DataObject) -> None:
    """Where it is no contradiction, its view is that of other leaves: never the same with the same size."""
    model = history(data, steps)
    at = data.draw(st.integers(0, len(model.leaves) - 1))
    for other in (model.leaves[:at] + model.leaves[at + 1 :], model.leaves[: at + 1] + model.leaves[at:]):
        try:
            view = LogView().extended(other)
        except SecurityError:
            continue
        assert view.size != len(model.leaves)


def test_an_unsigned_release_is_written_as_before_there_were_signatures() -> None:
    assert b"author" not in leaves.to_bytes(released())
    signed = replace(released(), author=b"signed")
    assert LogView().extended([ROOT, signed]).release("etl.py", 1).author == b"signed"


def test_the_largest_release_is_an_entry() -> None:
    queues = tuple(f"{n:03}{'x' * 97}" for n in range(leaves.MAX_QUEUES))  # as long as a queue's name can be
    largest = replace(released(archive="a" * 190 + ".py"), queues=queues, author=b"a" * authorship.MAX_BYTES)
    assert len(leaves.to_bytes(largest)) < MAX_ENTRY_BYTES // 2


def test_what_is_wanted_can_be_less() -> None:
    view = LogView().extended([*BASE, replace(released(archive="x.py"), author=b"signed"), activated(archive="x.py")])
    assert view.wanted(QUEUES) == {ONE: 3}
    assert view.wanted(QUEUES, lambda release: release.author is None and release.archive == "x.py") == {}

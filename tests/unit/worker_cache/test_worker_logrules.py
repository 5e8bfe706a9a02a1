"""What an agent believes of the log: all that an honest one says, in whatever pieces, and nothing of what is bent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integrity.digests import Digest
from integrity.errors import MalformedError, RollbackError, SecurityError, SignatureError
from tests.logsim import Log, activated, approved, owned, released, retired, revoked
from vocabulary import checkpoints, leaves, merkle, tiles
from vocabulary.keys import SigningKey, VerifyKey
from vocabulary.leaves import Activated, Keyed, Leaf, Released
from vocabulary.logview import LogView
from worker_cache import logrules
from worker_cache.logrules import Followed, ForkError, Update

settings.register_profile("follow", deadline=None, database=None)
settings.load_profile("follow")
T = 1_800_000_000


def step(
    known: Followed, log: Log, *, pinned: VerifyKey | None = None, note: bytes | None = None, at: int = T
) -> Update:
    """One update, as a follower makes it."""
    pinned = pinned or log.key.public
    found = logrules.announced(known, log.note(at=at) if note is None else note, pinned=pinned)
    return logrules.grown(known, found, log.entries[known.tree.size : found.checkpoint.size], pinned=pinned)


def followed(log: Log, **how: Any) -> Followed:
    return step(Followed(), log, **how).followed


@st.composite
def histories(draw: st.DrawFn) -> list[Leaf]:
    """Decisions that an honest service could have made."""
    known: dict[str, list[Released]] = {}
    gone: set[tuple[str, int]] = set()
    waiting: set[tuple[str, int]] = set()
    found: list[Leaf] = []
    for _ in range(draw(st.integers(0, 40))):
        archive = draw(st.sampled_from(["a.py", "b.py", "c.zip"]))
        releases = known.setdefault(archive, [])
        what = draw(st.sampled_from(["release", "activate", "approve", "revoke", "retire", "own"]))
        if what == "release":
            releases.append(released(archive, len(releases) + 1, waits=draw(st.booleans())))
            if releases[-1].waits:
                waiting.add((archive, releases[-1].number))
            found.append(releases[-1])
        elif what == "own":
            found.append(owned(archive))
        elif releases:
            release = draw(st.sampled_from(releases))
            name = (archive, release.number)
            if what == "approve":
                waiting.discard(name)
                found.append(approved(release))
            elif what == "activate" and name not in gone | waiting:
                found.append(activated(*name))
            elif what in ("revoke", "retire"):
                gone.add(name)
                found.append(revoked(release) if what == "revoke" else retired(release))
    return found


@given(histories(), st.lists(st.tuples(st.integers(0, 20), st.booleans(), st.integers(0, 100)), max_size=6))
def test_a_log_that_grows_by_random_batches_is_always_followed(
    history: list[Leaf], batches: list[tuple[int, bool, int]]
) -> None:
    log, known = Log(), Followed()
    pinned, at, left = log.key.public, T, history
    for count, another_key, seconds in [*batches, (len(history), False, 1)]:
        log.add(*left[:count])
        left, at = left[count:], at + seconds
        if another_key:
            log.hand_on()
        update = step(known, log, pinned=pinned, at=at)
        assert update.entries == log.entries[known.tree.size :]
        known = update.followed
        assert known.tree == log.tree()
        assert known.newest is not None and known.newest.note == log.note(at=at)
    said = [leaves.from_bytes(entry) for entry in log.entries]
    assert known.view == LogView().extended(said)
    assert not left
    assert followed(log, pinned=pinned, at=at) == known


LOG = Log()
for number in range(1, 4):
    LOG.push("etl.py", number)
HALF = followed(LOG, note=LOG.note(3, at=T))
NOTE, BUNDLE = LOG.note(at=T + 1), LOG.bundle(3, len(LOG.entries))


def bent(known: Followed, note: bytes, bundle: bytes) -> Update:
    pinned = LOG.key.public
    found = logrules.announced(known, note, pinned=pinned)
    return logrules.grown(known, found, tiles.entries_of(bundle), pinned=pinned)


@given(st.integers(0, len(NOTE) - 1), st.integers(1, 255), st.sampled_from([HALF, Followed()]))
def test_any_bent_byte_of_a_checkpoint_is_refused(at: int, by: int, known: Followed) -> None:
    note = NOTE[:at] + bytes([NOTE[at] ^ by]) + NOTE[at + 1 :]
    with pytest.raises(SecurityError) as raised:
        bent(known, note, LOG.bundle(known.tree.size, len(LOG.entries)))
    assert not isinstance(raised.value, ForkError), "nobody signed it, so it is no evidence of anything"


@given(st.integers(0, len(BUNDLE) - 1), st.integers(1, 255))
def test_any_bent_byte_of_the_entries_is_refused(at: int, by: int) -> None:
    with pytest.raises(SecurityError):
        bent(HALF, NOTE, BUNDLE[:at] + bytes([BUNDLE[at] ^ by]) + BUNDLE[at + 1 :])


@pytest.mark.parametrize("cut", range(len(NOTE)))
def test_a_checkpoint_that_is_cut_off(cut: int) -> None:
    with pytest.raises(SecurityError):
        bent(HALF, NOTE[:cut], BUNDLE)


def test_the_newest_of_equals_is_kept_and_nothing_else_changes() -> None:
    later = step(HALF, LOG, note=LOG.note(3, at=T + 9))
    assert later.followed.newest is not None and later.followed.newest.checkpoint.time == T + 9
    assert (later.followed.tree, later.followed.view, later.entries) == (HALF.tree, HALF.view, [])


def refused(kind: type[Exception], text: str, known: Followed, log: Log, **how: Any) -> None:
    with pytest.raises(kind, match=text) as raised:
        step(known, log, **how)
    assert type(raised.value) is kind


def test_smaller_or_older_is_a_rollback() -> None:
    whole = followed(LOG)
    refused(RollbackError, "has 6 leaves and had 7", whole, LOG, note=LOG.note(6, at=T + 1))
    refused(RollbackError, "1 s older", whole, LOG, note=LOG.note(at=T - 1))
    refused(RollbackError, "1 s older", HALF, LOG, note=LOG.note(at=T - 1))


def test_two_pasts_are_a_fork() -> None:
    other = LOG.copy(3)
    other.push("evil.py", 1)
    five = followed(LOG, note=LOG.note(5, at=T))
    refused(ForkError, "two logs of 5 leaves", five, other)
    other.push("evil.py", 2)
    refused(ForkError, "does not go on", five, other)
    assert step(HALF, other).followed.tree.size == 7, "who knows only what is common cannot tell"


def test_at_first_contact_wrong_entries_are_no_fork() -> None:
    found = logrules.announced(Followed(), NOTE, pinned=LOG.key.public)
    with pytest.raises(SignatureError, match="not those"):
        logrules.grown(Followed(), found, [*LOG.entries[:-1], b"{}"], pinned=LOG.key.public)
    with pytest.raises(MalformedError, match="6 entries"):
        logrules.grown(Followed(), found, LOG.entries[:-1], pinned=LOG.key.public)


def test_another_log_and_an_empty_one() -> None:
    other = Log()
    other.push("etl.py", 1)
    refused(SignatureError, r"is of log .*, followed is", HALF, LOG, note=other.note(at=T + 1))
    both = Log(key=LOG.key, entries=other.entries, origin=other.origin)
    refused(SignatureError, "is of log", HALF, LOG, note=both.note(at=T + 1))
    empty = checkpoints.sign(
        checkpoints.Checkpoint(origin=LOG.origin, size=0, root=merkle.Tree().root, time=T), LOG.key
    )
    refused(MalformedError, "empty log", Followed(), LOG, note=empty)
    misnamed = Log(key=LOG.key, entries=LOG.entries, origin=other.origin)
    refused(SignatureError, "is not signed|is of log", Followed(), misnamed, pinned=LOG.key.public)


def test_a_key_is_handed_on_and_the_former_is_no_more_good() -> None:
    log = LOG.copy()
    first = log.key
    known = followed(log)
    second = log.hand_on()
    log.push("new.py", 1)
    grown = step(known, log, pinned=first.public).followed
    assert grown.view.keys == (first.public, second.public)
    assert grown.newest is not None and grown.newest.key_id == second.public.key_id
    refused(SignatureError, "handed on since", grown, log, note=log.note(at=T + 1, key=first), pinned=first.public)
    log.push("new.py", 2)
    refused(SignatureError, "handed on since", grown, log, note=log.note(at=T + 1, key=first), pinned=first.public)
    # Nor is it for who learns of the new one from what it signs.
    refused(SignatureError, "not signed", known, log, note=log.note(at=T + 1, key=first), pinned=first.public)
    refused(SignatureError, "not signed", Followed(), log, note=log.note(key=first, at=T), pinned=first.public)


@pytest.mark.parametrize("pinned", [0, 1, 2])
def test_first_contact_with_any_key_of_the_chain(pinned: int) -> None:
    log = Log()
    keys = [log.key]
    for number in (1, 2):
        log.push("etl.py", number)
        keys.append(log.hand_on())
    found = followed(log, pinned=keys[pinned].public)
    assert found.view.keys == tuple(key.public for key in keys)
    assert found.newest is not None and found.newest.checkpoint.origin == checkpoints.origin_of(keys[0].public)


def test_a_chain_that_does_not_have_the_pinned_key() -> None:
    log, stranger = LOG.copy(), SigningKey.generate()
    refused(SignatureError, "is none of the log's 1", Followed(), log, pinned=stranger.public)
    log.hand_on()
    refused(SignatureError, "is none of the log's 2", Followed(), log, pinned=stranger.public)


def test_keys_that_nobody_handed_on() -> None:
    known = followed(LOG)
    evil = SigningKey.generate()
    for by in (evil, SigningKey.generate()):
        log = LOG.copy()
        log.hand_on(evil, by=by)
        refused(SignatureError, "is not one of key", known, log, pinned=LOG.key.public)
    log = LOG.copy()
    log.add(Keyed(at=1, key=evil.public, signature=None))
    log.key = evil
    refused(MalformedError, "signed by the key before", known, log, pinned=LOG.key.public)
    refused(SignatureError, "not signed", known, LOG, note=LOG.note(at=T, key=evil), pinned=LOG.key.public)
    log = LOG.copy()
    log.push("evil.py", 1)
    refused(SignatureError, "not signed", known, log, note=log.note(at=T, key=evil), pinned=LOG.key.public)
    # Handed on in another log, by the right key.
    log = LOG.copy()
    log.add(Keyed.handed_on(Log().origin, evil.public, by=LOG.key, at=1))
    log.key = evil
    refused(SignatureError, "is not one of key", known, log, pinned=LOG.key.public)


def test_what_an_unverified_server_may_have_fetched() -> None:
    evil = SigningKey.generate()
    stated = replace(LOG.stated(at=T), size=HALF.tree.size + logrules.MAX_UNVERIFIED_LEAVES)
    found = logrules.announced(HALF, checkpoints.sign(stated, evil), pinned=LOG.key.public)
    assert found.max_bytes(HALF) == logrules.MAX_UNVERIFIED_BYTES
    stated = replace(stated, size=stated.size + 1)
    found = logrules.announced(HALF, checkpoints.sign(stated, evil), pinned=LOG.key.public)
    with pytest.raises(SignatureError, match="too many to look for one"):
        found.max_bytes(HALF)
    genuine = logrules.announced(HALF, checkpoints.sign(stated, LOG.key), pinned=LOG.key.public)
    assert genuine.max_bytes(HALF) == logrules.MAX_BYTES


@pytest.mark.parametrize(
    ("leaf", "text"),
    [
        (released("etl.py", 5), "out of turn"),
        (released("etl.py", 2), "out of turn"),
        (activated("etl.py", 9), "cannot be launched"),
        (revoked(released("etl.py", 1, data=b"other bytes")), "or otherwise"),
    ],
)
def test_signed_leaves_that_contradict_what_is_known(leaf: Leaf, text: str) -> None:
    log = LOG.copy()
    log.add(leaf)
    refused(MalformedError, text, followed(LOG), log)


def test_a_revoked_release_does_not_become_active_again() -> None:
    log = LOG.copy()
    log.add(revoked(released("etl.py", 1)))
    known = followed(log)
    log.add(Activated(at=1, by="ann", archive="etl.py", number=1))
    refused(MalformedError, "cannot be launched", known, log)


def test_a_note_of_others_beside_ours_is_as_good() -> None:
    """Witnesses add their signatures."""
    witness = SigningKey.generate()
    line = checkpoints.sign(LOG.stated(at=T), witness).split(b"\n\n", 1)[1]
    known = followed(LOG, note=LOG.note(at=T) + line)
    assert known.newest is not None and known.newest.note.endswith(line)


def test_what_is_wanted_is_what_is_active_in_these_queues() -> None:
    log, queues = LOG.copy(), frozenset({"default"})
    assert followed(log).view.wanted(queues) == {Digest.of(b"etl.py@3"): 8}
    log.push("a.py", 1)
    log.add(released("a.py", 2))
    log.push("etl.py", 4)
    log.push("etl.py", 5)
    log.push("gone.py", 1)
    log.add(revoked(released("gone.py", 1)))
    log.add(replace(released("gpu.py", 1), queues=("gpu",)), activated("gpu.py", 1))
    view, gpu = followed(log).view, Digest.of(b"gpu.py@1")
    assert view.wanted(queues) == {Digest.of(b"a.py@1"): 6, Digest.of(b"etl.py@5"): 8}, "none says no queue: all"
    assert set(view.wanted(frozenset({"gpu", "x"}))) == {*view.wanted(queues), gpu}

"""Whether a worker has what it should: each sentence of the rule, and which of them counts first."""

from __future__ import annotations

from typing import Any

import pytest

from integrity.digests import Digest
from submit_api import drift
from submit_api.drift import BEHIND, DRIFTED, VERIFIED, Due, Report
from vocabulary import holdings

A, B = Digest.of(b"a"), Digest.of(b"b")
DUE = Due(log_size=9, log_root=b"r" * 32, held_root=holdings.root([A, B]))


def report(**changes: Any) -> Report:
    fields: dict[str, Any] = {
        "at": 1000,
        "log_size": 9,
        "log_root": b"r" * 32,
        "held_root": holdings.root([B, A]),
        "missing": frozenset(),
        "missing_count": 0,
        "damaged": (),
        "alarm": "",
    }
    return Report(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "state", "why"),
    [
        ({}, VERIFIED, ""),
        ({"log_size": 8}, BEHIND, "8 of the log's 9"),
        ({"missing_count": 1, "missing": frozenset([A]), "held_root": holdings.root([B])}, BEHIND, "1 active"),
        ({"held_root": holdings.root([A])}, DRIFTED, "other bytes"),
        ({"held_root": holdings.root([])}, DRIFTED, "other bytes"),
        ({"damaged": (A,)}, DRIFTED, "changed in its cache"),
        ({"damaged": (A, B), "log_size": 8}, DRIFTED, "2 blobs"),
        ({"log_root": b"x" * 32}, DRIFTED, "another log"),
        ({"log_size": 10}, DRIFTED, "restored"),
        ({"alarm": "fork"}, DRIFTED, "does not believe"),
    ],
)
def test_a_report_is_judged(changes: dict[str, Any], state: str, why: str) -> None:
    found = drift.judge(report(**changes), DUE)
    assert found.state == state
    assert why in found.why
    assert bool(found.why) == (state != VERIFIED)


def test_a_log_that_ended_nowhere_like_that_is_another_log() -> None:
    assert drift.judge(report(log_size=5), Due(log_size=9, log_root=None, held_root=DUE.held_root)).state == DRIFTED


def test_what_is_not_said_to_be_missing_is_held_only_by_who_knows_its_leaf_and_names_all() -> None:
    assert report().has(A, leaf=8)
    assert not report().has(A, leaf=9)
    assert not report(missing=frozenset([A]), missing_count=1).has(A, leaf=8)
    assert not report(missing=frozenset([B]), missing_count=2).has(A, leaf=8)


def test_silence_begins_after_the_limit() -> None:
    assert drift.is_silent(None, now=0, silent_us=10)
    assert not drift.is_silent(report(at=1000), now=1010, silent_us=10)
    assert drift.is_silent(report(at=1000), now=1011, silent_us=10)


def test_a_root_is_of_a_set() -> None:
    assert holdings.root([A, B, A]) == holdings.root([B, A])
    assert len({holdings.root(each) for each in ([], [A], [B], [A, B])}) == 4

"""Impersonation rules: one table of who may run as whom, and what no order of the rules can change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integrity.digests import Digest
from integrity.errors import MalformedError, OutOfScopeError
from submit_api.impersonation import CALLER, OWNER, SUBMITTER, Party, Question, choose_user, decide
from submit_api.refusals import InvalidRequestError
from submit_api.registry.records import Rule
from vocabulary.manifest import TaskEntry

TASK = TaskEntry(
    task_id="t", digest=Digest.of(b""), operator="X", run_as_user=None, queue="q", connections=(), mapped=False
)
ALICE = Party(role=OWNER, principal="alice", groups={"team"})
BOB = Party(role=SUBMITTER, principal="bob", groups={"team", "interns"})
EVE = Party(role=CALLER, principal="eve", groups={"guests"})
ASKED = Question(owner=ALICE, others=(BOB, EVE), dag_id="etl_a", user="u", queue="default")


def rule(subject: str = "alice", **changes: Any) -> Rule:
    """`allow alice`, or `allow :team` for a group, of every dag in every queue as `u`."""
    kind = "group" if subject.startswith(":") else "principal"
    fields: dict[str, Any] = {"id": "1" * 32, "dag_glob": "*", "unix_user": "u", "queue_glob": "*", "created_at": 1}
    return Rule(created_by="admin", subject_kind=kind, subject=subject.lstrip(":"), **{**fields, **changes})


def deny(subject: str, **changes: Any) -> Rule:
    return rule(subject, effect="deny", **{"id": "d" * 32, **changes})


ALLOWED: dict[str, list[Rule]] = {
    "the owner by name": [rule()],
    "the owner by group": [rule(":team")],
    "a glob of dags": [rule(dag_glob="etl_*")],
    "a glob of queues": [rule(queue_glob="def[a-z]ult")],
    "one of several": [rule(unix_user="v"), rule("carl"), rule(id="2" * 32)],
    "a deny rule for another dag": [rule(), deny("alice", dag_glob="pay_*")],
    "a deny rule for another user": [rule(), deny("alice", unix_user="v")],
    "a deny rule for another queue": [rule(), deny("alice", queue_glob="big")],
    "a deny rule for a stranger": [rule(), deny("carl"), deny(":strangers")],
    "a deny rule for a group named like the owner": [rule(), deny(":alice")],
}
REFUSED: dict[str, list[Rule]] = {
    "no rule": [],
    "a group named like the owner": [rule(":alice")],
    "a principal named like the group": [rule("team")],
    "another owner": [rule("carl")],
    "globs have a case": [rule(dag_glob="ETL_*")],
    "a glob is of the whole id": [rule(dag_glob="etl")],
    "another unix user": [rule(unix_user="v")],
    "another queue": [rule(queue_glob="big")],
    "who submitted it, and is no owner": [rule("bob"), rule(":interns")],
    "who asks for it, and is no owner": [rule("eve"), rule(":guests")],
}
DENIED: dict[str, tuple[list[Rule], str]] = {
    "the owner": ([rule(), deny("alice")], "alice is the owner"),
    "the owner's group": ([rule(), rule(":team", id="2" * 32), deny(":team")], "alice is the owner"),
    "an older allow": ([rule(created_at=1), deny("alice", created_at=9)], "alice is the owner"),
    "a newer allow": ([rule(created_at=9), deny("alice", created_at=1)], "alice is the owner"),
    "without any allow": ([deny("alice")], "alice is the owner"),
    "the submitter": ([rule(), deny("bob")], "bob is the submitter"),
    "the submitter's group": ([rule(), deny(":interns", dag_glob="etl_*")], "bob is the submitter"),
    "the caller": ([rule(), deny("eve", queue_glob="default")], "eve is the caller"),
    "the caller's group": ([rule(), deny(":guests")], "eve is the caller"),
    "an effect of a later version": ([rule(), rule(id="d" * 32, effect="ask")], "alice is the owner"),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_allowed(name: str) -> None:
    verdict = decide(ALLOWED[name], ASKED)
    assert verdict.allowed and verdict.decides is not None
    assert verdict.require() == verdict.decides.rule.id
    assert verdict.decides.rule.effect == "allow" and verdict.decides.party is ALICE


@pytest.mark.parametrize("name", REFUSED)
def test_refused_where_no_rule_allows(name: str) -> None:
    verdict = decide(REFUSED[name], ASKED)
    assert not verdict.allowed and verdict.decides is None and verdict.matches == ()
    with pytest.raises(OutOfScopeError, match=r"no rule lets alice .*dagseal impersonation allow alice --as-user u"):
        verdict.require()


@pytest.mark.parametrize("name", DENIED)
def test_denied_whatever_else_allows(name: str) -> None:
    rules, who = DENIED[name]
    verdict = decide(rules, ASKED)
    assert not verdict.allowed
    with pytest.raises(OutOfScopeError, match=f"{who}: .*dagseal impersonation rm {'d' * 32}") as caught:
        verdict.require()
    assert caught.value.rule == "d" * 32
    assert verdict.decides is not None and verdict.decides.rule.id == "d" * 32


def test_the_oldest_of_those_that_fit_is_named() -> None:
    first, second = rule(id="2" * 32, created_at=1), rule(id="1" * 32, created_at=2)
    assert [match.rule for match in decide([second, first], ASKED).matches] == [first, second]
    assert decide([second, first], ASKED).require() == first.id
    assert decide([second, replace(first, created_at=2)], ASKED).require() == second.id


SUBJECTS = st.sampled_from(["alice", "bob", "eve", "carl", ":team", ":interns", ":guests", ":strangers"])


@st.composite
def rules(draw: st.DrawFn) -> list[Rule]:
    count = draw(st.integers(0, 8))
    return [
        rule(
            draw(SUBJECTS),
            id=f"{number:032x}",
            effect=draw(st.sampled_from(["allow", "deny"])),
            dag_glob=draw(st.sampled_from(["*", "etl_*", "pay_*"])),
            unix_user=draw(st.sampled_from(["u", "v"])),
            queue_glob=draw(st.sampled_from(["*", "default", "big"])),
            created_at=draw(st.integers(1, 3)),
        )
        for number in range(count)
    ]


@given(rules(), st.randoms())
def test_the_order_of_the_rules_means_nothing(found: list[Rule], random: Any) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)
    assert decide(shuffled, ASKED) == decide(found, ASKED)


@given(rules(), rules())
def test_a_rule_more_never_turns_round_what_it_does_not_speak_of(found: list[Rule], more: list[Rule]) -> None:
    """More deny rules never allow, more allow rules never refuse; and one deny rule that fits refuses for good."""
    before = decide(found, ASKED).allowed
    allows = [replace(one, effect="allow", id=f"{n:032x}") for n, one in enumerate(more, 100)]
    denies = [replace(one, effect="deny") for one in allows]
    assert decide(found + allows, ASKED).allowed >= before
    assert decide(found + denies, ASKED).allowed <= before
    if any(match.rule.effect == "deny" for match in decide(found, ASKED).matches):
        assert not decide(found + allows, ASKED).allowed


@pytest.mark.parametrize(
    ("wanted", "manifest", "default", "chosen"),
    [
        ("a", "b", "c", ("a", "request")),
        (None, "b", "c", ("b", "manifest")),
        (None, None, "c", ("c", "default_impersonation")),
    ],
)
def test_who_chooses_the_user(wanted: str | None, manifest: str | None, default: str, chosen: tuple[str, str]) -> None:
    assert choose_user(wanted, replace(TASK, run_as_user=manifest), default) == chosen


def test_a_user_that_nobody_names_or_that_is_none() -> None:
    with pytest.raises(InvalidRequestError, match="default_impersonation is not set"):
        choose_user(None, TASK, "")
    for bad in ("0", "Root", "a b", "../x"):
        with pytest.raises(MalformedError):
            choose_user(None, replace(TASK, run_as_user=bad), "c")

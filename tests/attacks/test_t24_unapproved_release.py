"""T24 unapproved-release: a submitter has code launched that no second member of the group looked at.

Seen to fail when weakened: `recording.decide` that asks the new group only; `require_launchable` that does not look
whether a release waits; `_require_second` that lets the submitter through, or who is not in the group; `groups_behind` that
gives every group of the owner; `owning._require_no_approvals` that returns.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import pytest

from tests.attacks.attacker import LyingAgent, Traces, traced_dag
from tests.attacks.test_t18_overreach import Person, allow, person, refused
from tests.live import Answer, Live


@dataclass(frozen=True, slots=True)
class Team:
    """A group that asks for one approval: alice submits, bob is the second member. Release 1 is approved and active."""

    live: Live
    group: str
    alice: Person
    bob: Person

    @property
    def dag_id(self) -> str:
        return self.alice.name

    @property
    def name(self) -> str:
        return f"{self.alice.name}.py"

    def push(self, source: str, query: str = "", *, by: Person | None = None) -> Answer:
        return (by or self.alice).push(self.name, source, query)

    def approve(self, number: int, by: Person, **changes: object) -> Answer:
        digest = self.live.http("GET", f"/v1/archives/{self.name}/releases/{number}").json["digest"]
        return by.http("POST", f"/v1/archives/{self.name}/releases/{number}/approve", {"digest": digest, **changes})

    def active(self) -> int | None:
        found: int | None = self.live.http("GET", f"/v1/archives/{self.name}").json["active"]
        return found


@pytest.fixture
def team(live: Live, traces: Traces) -> Team:
    alice, bob = person(live, "alice"), person(live, "bob")
    made = Team(live, f"team-{secrets.token_hex(4)}", alice, bob)
    body = {"members": [alice.name, bob.name], "approvals": 1}
    assert live.http("PUT", f"/v1/groups/{made.group}", body).status == 200
    allow(live, made.group, subject_kind="group")
    assert made.push(traced_dag(made.dag_id, traces), f"?group={made.group}").status == 201
    assert made.approve(1, bob).json["state"] == "active"
    return made


def evil(team: Team, traces: Traces) -> str:
    return traced_dag(team.dag_id, traces).replace('trace("ran")', 'trace("evil")')


def test_every_way_that_a_submitter_has(live: Live, team: Team, traces: Traces) -> None:
    alice = team.alice
    waiting = team.push(evil(team, traces))
    assert (waiting.status, waiting.json["state"]) == (201, "pending")
    at = f"/v1/archives/{team.name}"
    again = live.http("POST", "/v1/tokens", {"principal": alice.name}).json["token"]
    digest = waiting.json["digest"]

    refused(live, alice.launch(team.dag_id, release=2), 409, "unapproved", alice)
    refused(live, alice.http("POST", f"{at}/releases/2/activate"), 409, "unapproved", alice)
    refused(live, alice.http("POST", f"{at}/rollback?to=2"), 409, "conflict", alice)
    refused(live, team.approve(2, alice), 403, "second-member", alice)
    answer = live.http("POST", f"{at}/releases/2/approve", {"digest": digest}, token=again)
    refused(live, answer, 403, "second-member", alice)
    refused(live, team.approve(2, alice, unsafe_alone=True, reason="trust me"), 403, "out-of-scope", alice)
    moved = team.push(evil(team, traces) + "# moved\n", f"?group={alice.name}")
    assert (moved.status, moved.json["state"]) == (201, "pending")
    # Approved, then pushed once more: what runs is what was looked at.
    assert team.push(traced_dag(team.dag_id, traces) + "# fine\n").json["number"] == 4
    assert team.approve(4, team.bob).json["state"] == "active"
    assert team.push(evil(team, traces) + "# again\n").json["state"] == "pending"
    refused(live, team.approve(5, team.bob, digest=digest), 412, "precondition", team.bob)
    # A run that began with what was approved, and one that names no release.
    for run_id in ("one", "two"):
        made = alice.launch(team.dag_id, run_id=run_id)
        assert made.json["release"] == 4
        assert live.wait(made.json["id"])["state"] == "success"
    assert team.active() == 4
    assert (len(traces.of("ran")), traces.of("evil")) == (2, [])


def test_who_is_no_second_member(live: Live, team: Team, traces: Traces) -> None:
    """An administrator, one from outside, a pipeline's token of the second member, and he himself once he has left."""
    assert team.push(evil(team, traces)).status == 201
    admin, mallory = person(live, "admin", admin=True), person(live, "mallory")
    refused(live, team.approve(2, admin), 403, "second-member", admin)
    refused(live, team.approve(2, mallory), 403, "not-owner", mallory)
    scoped = {"principal": team.bob.name, "scopes": ["archive:push:alice"]}
    pipeline = Person(live, team.bob.name, live.http("POST", "/v1/tokens", scoped).json["token"])
    refused(live, team.approve(2, pipeline), 403, "out-of-scope", pipeline)
    assert live.http("PUT", f"/v1/groups/{team.group}", {"members": [team.alice.name]}).status == 200
    refused(live, team.approve(2, team.bob), 403, "not-owner", team.bob)
    refused(live, team.alice.launch(team.dag_id, release=2), 409, "unapproved", team.alice)
    assert (team.active(), traces.of("evil")) == (1, [])


def test_the_authority_of_the_group_in_an_archive_of_ones_own(live: Live, team: Team, traces: Traces) -> None:
    """The rule that lets the group run as a unix user is not there for an archive that nobody else looks at."""
    dag_id = f"{team.dag_id}-own"
    own = team.alice.push(f"{dag_id}.py", evil(team, traces).replace(repr(team.dag_id), repr(dag_id)))
    assert (own.status, own.json["state"]) == (201, "active")
    answer = team.alice.launch(dag_id)
    refused(live, answer, 403, "out-of-scope", team.alice)
    assert f"what group {team.group} may is for archives of that group only" in answer.json["detail"]
    assert team.alice.http("GET", f"/v1/launches?dag_id={dag_id}").json["launches"] == []
    assert not traces.of("evil")


def test_out_of_the_group_without_a_push(live: Live, team: Team, traces: Traces) -> None:
    """By chgrp, or by giving the dag_id to an archive that nobody else looks at: the owner cannot, nor another member."""
    path, move = f"/v1/ownership/archive/{team.name}", f"/v1/dags/{team.dag_id}/transfer"
    for who in (team.alice, team.bob):
        own = f"{who.name}-own"
        source = evil(team, traces).replace(repr(team.dag_id), repr(own))
        assert who.push(f"{own}.py", source).json["state"] == "active"
        refused(live, who.http("PATCH", path, {"group": who.name}), 403, "not-owner", who)
        answer = who.http("POST", move, {"archive": f"{own}.py"})
        refused(live, answer, 403, "not-owner", who)
        assert "asks for approvals" in answer.json["detail"]
        refused(live, who.push(f"{own}.py", evil(team, traces)), 409, "conflict", who)
    found = team.alice.http("GET", path).json
    assert (found["owner"], found["group"]) == (team.alice.name, team.group)
    assert (team.active(), traces.of("evil")) == (1, [])


def test_the_administrators_way_is_named_unsafe_and_audited(live: Live, team: Team, traces: Traces) -> None:
    assert team.push(traced_dag(team.dag_id, traces) + "# urgent\n").json["number"] == 2
    digest = live.http("GET", f"/v1/archives/{team.name}/releases/2").json["digest"]
    alone = ("approve", f"{team.name}@2", "--digest", digest)
    assert live.cli(*alone).returncode == 4
    assert live.cli(*alone, "--unsafe-alone").returncode == 2
    assert team.active() == 1
    done = live.cli(*alone, "--unsafe-alone", "--reason", "bob is away, it burns")
    assert done.returncode == 0, done.stderr
    assert team.active() == 2
    events = live.audit(object=f"archive:{team.name}")
    (said,) = [event for event in events if event["action"] == "release.approve-unsafe"]
    assert (said["principal"], said["digest"], said["verdict"]) == ("admin", digest, "accepted")
    assert "bob is away, it burns" in said["detail"]
    agent = LyingAgent.enrol(live)
    assert agent.run_honestly(agent.offer(team.dag_id))[0].state == "success"

"""T30 foreign-message, first half: a broker's message is forged, replayed or another worker's, and a worker asks for it.

The API is the real one, in a process of its own. Whoever holds a worker's token asks for what no scheduler reserved, for what
is another queue's, and for what is over; and whoever holds a token that may not launch reserves. Each is told exactly why not,
and nothing but the audit log has changed.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from integrity.digests import Digest
from tests.attacks.attacker import LyingAgent, dag, until
from tests.live import Answer, Live
from vocabulary import sets
from vocabulary.sets import Member


class Run:
    """A dag of its own with its set, reserved by the administrator for the queue of an agent."""

    def __init__(self, live: Live, agent: LyingAgent) -> None:
        self.live, self.agent = live, agent
        self.dag_id = f"t30{secrets.token_hex(4)}"
        self.task_instance = str(uuid.uuid4())
        pushed = live.push(f"{self.dag_id}.py", dag(self.dag_id, "pass"), "?task_check=archive")
        assert pushed.status == 201, pushed.body
        self.digest = Digest.parse(pushed.json["digest"])
        body = sets.to_bytes([Member(archive=f"{self.dag_id}.py", number=1, digest=self.digest)])
        self.set = Digest.of(body).hex
        assert self.put(body).status == 201

    def put(self, body: bytes, name: str = "") -> Answer:
        headers = {"Content-Type": "application/json"}
        path = f"/v1/sets/{name or Digest.of(body).hex}"
        return self.live.http("PUT", path, body, token=self.agent.token, headers=headers)

    def ask(self, *, token: str | None = None, **changes: Any) -> Answer:
        fields = {
            "task_instance": self.task_instance, "queueing": "1", "dag_id": self.dag_id, "task_id": "t", "run_id": "r",
            "map_index": -1, "try_number": 1, "queue": self.agent.name, "set": self.set, "task_digest": None,
            "valid_seconds": 600,
        }  # fmt: skip
        return self.live.http("POST", "/v1/reservations", {"reservations": [{**fields, **changes}]}, token=token)

    def reserve(self, **changes: Any) -> dict[str, Any]:
        answer = self.ask(**changes)
        assert answer.status == 200, answer.body
        return dict(answer.json["reservations"][0])

    def take(self, *, by: LyingAgent | None = None, queues: list[str] | None = None, **changes: Any) -> Answer:
        by = by or self.agent
        body = {"queues": queues or [by.name], "task_instance": self.task_instance, **changes}
        return self.live.http("POST", f"/v1/workers/{by.name}/take", body, token=by.token)

    def launches(self) -> list[dict[str, Any]]:
        return list(self.live.http("GET", f"/v1/launches?dag_id={self.dag_id}").json["launches"])

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        before = self.launches()
        yield
        assert self.launches() == before


@pytest.fixture
def run(live: Live, agent: LyingAgent) -> Run:
    return Run(live, agent)


def test_what_no_scheduler_reserved(run: Run, agent: LyingAgent) -> None:
    """Neither an invented one nor, under its name, something else that is there to be had."""
    plain = agent.reserve(run.dag_id)
    with run.unchanged():
        unknown = run.take()
        assert (unknown.status, unknown.problem) == (404, "not-found")
        malformed = run.take(task_instance="../" + run.task_instance)
        assert (malformed.status, malformed.problem) == (422, "invalid-request")
    assert [one["id"] for one in run.launches()] == [plain]


def test_a_worker_that_takes_what_there_is_gets_no_reservation(run: Run, agent: LyingAgent) -> None:
    assert run.reserve()["state"] == "queued"
    with run.unchanged():
        answer = run.live.http("POST", f"/v1/workers/{agent.name}/take", {"queues": [agent.name]}, token=agent.token)
        assert answer.status == 204


def test_what_was_reserved_for_another_queue(run: Run) -> None:
    assert run.reserve()["state"] == "queued"
    other = LyingAgent.enrol(run.live)
    with run.unchanged():
        refused = run.take(by=other)
        assert (refused.status, refused.problem) == (403, "out-of-scope")
        assert refused.json["detail"].startswith(
            f"task instance {run.task_instance} was reserved for queue {run.agent.name}"
        )
        claims_it = run.take(by=other, queues=[run.agent.name])
        assert (claims_it.status, claims_it.problem) == (403, "out-of-scope")
        assert claims_it.json["detail"].startswith(f"worker {other.name} is not enrolled for queue {run.agent.name}")
    event = run.live.audit(object=f"worker:{other.name}")[-1]
    assert (event["action"], event["verdict"], event["rule"]) == ("launch.take", "refused", "out-of-scope")
    assert run.take().status == 200


def test_what_somebody_has_taken_already(run: Run) -> None:
    """The message is replayed: while the ticket is out there is nothing, also for the one that has it."""
    run.reserve()
    assert run.take().status == 200
    with run.unchanged():
        assert run.take().status == 204


def superseded(run: Run) -> None:
    first = run.reserve()
    second = run.reserve(queueing="2")
    assert run.live.http("POST", f"/v1/launches/{second['launch_id']}/cancel").status == 200
    assert run.live.http("GET", f"/v1/launches/{first['launch_id']}").json["error"] == "superseded"


def refused_by_its_launcher(run: Run) -> None:
    launch_id = run.reserve()["launch_id"]
    assert run.take().status == 200
    said = {"state": "refused", "error": "replay", "detail": "the ticket was used"}
    assert run.live.http("POST", f"/v1/launches/{launch_id}/state", said, token=run.agent.token).status == 200


def expired(run: Run) -> None:
    launch_id = run.reserve(valid_seconds=1)["launch_id"]
    until("it is over", lambda: run.live.http("GET", f"/v1/launches/{launch_id}").json["state"] == "refused")


def without_a_version(run: Run) -> None:
    assert run.reserve(set=None)["state"] == "refused"


def revoked(run: Run) -> None:
    run.reserve()
    assert run.live.http("POST", f"/v1/archives/{run.dag_id}.py/releases/1/revoke").status == 200
    answer = run.take()
    assert (answer.status, answer.problem) == (409, "conflict")


OVER = {
    superseded: ("cancelled", "cancelled by admin"),
    refused_by_its_launcher: ("replay", "the ticket was used"),
    expired: ("expired", "no worker took launch"),
    without_a_version: ("no-version", "the run is pinned to no version"),
    revoked: ("conflict", "was revoked"),
}


@pytest.mark.parametrize("end", OVER, ids=lambda end: end.__name__)
def test_what_is_over(run: Run, end: Callable[[Run], None]) -> None:
    """The message stays in the broker, and comes again and again."""
    end(run)
    slug, says = OVER[end]
    with run.unchanged():
        for _ in range(2):
            answer = run.take()
            assert (answer.status, answer.problem) == (409, slug)
            assert says in answer.json["detail"]


def test_a_token_without_the_scope_reserves_nothing(run: Run) -> None:
    made = run.live.http("POST", "/v1/tokens", {"principal": "admin", "admin": True, "scopes": ["audit:read"]})
    with run.unchanged():
        answer = run.ask(token=made.json["token"])
        assert (answer.status, answer.problem) == (403, "out-of-scope")
        answer = run.ask(token=run.agent.token)
        assert (answer.status, answer.problem) == (403, "out-of-scope")
    assert run.take().status == 404


def test_who_may_not_launch_the_dag_neither_supersedes_nor_shadows_it(run: Run) -> None:
    """By a scope for other dags, as somebody without rights, and with a dag of his own under the task instance's name."""
    queued = run.reserve()
    limited = run.live.http("POST", "/v1/tokens", {"principal": "admin", "admin": True, "scopes": ["launch:other*"]})
    mallory = run.live.http("POST", "/v1/tokens", {"principal": f"m{secrets.token_hex(4)}"})
    own = Run(run.live, run.agent)
    with run.unchanged(), own.unchanged():
        for token, slug in ((limited, "out-of-scope"), (mallory, "not-owner")):
            answer = run.ask(token=token.json["token"], queueing="2")
            (told,) = answer.json["reservations"]
            assert (told["state"], told["error"], told["launch_id"]) == ("refused", slug, None)
        told = own.reserve(task_instance=run.task_instance, queueing="2")
        assert (told["state"], told["error"], told["launch_id"]) == ("refused", "conflict", None)
        told = run.reserve(task_id="u")
        assert (told["state"], told["error"], told["launch_id"]) == ("refused", "conflict", None)
    events = run.live.audit(object=f"task-instance:{run.task_instance}")
    assert [event["verdict"] for event in events] == ["refused"] * 4
    assert run.take().json["launch_id"] == queued["launch_id"]


def test_a_set_that_is_not_what_it_says(run: Run) -> None:
    """Under another's digest, of a release that is not recorded, of one under other bytes; and by somebody who is no worker."""
    good = Member(archive=f"{run.dag_id}.py", number=1, digest=run.digest)
    body = sets.to_bytes([good])
    unrecorded = sets.to_bytes([Member(archive=good.archive, number=2, digest=good.digest)])
    other = sets.to_bytes([Member(archive=good.archive, number=1, digest=Digest.of(b"x"))])
    for answer, status, slug in (
        (run.put(unrecorded, run.set), 422, "digest-mismatch"),
        (run.put(body, Digest.of(unrecorded).hex), 422, "digest-mismatch"),
        (run.put(unrecorded), 404, "not-found"),
        (run.put(other), 404, "not-found"),
        (run.live.http("PUT", f"/v1/sets/{run.set}", body), 403, "out-of-scope"),
    ):
        assert (answer.status, answer.problem) == (status, slug)
    for name in (Digest.of(unrecorded).hex, Digest.of(other).hex):
        assert run.live.http("GET", f"/v1/sets/{name}").status == 404
    assert run.reserve(set=Digest.of(other).hex)["error"] == "not-found"

"""T13 lying-agent: a worker with a valid token claims twice, forges claims, results and logs, and reaches for others' launches.

Seen to fail when weakened: `_require_current` without its first rule; `verify_claim` or `verify_result` that parses
and does not verify; `finishing.own` that does not compare the worker; `dispatching.take` that does not compare the
queues; `permissions.require_action` that lets workers pass; `TaskLog._keep` that hashes the text alone.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from integrity import canonical
from integrity.digests import Digest
from submit_api.http.table import ROUTES
from submit_api.permissions import ACTIONS, FETCHERS, PUBLIC, WORKERS
from tests.attacks.attacker import (
    LyingAgent,
    Offer,
    Peer,
    Traces,
    dag,
    flip,
    launcher_keys,
    opened,
    traced_dag,
    until,
)
from tests.live import Answer, Live
from tests.routes import path_of
from vocabulary import claims
from vocabulary.claims import Claim, Result
from vocabulary.keys import SigningKey


@contextmanager
def at_its_claim(live: Live, agent: LyingAgent, traces: Traces, dag_id: str) -> Iterator[tuple[Offer, Peer, bytes]]:
    """An offer, the launcher that waits for the grant, and the claim that it signed."""
    answer = live.push(f"{dag_id}.py", traced_dag(dag_id, traces))
    assert answer.status in (200, 201), answer.body
    offer = agent.offer(dag_id)
    with agent.connect() as peer, opened(offer.blob) as fd:
        said = peer.run(offer.ticket, offer.manifest, fd)
        assert said.kind == "claim"
        yield offer, peer, said.envelope


def refused(live: Live, answer: Answer, status: int, slug: str, launch_id: str) -> None:
    """Refused so, and recorded so."""
    assert (answer.status, answer.problem) == (status, slug), answer.body
    last = live.audit(object=f"launch:{launch_id}")[-1]
    assert last["verdict"] == "refused"
    assert last["detail"].startswith(f"{slug}: ")


def state_of(live: Live, launch_id: str) -> str:
    return str(live.http("GET", f"/v1/launches/{launch_id}").json["state"])


def delivered(live: Live, launch_id: str) -> int:
    return len([one for one in live.audit(object=f"launch:{launch_id}") if one["detail"].endswith("secrets delivered")])


def test_one_claim_per_ticket(live: Live, agent: LyingAgent, traces: Traces) -> None:
    with at_its_claim(live, agent, traces, "t13twice") as (offer, peer, claim):
        first = agent.claim(offer.launch_id, claim)
        assert first.status == 200
        for _ in range(2):
            refused(live, agent.claim(offer.launch_id, claim), 409, "replay", offer.launch_id)
        assert delivered(live, offer.launch_id) == 1
        peer.grant(first.body)
        said, _ = peer.hear_end()
        # Neither does a claim come after the result.
        assert agent.state(offer.launch_id, said.envelope).status == 200
        refused(live, agent.claim(offer.launch_id, claim), 409, "replay", offer.launch_id)
    assert state_of(live, offer.launch_id) == "success"
    assert len(traces.of("ran")) == 1


def read(envelope: bytes) -> Claim:
    return Claim.from_bytes(base64.b64decode(json.loads(envelope)["payload"]))


def test_claims_that_the_launcher_did_not_sign(live: Live, agent: LyingAgent, traces: Traces) -> None:
    with at_its_claim(live, agent, traces, "t13claim") as (offer, _, claim):
        own = SigningKey.generate()
        true = read(claim)
        forged = claims.sign_claim(true, own)
        renamed = json.loads(forged)
        renamed["signatures"][0]["keyid"] = launcher_keys(live)[0].public.key_id
        payload = json.loads(claim) | {
            "payload": base64.b64encode(dataclasses.replace(true, task_digest=Digest.of(b"x")).to_bytes()).decode()
        }
        for envelope in (forged, canonical.dump(renamed), canonical.dump(payload)):
            refused(live, agent.claim(offer.launch_id, envelope), 403, "signature", offer.launch_id)
        for i in range(0, len(claim), 97):
            answer = agent.claim(offer.launch_id, flip(claim, i))
            assert (answer.status, answer.problem) in ((400, "malformed"), (403, "signature")), (i, answer.body)
        for envelope in (b"", b"{}", offer.ticket, offer.manifest, claim + b"\n"):
            assert agent.claim(offer.launch_id, envelope).status == 400
        assert delivered(live, offer.launch_id) == 0
        assert state_of(live, offer.launch_id) == "offered"


def test_true_signatures_over_what_is_not_true(live: Live, agent: LyingAgent, traces: Traces) -> None:
    """A launcher that is honest never signs these; the API compares all the same."""
    key = launcher_keys(live)[0]
    with at_its_claim(live, agent, traces, "t13untrue") as (offer, _, claim):
        true = read(claim)
        changes: list[tuple[dict[str, Any], int, str]] = [
            ({"ticket_id": "0" * 32}, 409, "expired"),
            ({"ticket_digest": Digest.of(b"x")}, 409, "expired"),
            ({"launch_id": "0" * 32}, 403, "out-of-scope"),
        ]
        for change, status, slug in changes:
            envelope = claims.sign_claim(dataclasses.replace(true, **change), key)
            refused(live, agent.claim(offer.launch_id, envelope), status, slug, offer.launch_id)
        assert state_of(live, offer.launch_id) == "offered"
        wrong_task = claims.sign_claim(dataclasses.replace(true, task_digest=Digest.of(b"x")), key)
        refused(live, agent.claim(offer.launch_id, wrong_task), 422, "digest-mismatch", offer.launch_id)
        assert state_of(live, offer.launch_id) == "refused", "a task that is another ends the launch"
        assert delivered(live, offer.launch_id) == 0
        assert agent.claim(offer.launch_id, claim).status == 409
    assert not traces.of("ran")


def test_a_claim_of_another_launch(live: Live, agent: LyingAgent, traces: Traces) -> None:
    with at_its_claim(live, agent, traces, "t13other") as (offer, _, claim):
        other = agent.offer("t13other")
        refused(live, agent.claim(other.launch_id, claim), 403, "out-of-scope", other.launch_id)
        refused(live, agent.claim("0" * 32, claim), 404, "not-found", "0" * 32)
        assert state_of(live, other.launch_id) == "offered"
        assert delivered(live, offer.launch_id) == delivered(live, other.launch_id) == 0


def test_another_workers_launch(live: Live, agent: LyingAgent, traces: Traces) -> None:
    """Same launcher, other token: it can do nothing with a launch that it did not take."""
    thief = LyingAgent.enrol(live)
    with at_its_claim(live, agent, traces, "t13thief") as (offer, peer, claim):
        about = f"/v1/launches/{offer.launch_id}"
        refused(live, thief.claim(offer.launch_id, claim), 403, "out-of-scope", offer.launch_id)
        for body in ({"state": "running"}, {"state": "refused", "error": "privilege", "detail": "no"}):
            answer = live.http("POST", f"{about}/state", body, token=thief.token)
            refused(live, answer, 403, "out-of-scope", offer.launch_id)
        answer = live.http("POST", f"{about}/log?offset=0", b"not mine", token=thief.token)
        refused(live, answer, 403, "out-of-scope", offer.launch_id)
        grant = agent.claim(offer.launch_id, claim)
        peer.grant(grant.body)
        said, _ = peer.hear_end()
        refused(live, thief.state(offer.launch_id, said.envelope), 403, "out-of-scope", offer.launch_id)
        assert state_of(live, offer.launch_id) == "running"
        assert live.http("GET", f"{about}/log").body == b""


def test_results_that_the_launcher_did_not_sign(live: Live, agent: LyingAgent, traces: Traces) -> None:
    key = launcher_keys(live)[0]
    with at_its_claim(live, agent, traces, "t13result") as (offer, peer, claim):
        grant = agent.claim(offer.launch_id, claim)
        peer.grant(grant.body)
        said, log = peer.hear_end()
    true = Result.from_bytes(base64.b64decode(json.loads(said.envelope)["payload"]))
    assert true.state == "success"
    better = dataclasses.replace(true, state="failed", exit_code=1)
    altered = json.loads(said.envelope) | {"payload": base64.b64encode(better.to_bytes()).decode()}
    for envelope in (claims.sign_result(better, SigningKey.generate()), canonical.dump(altered)):
        refused(live, agent.state(offer.launch_id, envelope), 403, "signature", offer.launch_id)
    for i in range(0, len(said.envelope), 131):
        answer = agent.state(offer.launch_id, flip(said.envelope, i))
        assert (answer.status, answer.problem) in ((400, "malformed"), (403, "signature")), (i, answer.body)
    for change, status, slug in (
        ({"launch_id": "0" * 32}, 403, "out-of-scope"),
        ({"ticket_digest": Digest.of(b"x")}, 409, "expired"),
    ):
        envelope = claims.sign_result(dataclasses.replace(true, **change), key)
        refused(live, agent.state(offer.launch_id, envelope), status, slug, offer.launch_id)
    # An unsigned word does not end what was claimed.
    body = {"state": "refused", "error": "privilege", "detail": "so says the agent"}
    answer = live.http("POST", f"/v1/launches/{offer.launch_id}/state", body, token=agent.token)
    refused(live, answer, 403, "out-of-scope", offer.launch_id)
    assert state_of(live, offer.launch_id) == "running"

    # A log that is not what the launcher signed for is taken, and seen: here the whole of it is missing.
    assert log
    assert agent.state(offer.launch_id, said.envelope).status == 200
    events = {(event["action"], event["verdict"]) for event in live.audit(object=f"launch:{offer.launch_id}")}
    assert ("launch.log.check", "refused") in events
    # And it ended: nothing moves it any more, the same result is answered alike.
    assert agent.state(offer.launch_id, said.envelope).status == 200
    again = claims.sign_result(better, key)
    refused(live, agent.state(offer.launch_id, again), 409, "conflict", offer.launch_id)
    assert state_of(live, offer.launch_id) == "success"


def test_success_without_a_claim(live: Live, agent: LyingAgent, traces: Traces) -> None:
    key = launcher_keys(live)[0]
    with at_its_claim(live, agent, traces, "t13unclaimed") as (offer, _, claim):
        now = time.time_ns() // 1000
        result = Result(
            launch_id=offer.launch_id,
            ticket_digest=read(claim).ticket_digest,
            state="success",
            exit_code=0,
            error="",
            detail="",
            started_at=now,
            ended_at=now,
            timings_us={},
            max_rss_kib=0,
            log_digest=Digest.of(b""),
            log_bytes=0,
            log_truncated=False,
            xcoms=(),
        )
        answer = agent.state(offer.launch_id, claims.sign_result(result, key))
        refused(live, answer, 409, "conflict", offer.launch_id)
        assert state_of(live, offer.launch_id) == "offered"


def test_logs(live: Live, agent: LyingAgent, traces: Traces) -> None:
    with at_its_claim(live, agent, traces, "t13log") as (offer, _, claim):
        assert agent.claim(offer.launch_id, claim).status == 200
        about = f"/v1/launches/{offer.launch_id}/log"

        def send(offset: object, data: bytes) -> Answer:
            return live.http("POST", f"{about}?offset={offset}", data, token=agent.token)

        assert send(0, b"0123456789").json == {"next_offset": 10}
        refused(live, send(11, b"gap"), 409, "conflict", offer.launch_id)
        for offset in (-1, "x", 2**64, "1e3"):
            assert send(offset, b"no").status == 422
        assert send(0, b"0123456789").json == {"next_offset": 10}, "held already: not doubled"
        assert send(0, b"overwrite?").json == {"next_offset": 10}
        assert send(5, b"56789abc").json == {"next_offset": 13}
        assert send(13, b"\n").json == {"next_offset": 14}
        assert live.http("GET", about).body == b"0123456789abc\n"
        assert state_of(live, offer.launch_id) == "running"


SAYS = 'import sys; print("I am fine"); print("no, I am not", file=sys.stderr); print("or am I?")'
RECORDS = {"Accept": "application/x-ndjson"}


def relabel(log: list[bytes]) -> list[bytes]:
    return [line.replace(b'"source":"stderr"', b'"source":"stdout"') for line in log]


FORGERIES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "relabelled": relabel,
    "dropped": lambda log: [line for line in log if b"stderr" not in line],
    "cut short": lambda log: log[:-1],
    "swapped": lambda log: log[::-1],
    "doubled": lambda log: [*log, log[-1]],
    "reworded": lambda log: [line.replace(b"no, I am not", b"no, he is not") for line in log],
    "dated back": lambda log: [line.replace(b'{"at":1', b'{"at":2') for line in log],
    "written otherwise": lambda log: [line.replace(b'":"', b'": "') for line in log],
}


@pytest.mark.parametrize("forgery", ["none", *FORGERIES])
def test_a_log_that_the_launcher_did_not_sign_for(live: Live, agent: LyingAgent, traces: Traces, forgery: str) -> None:
    """Whatever the agent does to a record, the digest that the launcher signed is not that of what the API holds."""
    answer = live.push("t13records.py", dag("t13records", SAYS))
    assert answer.status in (200, 201), answer.body
    offer = agent.offer("t13records")
    about = f"/v1/launches/{offer.launch_id}"
    with agent.connect() as peer, opened(offer.blob) as fd:
        peer.grant(agent.claim(offer.launch_id, peer.run(offer.ticket, offer.manifest, fd).envelope).body)
        said, log = peer.hear_end()
    lines = log.splitlines(keepends=True)
    told = b"".join(FORGERIES[forgery](lines)) if forgery != "none" else log
    assert (told == log) == (forgery == "none")
    assert live.http("POST", f"{about}/log?offset=0", told, token=agent.token).status == 200
    assert agent.state(offer.launch_id, said.envelope).status == 200
    ended, held = live.http("GET", about).json, live.http("GET", f"{about}/log", headers=RECORDS).body
    assert held == told
    assert ended["log_digest"] == str(Digest.of(log))
    assert (str(Digest.of(held)) == ended["log_digest"]) == (forgery == "none")
    checks = [one for one in live.audit(object=f"launch:{offer.launch_id}") if one["action"] == "launch.log.check"]
    assert [one["verdict"] for one in checks] == ([] if forgery == "none" else ["refused"])
    if forgery == "none":
        found = [(one["source"], one["text"]) for one in map(json.loads, lines)]
        assert "".join(text for source, text in found if source == "stdout") == "I am fine\nor am I?\n"
        assert ("stderr", "no, I am not\n") in found


def test_other_queues_and_other_names(live: Live, agent: LyingAgent, traces: Traces) -> None:
    assert live.push("t13queue.py", traced_dag("t13queue", traces)).status == 201
    other = LyingAgent.enrol(live)
    launch_id = other.reserve("t13queue")
    for name, queues in (
        (agent.name, [other.name]),
        (agent.name, [agent.name, other.name]),
        (agent.name, ["default"]),
        (other.name, [other.name]),
        (other.name, [agent.name]),
        ("quickstart", ["default"]),
        ("absent", [agent.name]),
    ):
        answer = live.http("POST", f"/v1/workers/{name}/take", {"queues": queues}, token=agent.token)
        assert (answer.status, answer.problem) == (403, "out-of-scope"), (name, queues)
        last = live.audit(object=f"worker:{name}")[-1]
        assert (last["action"], last["verdict"], last["principal"]) == ("launch.take", "refused", agent.name)
    answer = live.http("POST", f"/v1/workers/{agent.name}/take", {"queues": ["*"]}, token=agent.token)
    assert answer.status == 422
    assert state_of(live, launch_id) == "queued"
    assert other.take().launch_id == launch_id


FORBIDDEN = [route for route in ROUTES if ACTIONS[route.action] not in (PUBLIC, WORKERS, FETCHERS)]


@pytest.mark.parametrize("route", FORBIDDEN, ids=lambda route: f"{route.method} {route.path}")
def test_a_workers_token_is_for_workers_things(live: Live, agent: LyingAgent, route: Any) -> None:
    path = path_of(route)
    body = None if route.method in ("GET", "DELETE") else b"{}"
    answer = live.http(route.method, path, body, token=agent.token)
    assert (answer.status, answer.problem) == (403, "out-of-scope"), answer.body
    assert f"{route.action} needs" in answer.json["detail"]


def test_every_route_is_somebodys() -> None:
    assert {route.action for route in ROUTES} == set(ACTIONS)
    public = {route.path for route in ROUTES if ACTIONS[route.action] == PUBLIC}
    assert public == {
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/docs",
        "/docs/docs.css",
        "/v1/tokens/exchange",
        "/v1/workers/{name}/join",
        "/v1/log/checkpoint",  # a size, a root and a time
        "/v1/log/keys",
    }


def test_a_worker_that_was_revoked(live: Live, traces: Traces) -> None:
    """In the middle of its launch: no grant, no result, no more launches."""
    agent = LyingAgent.enrol(live)
    with at_its_claim(live, agent, traces, "t13revoked") as (offer, _, claim):
        assert live.http("DELETE", f"/v1/workers/{agent.name}").status == 204
        for answer in (
            agent.claim(offer.launch_id, claim),
            live.http("POST", f"/v1/workers/{agent.name}/take", {"queues": [agent.name]}, token=agent.token),
            live.http("POST", f"/v1/launches/{offer.launch_id}/state", {"state": "running"}, token=agent.token),
            live.http("GET", f"/v1/blobs/sha512/{offer.digest.hex}", token=agent.token),
        ):
            assert (answer.status, answer.problem) == (401, "unauthenticated"), answer.body
        assert delivered(live, offer.launch_id) == 0
    assert not traces.of("ran")


def test_what_the_agent_sends_as_secrets_is_not_taken(live: Live, agent: LyingAgent, traces: Traces) -> None:
    """And its refusal to send any ends the task: it is never run without."""
    source = dag("t13deny", 'trace("ran")', top=traces.source())
    assert live.push("t13deny.py", source).status == 201
    offer = agent.offer("t13deny", run_id=secrets.token_hex(4))
    with agent.connect() as peer, opened(offer.blob) as fd:
        assert peer.run(offer.ticket, offer.manifest, fd).kind == "claim"
        peer.send("deny", detail="the agent does not want to")
        said, _ = peer.hear_end()
    result = claims.verify_result(said.envelope, launcher_keys(live)[0].public).result
    assert (result.state, result.error) == ("refused", "unauthorized")
    until("it is in the journal", lambda: live.journal()[-1].get("launch_id") == offer.launch_id)
    assert not traces.of("ran")

"""T20 below-floor: a task gets its secrets where less is put between it and the host than its release or its queue asks for.

The launcher signs what was in force; the API compares before it opens a secret. The import is seen, as it comes before the
claim; the task's body is not, and the launcher's own journal has no grant.

Seen to fail when weakened: `claiming._grant` without `require_isolation`, or without one of its two floors; `meets` that
takes an unknown profile, or compares the other way; `verify_claim` that parses and does not verify.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integrity import canonical
from tests.attacks.attacker import (
    LyingAgent,
    Offer,
    Peer,
    Traces,
    launcher_keys,
    new_traces,
    opened,
    result_of,
    traced_dag,
    until,
)
from tests.live import Live, running
from vocabulary import claims
from vocabulary.claims import Claim
from vocabulary.keys import SigningKey

SLUG = "below-isolation-floor"


@contextlib.contextmanager
def something_to_deliver(live: Live) -> Iterator[None]:
    """A connection of the releases' owner, which every launch that is granted gets."""
    name = f"t20{secrets.token_hex(4)}"
    assert live.http("PUT", f"/v1/connections/{name}", {"value": "http://s3cret@h"}).status == 201
    grant = {"kind": "connection", "name": name, "to_kind": "principal", "to": "admin"}
    assert live.http("POST", "/v1/grants", grant).status == 201
    yield
    assert live.http("DELETE", f"/v1/connections/{name}").status == 204


@pytest.fixture(autouse=True)
def deliverable(live: Live) -> Iterator[None]:
    with something_to_deliver(live):
        yield


@pytest.fixture(scope="module")
def lax() -> Iterator[Live]:
    """A host that does the least, and a queue that asks for more."""
    floors = 'isolation_floors = {default = "standard"}\n'
    with running(profile="minimal", describe="minimal", more_api_toml=floors) as live, something_to_deliver(live):
        yield live


def secrets_of(live: Live, launch_id: str) -> int:
    events = live.audit(object=f"launch:{launch_id}"), live.audit()
    granted = [one for one in events[0] if one["action"] == "launch.claim" and one["verdict"] == "accepted"]
    delivered = [
        one
        for one in events[1]
        if (one["action"], one["detail"]) == ("secret.deliver", f"launch:{launch_id}")
        and one["object"].startswith("connection:t20")  # what other tests granted is not of this one
    ]
    assert len(granted) == (1 if delivered else 0)
    return len(delivered)


def journaled(live: Live, launch_id: str) -> dict[str, dict[str, Any]]:
    """What the launcher wrote of it, by event, once it has ended."""

    def whole() -> dict[str, dict[str, Any]] | None:
        found = {line["event"]: line for line in live.journal() if line.get("launch_id") == launch_id}
        return found if "result" in found else None

    return until("the launch's end is in the journal", whole)


def require_refused(live: Live, launch: dict[str, Any], worker: str, *, who: str, floor: str, profile: str) -> None:
    """Said exactly so everywhere, and nothing was given."""
    says = f"{who} asks for isolation profile {floor} or more, the launcher attests to {profile}: "
    assert (launch["state"], launch["error"]) == ("refused", SLUG)
    assert launch["detail"].startswith(says)
    decided = [
        one for one in live.audit(object=f"launch:{launch['id']}") if one["detail"].startswith(f"{SLUG}: {says}")
    ]
    assert {(one["action"], one["principal"], one["verdict"]) for one in decided} == {
        ("launch.claim", worker, "refused")
    }
    assert secrets_of(live, launch["id"]) == 0
    journal = journaled(live, launch["id"])
    assert journal["claim"]["attestation"]["profile"] == profile
    assert "grant" not in journal
    assert (journal["result"]["state"], journal["result"]["error"]) == ("refused", "unauthorized")


def test_a_queue_that_asks_for_more_than_the_host_does(lax: Live) -> None:
    with new_traces(lax) as traces:
        assert lax.push("t20queue.py", traced_dag("t20queue", traces)).status == 201
        described = len(traces.of("import"))
        launch = lax.launch("t20queue", "t", "r")
        require_refused(lax, launch, "quickstart", who="queue default", floor="standard", profile="minimal")
        assert (len(traces.of("import")), traces.of("ran")) == (described + 1, [])

        # The same release and host, in a queue without a floor: it runs, with its secret.
        agent = LyingAgent.enrol(lax)
        offer = agent.offer("t20queue")
        assert agent.run_honestly(offer)[0].state == "success"
        assert (secrets_of(lax, offer.launch_id), len(traces.of("ran"))) == (1, 1)


def test_a_release_that_asks_for_more_than_the_host_does(live: Live, traces: Traces, tmp_path: Path) -> None:
    source = traced_dag("t20release", traces)
    file = tmp_path / "t20release.py"
    file.write_text(source)
    pushed = live.cli("push", str(file), "--isolation", "strict")
    assert pushed.returncode == 0, pushed.stderr
    assert re.search(r"^isolation +strict$", live.cli("show", "t20release.py").stdout, re.MULTILINE)
    launch = live.launch("t20release", "t", "r")
    require_refused(live, launch, "quickstart", who="release t20release.py@1", floor="strict", profile="standard")
    assert (len(traces.of("import")), traces.of("ran")) == (1, [])
    # No other try of it does better, and it is not sent back to the queue.
    launch = live.launch("t20release", "t", "r", try_number=2)
    require_refused(live, launch, "quickstart", who="release t20release.py@1", floor="strict", profile="standard")

    # The same bytes, asking for what this host does: another release, which runs with its secret.
    met = live.push("t20release.py", source, "?isolation=standard")
    assert (met.status, met.json["number"]) == (201, 2)
    launch = live.launch("t20release", "t", "r", try_number=3)
    assert launch["state"] == "success", launch
    assert (secrets_of(live, launch["id"]), len(traces.of("ran"))) == (1, 1)


@contextlib.contextmanager
def at_its_claim(agent: LyingAgent, dag_id: str) -> Iterator[tuple[Offer, Peer, bytes]]:
    """An offer, the launcher that waits for the grant, and the claim that it signed."""
    offer = agent.offer(dag_id)
    with agent.connect() as peer, opened(offer.blob) as fd:
        said = peer.run(offer.ticket, offer.manifest, fd)
        assert said.kind == "claim", said
        yield offer, peer, said.envelope


def raised(claim: bytes, profile: str) -> Claim:
    """What the launcher of a better host would say in its place."""
    true = Claim.from_bytes(base64.b64decode(json.loads(claim)["payload"]))
    assert true.attestation["profile"] == "standard"
    return dataclasses.replace(true, attestation=true.attestation | {"profile": profile, "landlock_abi": 7})


def test_an_agent_cannot_raise_what_the_launcher_attests_to(live: Live, agent: LyingAgent, traces: Traces) -> None:
    source = traced_dag("t20liar", traces)
    assert live.push("t20liar.py", source, "?isolation=strict").status == 201
    with at_its_claim(agent, "t20liar") as (offer, peer, claim):
        better = raised(claim, "strict")
        resigned = claims.sign_claim(better, SigningKey.generate())
        renamed = json.loads(resigned)
        renamed["signatures"][0]["keyid"] = launcher_keys(live)[0].public.key_id
        altered = json.loads(claim) | {"payload": base64.b64encode(better.to_bytes()).decode()}
        for envelope in (resigned, canonical.dump(renamed), canonical.dump(altered)):
            answer = agent.claim(offer.launch_id, envelope)
            assert (answer.status, answer.problem) == (403, "signature"), answer.body
            last = live.audit(object=f"launch:{offer.launch_id}")[-1]
            assert (last["action"], last["principal"], last["verdict"]) == ("launch.claim", agent.name, "refused")
        about = f"/v1/launches/{offer.launch_id}"
        assert live.http("GET", about).json["state"] == "offered"

        answer = agent.claim(offer.launch_id, claim)
        assert (answer.status, answer.problem) == (403, SLUG), answer.body
        # It is over: not even a claim that the launcher would have signed on a better host comes after it.
        for envelope in (claim, claims.sign_claim(better, launcher_keys(live)[0])):
            answer = agent.claim(offer.launch_id, envelope)
            assert (answer.status, answer.problem) == (409, "conflict"), answer.body
        peer.send("deny", detail="refused by the API")
        said, _ = peer.hear_end()
    result = result_of(live, said)
    assert (result.state, result.error, result.exit_code) == ("refused", "unauthorized", 77)
    launch = live.http("GET", about).json
    require_refused(live, launch, agent.name, who="release t20liar.py@1", floor="strict", profile="standard")
    assert not traces.of("ran")


@pytest.mark.parametrize("attestation", [{}, {"profile": "paranoid"}, {"profile": None, "no_new_privs": True}])
def test_a_launcher_that_names_no_profile(
    live: Live, agent: LyingAgent, traces: Traces, attestation: dict[str, Any]
) -> None:
    """One from before there were profiles, or after there were others: genuinely signed, and below every floor."""
    answer = live.push("t20silent.py", traced_dag("t20silent", traces), "?isolation=minimal")
    assert answer.status == 201, answer.body
    with at_its_claim(agent, "t20silent") as (offer, peer, claim):
        silent = dataclasses.replace(raised(claim, "standard"), attestation=attestation)
        answer = agent.claim(offer.launch_id, claims.sign_claim(silent, launcher_keys(live)[0]))
        assert (answer.status, answer.problem) == (403, SLUG), answer.body
        assert "isolation profile minimal or more, the launcher attests to none that is known" in answer.json["detail"]
        peer.send("deny", detail="refused by the API")
        assert result_of(live, peer.hear_end()[0]).state == "refused"
    assert secrets_of(live, offer.launch_id) == 0
    assert not traces.of("ran")


def test_a_grant_of_a_launch_without_a_floor_does_not_open_another(
    live: Live, agent: LyingAgent, traces: Traces
) -> None:
    """The same bytes as two releases: what the lax one was granted is of no use to the one that asks for more."""
    source = traced_dag("t20swap", traces)
    assert live.push("t20swap.py", source).status == 201
    assert live.push("t20swap.py", source, "?isolation=strict").json["number"] == 2
    with at_its_claim(agent, "t20swap") as (strict, peer, _):
        lax = agent.offer("t20swap", release=1)
        assert lax.digest == strict.digest
        with agent.connect() as other, opened(lax.blob) as fd:
            claim = other.run(lax.ticket, lax.manifest, fd).envelope
            answer = agent.claim(strict.launch_id, claim)
            assert (answer.status, answer.problem) == (403, "out-of-scope"), answer.body
            grant = agent.claim(lax.launch_id, claim)
            assert grant.status == 200, grant.body
        peer.grant(grant.body)
        said, _ = peer.hear_end()
    assert (result_of(live, said).state, result_of(live, said).error) == ("refused", "out-of-scope")
    assert secrets_of(live, strict.launch_id) == 0
    assert "grant" not in journaled(live, strict.launch_id)
    assert not traces.of("ran")

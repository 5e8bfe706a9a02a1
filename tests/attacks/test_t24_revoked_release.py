"""T24 unapproved-release, first half: a release that was revoked is launched all the same, or goes on running.

Seen to fail when weakened: `dispatching.launchable` that does not ask again at the offer and at the claim;
`releasing.revoke` that lets what runs alone.
"""

from __future__ import annotations

import secrets
from typing import Any

import pytest

from tests.attacks.attacker import LyingAgent, Traces, dag, is_alive, opened, result_of, traced_dag, tree_of, until
from tests.live import Live

REASON = "it deletes the wrong customers"


@pytest.fixture
def name(live: Live) -> str:
    return f"t24{secrets.token_hex(4)}"


def revoke(live: Live, name: str, *more: str) -> dict[str, Any]:
    done = live.cli("revoke", f"{name}.py@1", "--reason", REASON, *more, "-o", "json")
    assert done.returncode == 0, done.stderr
    audited = live.audit(object=f"archive:{name}.py")[-1]
    assert (audited["action"], audited["verdict"], audited["principal"]) == ("release.revoke", "accepted", "admin")
    assert REASON in audited["detail"]
    return live.http("GET", f"/v1/archives/{name}.py/releases/1").json


def secrets_of(live: Live, launch_id: str) -> list[str]:
    return [one["object"] for one in live.audit() if one["detail"] == f"launch:{launch_id}"]


def require_refused(live: Live, launch_id: str, name: str) -> None:
    launch = live.http("GET", f"/v1/launches/{launch_id}").json
    detail = f"{name}.py@1 was revoked ({REASON}): activate another release, or push a new one"
    assert (launch["state"], launch["error"], launch["detail"]) == ("refused", "conflict", detail)
    assert launch["started_at"] is None
    assert secrets_of(live, launch_id) == []


def test_a_ticket_that_was_offered_before_and_is_claimed_after(
    live: Live, agent: LyingAgent, traces: Traces, name: str
) -> None:
    conn = f"{name}-conn"
    assert live.http("PUT", f"/v1/connections/{conn}", {"value": "http://u:p@h"}).status == 201
    grant = {"kind": "connection", "name": conn, "to_kind": "principal", "to": "admin"}
    assert live.http("POST", "/v1/grants", grant).status == 201
    assert live.push(f"{name}.py", traced_dag(name, traces)).status == 201
    offer = agent.offer(name)
    with agent.connect() as peer, opened(offer.blob) as fd:
        claim = peer.run(offer.ticket, offer.manifest, fd)
        assert claim.kind == "claim"
        view = revoke(live, name)
        assert (view["state"], view["revoked_by"], view["revoke_reason"]) == ("revoked", "admin", REASON)
        answer = agent.claim(offer.launch_id, claim.envelope)
        assert (answer.status, answer.problem) == (409, "conflict"), answer.body
        assert REASON in answer.json["detail"]
        again = agent.claim(offer.launch_id, claim.envelope)
        assert (again.status, again.problem) == (409, "conflict")
        peer.send("deny", detail="refused by the API")
        result = result_of(live, peer.hear_end()[0])
    assert (result.state, result.exit_code) == ("refused", 77)
    require_refused(live, offer.launch_id, name)
    assert not traces.of("ran")
    assert live.http("DELETE", f"/v1/connections/{conn}").status == 204


def test_what_is_queued_and_what_is_asked_for(live: Live, agent: LyingAgent, traces: Traces, name: str) -> None:
    assert live.push(f"{name}.py", traced_dag(name, traces)).status == 201
    queued = agent.reserve(name)
    revoke(live, name)
    body = {"queues": [agent.name]}
    assert live.http("POST", f"/v1/workers/{agent.name}/take", body, token=agent.token).status == 204
    require_refused(live, queued, name)
    for more in ({}, {"release": 1}):
        asked = {"dag_id": name, "task_id": "t", "run_id": "later", **more}
        answer = live.http("POST", "/v1/launches", asked)
        assert (answer.status, answer.problem) == (409, "conflict")
    assert REASON in answer.json["detail"]
    assert live.http("POST", f"/v1/archives/{name}.py/releases/1/activate").status == 409
    pushed = live.push(f"{name}.py", traced_dag(name, traces))
    assert (pushed.status, pushed.problem) == (409, "conflict")
    assert REASON in pushed.json["detail"]
    assert [one["id"] for one in live.http("GET", f"/v1/launches?dag_id={name}").json["launches"]] == [queued]
    assert not traces.of("ran")


def test_what_runs_is_killed_where_that_is_asked_for(fragile: Live, traces: Traces) -> None:
    """Two releases of one archive: only those of the revoked one end, and by themselves they would not."""
    name = f"t24{secrets.token_hex(4)}"
    source = dag(name, "import time\ntrace('ran')\ntime.sleep(1000)", top=traces.source())
    assert fragile.push(f"{name}.py", source).status == 201
    body = {"dag_id": name, "task_id": "t", "run_id": "bad"}
    doomed = fragile.http("POST", "/v1/launches", body).json["id"]
    until("it runs", lambda: traces.of("ran"))
    pids = tree_of(traces.pid("ran"))
    assert fragile.push(f"{name}.py", source + "# better\n").status == 201
    spared = fragile.http("POST", "/v1/launches", {**body, "run_id": "good"}).json["id"]
    until("the other runs", lambda: fragile.http("GET", f"/v1/launches/{spared}").json["state"] == "running")
    # Without it the running ones go on: nobody asked for their end.
    revoke(fragile, name)
    assert fragile.http("GET", f"/v1/launches/{doomed}").json["state"] == "running"
    revoke(fragile, name, "--kill")
    ended = fragile.wait(doomed)
    assert (ended["state"], ended["exit_code"]) == ("cancelled", 137)
    assert not [pid for pid in pids if is_alive(pid)]
    events = fragile.audit(object=f"launch:{doomed}")
    assert f"release {name}.py@1 was revoked" in [e["detail"] for e in events if e["action"] == "launch.cancel"]
    assert fragile.http("GET", f"/v1/launches/{spared}").json["state"] == "running"
    assert [e["action"] for e in fragile.audit(object=f"launch:{spared}") if e["action"] == "launch.cancel"] == []
    assert fragile.http("POST", f"/v1/launches/{spared}/cancel").status == 200
    assert fragile.wait(spared)["state"] == "cancelled"

"""Impersonation rules over HTTP: who is asked about whom, and when: at the reservation, the ticket and the claim."""

from __future__ import annotations

from typing import Any

import pytest
from api_rig import SOURCE, Api, WorkerPeer, dag_entry, task_entry


async def add(api: Api, subject: str, effect: str = "allow", **changes: Any) -> str:
    """A rule about `nobody`; the subject of a group begins with a colon."""
    kind = "group" if subject.startswith(":") else "principal"
    rule = {"effect": effect, "subject_kind": kind, "subject": subject.lstrip(":"), "unix_user": "nobody", **changes}
    made = await api.call("POST", "/v1/impersonation-rules", token=api.admin, json=rule)
    assert made.status == 201, made.body
    return str(made.json["id"])


async def remove(api: Api, rule_id: str) -> None:
    assert (await api.call("DELETE", f"/v1/impersonation-rules/{rule_id}", token=api.admin)).status == 204


async def group(api: Api, name: str, *members: str) -> None:
    assert (await api.call("PUT", f"/v1/groups/{name}", token=api.admin, json={"members": members})).status == 200


async def state(api: Api, launch_id: str) -> dict[str, Any]:
    return dict((await api.call("GET", f"/v1/launches/{launch_id}", token=api.admin)).json)


async def about(api: Api, launch_id: str) -> list[tuple[str, str, str]]:
    events = (await api.call("GET", f"/v1/audit?object=launch:{launch_id}", token=api.admin)).json["events"]
    return [(event["action"], event["verdict"], event["rule"]) for event in events]


@pytest.fixture
async def worker(api: Api) -> WorkerPeer:
    """Alice owns `etl` and is in `team` with bob and eve; bob submitted the newest release; nobody has a rule."""
    for name in ("alice", "bob", "eve"):
        await api.token(name)
    await group(api, "team", "alice", "bob", "eve")
    api.launcher.dags["etl.py"] = [dag_entry("etl", task_entry("t"))]
    assert (await api.push("etl.py", SOURCE, token=api.tokens["alice"], query="?group=team")).status == 201
    assert (await api.push("etl.py", SOURCE + b"# bob\n", token=api.tokens["bob"])).status == 201
    return await api.worker()


async def test_the_rule_that_allows_stands_in_the_ticket_and_in_the_audit(api: Api, worker: WorkerPeer) -> None:
    rule = await add(api, ":team", dag_glob="e*")
    await add(api, "bob")
    launched = await api.launch(token=api.tokens["eve"])
    assert launched.status == 201
    offer = await worker.take()
    assert offer is not None
    assert worker.ticket(offer).ticket.rule == rule
    assert (await worker.claim(offer)).status == 200
    assert await about(api, launched.json["id"]) == [
        (action, "accepted", rule) for action in ("launch.create", "launch.offer", "launch.claim")
    ]


@pytest.mark.parametrize("subject", ["alice", "bob", "eve", ":team", ":guests"])
async def test_a_deny_rule_about_anyone_with_a_hand_in_it(api: Api, worker: WorkerPeer, subject: str) -> None:
    await group(api, "guests", "eve")
    await add(api, "alice")
    rule = await add(api, subject, "deny", dag_glob="etl")
    answer = await api.launch(token=api.tokens["eve"])
    assert (answer.status, answer.slug) == (403, "out-of-scope")
    assert answer.json["detail"].startswith(f"rule {rule} denies ")
    assert f"dagseal impersonation rm {rule}" in answer.json["detail"]
    event = (await api.events())[-1]
    assert (event["action"], event["verdict"], event["rule"]) == ("launch.create", "refused", rule)
    assert (await api.call("GET", "/v1/launches", token=api.admin)).json == {"launches": []}
    await remove(api, rule)
    assert (await api.launch(token=api.tokens["eve"])).status == 201


async def test_what_the_caller_or_the_submitter_may_himself_is_not_lent(api: Api, worker: WorkerPeer) -> None:
    await add(api, "bob")
    await add(api, "eve")
    answer = await api.launch(token=api.tokens["eve"])
    assert (answer.status, answer.slug) == (403, "out-of-scope")
    assert answer.json["detail"].startswith("no rule lets alice run dag etl as unix user nobody")
    assert (await api.events())[-1]["rule"] == "out-of-scope"


async def test_a_rule_that_goes_before_the_ticket(api: Api, worker: WorkerPeer) -> None:
    rule = await add(api, "alice")
    launch_id = (await api.launch()).json["id"]
    await remove(api, rule)
    assert await worker.take() is None
    ended = await state(api, launch_id)
    assert (ended["state"], ended["error"]) == ("refused", "out-of-scope")
    assert (await about(api, launch_id))[1:] == [("launch.offer", "refused", "out-of-scope")]


async def test_a_deny_rule_that_comes_before_the_ticket(api: Api, worker: WorkerPeer) -> None:
    await add(api, "alice")
    launch_id = (await api.launch(token=api.tokens["eve"])).json["id"]
    rule = await add(api, "eve", "deny")
    assert await worker.take() is None
    assert (await state(api, launch_id))["state"] == "refused"
    assert (await about(api, launch_id))[1:] == [("launch.offer", "refused", rule)]


async def test_another_rule_that_still_allows_is_the_tickets(api: Api, worker: WorkerPeer) -> None:
    first, second = await add(api, "alice"), await add(api, ":team")
    launch_id = (await api.launch()).json["id"]
    decided = (await about(api, launch_id))[0][2]
    await remove(api, decided)
    offer = await worker.take()
    assert offer is not None
    assert worker.ticket(offer).ticket.rule == ({first, second} - {decided}).pop()


async def test_a_member_who_leaves_the_group_before_the_claim(api: Api, worker: WorkerPeer) -> None:
    await add(api, ":team")
    await api.connection("db", "http://h", to="alice")
    launch_id = (await api.launch()).json["id"]
    offer = await worker.take()
    assert offer is not None
    await group(api, "team", "bob", "eve")
    answer = await worker.claim(offer)
    assert (answer.status, answer.slug) == (403, "out-of-scope")
    assert (await state(api, launch_id))["state"] == "refused"
    assert "secret.deliver" not in [event["action"] for event in await api.events()]


async def test_a_rule_is_shown_with_its_effect(api: Api) -> None:
    rule = {"subject_kind": "group", "subject": "team", "unix_user": "nobody"}
    for effect in ("allow", "deny"):
        made = await api.call("POST", "/v1/impersonation-rules", token=api.admin, json={**rule, "effect": effect})
        assert (made.status, made.json["effect"]) == (201, effect)
        said = "may" if effect == "allow" else "may not"
        assert (await api.events())[-1]["detail"] == f"group team {said} run dag * as nobody in queue *"
    made = await api.call("POST", "/v1/impersonation-rules", token=api.admin, json={**rule, "effect": "ask"})
    assert (made.status, made.slug) == (422, "invalid-request")

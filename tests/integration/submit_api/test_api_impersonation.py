"""Impersonation rules over HTTP: who is asked about whom, and when: at the reservation, the ticket and the claim."""

from __future__ import annotations

from random import Random
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


async def explain(api: Api, token: str, **query: str) -> Any:
    asked = {"dag_id": "etl", "task_id": "t", **query}
    path = "/v1/impersonation-rules/explain?" + "&".join(f"{key}={value}" for key, value in asked.items())
    return await api.call("GET", path, token=token)


async def test_what_is_explained(api: Api, worker: WorkerPeer) -> None:
    count = len(await api.events())
    none = (await explain(api, api.tokens["eve"])).json
    assert none == {
        "dag_id": "etl", "task_id": "t", "archive": "etl.py", "release": 2, "owner": "alice", "unix_user": "nobody",
        "named_by": "manifest", "queue": "default", "verdict": "refused", "rule": None, "matches": [],
        "ask": "no rule lets alice run dag etl as unix user nobody in queue default: an administrator can add it with "
        "'dagseal impersonation allow alice --as-user nobody --dag etl --queue default'",
    }  # fmt: skip
    assert len(await api.events()) == count, "a question changes nothing"
    allow = await add(api, ":team", dag_glob="e*")
    allowed = (await explain(api, api.tokens["eve"])).json
    assert (allowed["verdict"], allowed["rule"], allowed["ask"]) == ("allowed", allow, "")
    deny = await add(api, "bob", "deny")
    denied = (await explain(api, api.tokens["eve"])).json
    assert (denied["verdict"], denied["rule"]) == ("refused", deny)
    assert denied["ask"].endswith(f"'dagseal impersonation rm {deny}'")
    seen = {match["id"]: (match["role"], match["principal"], match["decides"]) for match in denied["matches"]}
    assert seen == {allow: ("owner", "alice", False), deny: ("submitter", "bob", True)}
    asked = (await explain(api, api.admin, run_as_user="games", queue="big")).json
    assert (asked["unix_user"], asked["named_by"], asked["queue"]) == ("games", "request", "big")


async def test_who_may_ask_for_an_explanation(api: Api, worker: WorkerPeer) -> None:
    stranger = await api.token("stranger")
    refused = await explain(api, stranger)
    assert (refused.status, refused.slug) == (403, "not-owner")
    last = (await api.events())[-1]
    assert (last["action"], last["verdict"]) == ("impersonation.explain", "refused")
    assert (await explain(api, worker.token)).slug == "out-of-scope"
    assert (
        await api.call("GET", "/v1/impersonation-rules/explain?dag_id=etl", token=api.admin)
    ).slug == "invalid-request"
    assert (await explain(api, api.admin, dag_id="none")).slug == "not-found"
    assert (await explain(api, api.admin, task_id="none")).slug == "not-found"
    for bad, slug in (
        ({"run_as_user": "0"}, "malformed"),
        ({"queue": "a%20b"}, "malformed"),
        ({"dag_id": "%00"}, "bad-request"),
    ):
        assert (await explain(api, api.admin, **bad)).slug == slug


@pytest.mark.parametrize("seed", range(3))
async def test_explanation_and_reservation_agree(api: Api, worker: WorkerPeer, seed: int) -> None:
    """Of any rules, for any caller, user and queue."""
    random, said = Random(seed), set()
    await group(api, "guests", "eve")
    rules: list[str] = []
    for number in range(40):
        if rules and random.random() < 0.5:
            await remove(api, rules.pop(random.randrange(len(rules))))
        if random.random() < 0.7:
            subject = random.choice(["alice", "bob", "eve", ":team", ":guests"])
            changes = {"dag_glob": random.choice(["*", "e*", "x*"]), "queue_glob": random.choice(["*", "big", "def*"])}
            effect = random.choice(["allow", "allow", "deny"])
            rules.append(await add(api, subject, effect, unix_user=random.choice(["nobody", "games"]), **changes))
        token = api.tokens[random.choice(["alice", "bob", "eve", "admin"])]
        asked = {"run_as_user": random.choice(["games", None]), "queue": random.choice(["big", "default", None])}
        query = {key: value for key, value in asked.items() if value is not None}
        told = (await explain(api, token, **query)).json
        launched = await api.launch(token=token, run_id=f"r{number}", **query)
        said.add(told["verdict"])
        if told["verdict"] == "allowed":
            assert launched.status == 201, launched.body
            assert (launched.json["unix_user"], launched.json["queue"]) == (told["unix_user"], told["queue"])
            assert (await api.events())[-1]["rule"] == told["rule"]
        else:
            assert (launched.status, launched.json["detail"]) == (403, told["ask"])
            assert (await api.events())[-1]["rule"] == (told["rule"] or "out-of-scope")
    assert said == {"allowed", "refused"}

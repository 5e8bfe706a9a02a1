"""Whose connections, variables and XComs a launch gets: the owner's; with `require_caller` those that its caller has too; and
of another dag's run what the owner may read."""

from __future__ import annotations

from typing import Any

import pytest
from api_rig import SOURCE, Api, WorkerPeer, dag_entry, task_entry

from vocabulary.claims import Xcom
from vocabulary.manifest import MAX_XCOM_DAGS

CONNECTIONS = {"both": ("alice", "bob"), "owners": ("alice",), "callers": ("bob",), "nobodys": ()}


async def grant(api: Api, kind: str, name: str, to: str, to_kind: str = "principal") -> str:
    body = {"kind": kind, "name": name, "to_kind": to_kind, "to": to}
    made = await api.call("POST", "/v1/grants", token=api.admin, json=body)
    assert made.status == 201, made.body
    return str(made.json["id"])


async def state(api: Api, launch_id: str) -> dict[str, Any]:
    return dict((await api.call("GET", f"/v1/launches/{launch_id}", token=api.admin)).json)


@pytest.fixture
async def worker(api: Api) -> WorkerPeer:
    """Alice's archive `etl.py` of group team, in which bob is; each has connections and variables of the same names."""
    for name in ("alice", "bob", "carol"):
        await api.token(name)
    await api.call("PUT", "/v1/groups/team", token=api.admin, json={"members": ["alice", "bob"]})
    for name, to in CONNECTIONS.items():
        await api.call("PUT", f"/v1/connections/{name}", token=api.admin, json={"value": f"http://{name}"})
        await api.call("PUT", f"/v1/variables/{name}", token=api.admin, json={"value": name})
        for principal in to:
            await grant(api, "connection", name, principal)
            await grant(api, "variable", name, principal)
    await api.allow("alice")
    return await api.worker()


async def push(api: Api, query: str = "?group=team", source: bytes = SOURCE, **changes: Any) -> dict[str, Any]:
    api.launcher.dags["etl.py"] = [dag_entry("etl", task_entry("t", **changes))]
    answer = await api.push("etl.py", source, token=api.tokens["alice"], query=query)
    assert answer.status in (200, 201), answer.body
    return dict(answer.json)


@pytest.mark.parametrize("caller", ["alice", "bob"])
@pytest.mark.parametrize("required", [False, True])
async def test_the_intersection(api: Api, worker: WorkerPeer, caller: str, required: bool) -> None:
    release = await push(api, "?group=team&require_caller=true" if required else "?group=team")
    assert release["require_caller"] is required
    assert (await api.launch(token=api.tokens[caller])).status == 201
    offer = await worker.take()
    assert offer is not None
    secrets = await worker.claimed(offer)
    expected = {"both"} if required and caller == "bob" else {"both", "owners"}
    assert set(secrets.connections) == set(secrets.variables) == expected
    delivered = {event["object"] for event in await api.events() if event["action"] == "secret.deliver"}
    assert delivered == {f"{kind}:{name}" for kind in ("connection", "variable") for name in expected}


async def test_a_connection_that_the_caller_has_not_refuses_his_launch_alone(api: Api, worker: WorkerPeer) -> None:
    await push(api, "?group=team&require_caller=true", connections=("owners",))
    refused = await api.launch(token=api.tokens["bob"])
    assert (refused.status, refused.slug) == (403, "out-of-scope")
    assert "not granted to bob, who asks for a launch of alice's release, which requires that" in refused.json["detail"]
    assert "dagseal connection grant owners --to bob" in refused.json["detail"]
    admins = await api.launch()
    assert (admins.status, admins.slug) == (403, "out-of-scope"), "an administrator is a caller like any other"
    assert (await api.call("GET", "/v1/launches", token=api.admin)).json == {"launches": []}
    assert (await api.launch(token=api.tokens["alice"])).status == 201
    await grant(api, "connection", "owners", "team", to_kind="group")
    assert (await api.launch(token=api.tokens["bob"], run_id="r2")).status == 201


async def test_a_callers_grant_that_is_taken_back_before_the_claim(api: Api, worker: WorkerPeer) -> None:
    await push(api, "?group=team&require_caller=true", connections=("owners",))
    bobs = await grant(api, "connection", "owners", "bob")
    launch = (await api.launch(token=api.tokens["bob"])).json
    offer = await worker.take()
    assert offer is not None
    assert (await api.call("DELETE", f"/v1/grants/{bobs}", token=api.admin)).status == 204
    answer = await worker.claim(offer)
    assert (answer.status, answer.slug) == (403, "out-of-scope")
    assert (await state(api, launch["id"]))["state"] == "refused"
    assert "secret.deliver" not in [event["action"] for event in await api.events()]


async def test_the_setting_is_the_releases_and_signed(api: Api, worker: WorkerPeer) -> None:
    first = await push(api)
    second = await push(api, "?group=team&require_caller=true")
    again = await push(api, "?group=team&require_caller=true")
    third = await push(api, "?group=team&require_caller=false")
    assert [release["number"] for release in (first, second, again, third)] == [1, 2, 2, 3]
    assert [release["require_caller"] for release in (first, second, again, third)] == [False, True, True, False]
    assert first["digest"] == second["digest"] and first["manifest_digest"] != second["manifest_digest"]
    wrong = await api.push("etl.py", SOURCE, token=api.tokens["alice"], query="?require_caller=yes")
    assert (wrong.status, wrong.slug) == (422, "invalid-request")
    assert await api.fsck() == []


async def upstream(api: Api, worker: WorkerPeer, owner: str, group: str, run_id: str = "r1") -> None:
    """`up.py` of this owner, whose task pushed an XCom in this run."""
    api.launcher.dags["up.py"] = [dag_entry("up", task_entry("t"), member="up.py")]
    assert (await api.push("up.py", SOURCE, token=api.tokens[owner], query=f"?group={group}")).status in (200, 201)
    await api.allow(owner)
    assert (await api.launch(dag_id="up", run_id=run_id)).status == 201
    offer = await worker.take()
    assert offer is not None
    await worker.claimed(offer)
    await worker.finish(offer, xcoms=(Xcom(key="k", value=f'"of {run_id}"'),))


@pytest.mark.parametrize(("owner", "group"), [("alice", "alice"), ("bob", "team")])
async def test_xcoms_of_a_dag_that_the_owner_may_read(api: Api, worker: WorkerPeer, owner: str, group: str) -> None:
    await api.call("PUT", f"/v1/groups/{owner}", token=api.admin, json={"members": [owner]})
    await upstream(api, worker, owner, group)
    await upstream(api, worker, owner, group, run_id="another")
    await push(api, xcom_dags=("etl", "up"))
    assert (await api.launch()).status == 201
    offer = await worker.take()
    assert offer is not None
    expected = {"dag_id": "up", "task_id": "t", "map_index": -1, "key": "k", "value": '"of r1"'}
    assert (await worker.claimed(offer)).xcoms == (expected,)
    assert [e["object"] for e in await api.events() if e["object"].startswith("xcoms:")] == ["xcoms:up"]


async def test_xcoms_of_a_dag_that_is_not_the_owners_to_read(api: Api, worker: WorkerPeer) -> None:
    await upstream(api, worker, "carol", "carol")
    await push(api, xcom_dags=("up",))
    before = (await api.call("GET", "/v1/launches", token=api.admin)).json
    for token in (api.tokens["alice"], api.admin):
        refused = await api.launch(token=token)
        assert (refused.status, refused.slug) == (403, "out-of-scope")
        assert (
            "which belongs to carol and group carol with mode rwxrwx---; alice may not read it"
            in refused.json["detail"]
        )
    assert (await api.call("GET", "/v1/launches", token=api.admin)).json == before
    await push(api, source=SOURCE + b"# reads none\n")
    assert (await api.launch()).status == 201
    offer = await worker.take()
    assert offer is not None
    assert (await worker.claimed(offer)).xcoms == (), "what is not declared is not delivered"


async def test_a_membership_that_ends_before_the_claim(api: Api, worker: WorkerPeer) -> None:
    await upstream(api, worker, "bob", "team")
    await push(api, "?group=alice", xcom_dags=("up",))
    launch = (await api.launch()).json
    offer = await worker.take()
    assert offer is not None
    await api.call("PUT", "/v1/groups/team", token=api.admin, json={"members": ["bob"]})
    answer = await worker.claim(offer)
    assert (answer.status, answer.slug) == (403, "out-of-scope")
    assert (await state(api, launch["id"]))["state"] == "refused"


async def test_a_dag_that_is_not_there_has_no_xcoms(api: Api, worker: WorkerPeer) -> None:
    await push(api, xcom_dags=("nothing",))
    refused = await api.launch()
    assert (refused.status, refused.slug) == (404, "not-found")
    assert "reads XComs of dag 'nothing', which no release defines: push its file first" in refused.json["detail"]


async def test_with_require_caller_the_caller_must_be_able_to_read_too(api: Api, worker: WorkerPeer) -> None:
    await upstream(api, worker, "alice", "alice")
    await push(api, "?group=team&require_caller=true", xcom_dags=("up",))
    refused = await api.launch(token=api.tokens["bob"])
    assert (refused.status, refused.slug) == (403, "out-of-scope") and "bob may not read it" in refused.json["detail"]
    assert (await api.launch(token=api.tokens["alice"])).status == 201


async def test_more_dags_than_a_manifest_names_are_no_description(api: Api, worker: WorkerPeer) -> None:
    names = tuple(f"d{number:03}" for number in range(MAX_XCOM_DAGS + 1))
    api.launcher.dags["etl.py"] = [dag_entry("etl", task_entry("t", xcom_dags=names))]
    answer = await api.push("etl.py", SOURCE, token=api.tokens["alice"])
    assert (answer.status, answer.slug) == (503, "fetch")

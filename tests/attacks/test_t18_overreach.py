"""T18 overreach: a submitter with a valid token reaches for what is another's: archives, dag_ids, connections, unix users.

Seen to fail when weakened: `permissions.require` that returns; `owning._check` that returns; `recording.decide` that does
not look whose a dag_id is; `require_connections` that takes what exists; `require_queue` that returns;
`impersonation.decide` that allows, or does not compare the dag, or asks deny rules about the owner only; tokens that stay
valid when they are revoked; `require_readable` that returns; a task that is told of every dag's XComs; `caller_besides` that
gives nobody.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

import pytest

from submit_api.http.table import ROUTES
from submit_api.permissions import ACTIONS, ADMIN, PUBLIC, WORKERS
from tests.attacks.attacker import LyingAgent, dag
from tests.live import Answer, Live
from tests.routes import path_of

SQL = """
from airflow.sdk import DAG
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator
with DAG("{dag_id}", schedule=None):
    SQLExecuteQueryOperator(task_id="t", conn_id="{conn}", sql="select 1")
"""


@dataclass(frozen=True, slots=True)
class Person:
    """A principal that nobody knew before, and its token."""

    live: Live
    name: str
    token: str

    def http(self, method: str, path: str, body: Any = None) -> Answer:
        return self.live.http(method, path, body, token=self.token)

    def push(self, name: str, source: str, query: str = "") -> Answer:
        return self.live.push(name, source, query, token=self.token)

    def launch(self, dag_id: str, **more: Any) -> Answer:
        body = {"dag_id": dag_id, "task_id": "t", "run_id": secrets.token_hex(4), **more}
        return self.http("POST", "/v1/launches", body)


def person(live: Live, word: str, **more: Any) -> Person:
    name = f"{word}-{secrets.token_hex(4)}"
    made = live.http("POST", "/v1/tokens", {"principal": name, **more})
    assert made.status == 201, made.body
    return Person(live, name, made.json["token"])


@pytest.fixture
def alice(live: Live) -> Person:
    return person(live, "alice")


@pytest.fixture
def bob(live: Live) -> Person:
    return person(live, "bob")


def allow(live: Live, subject: str, **more: Any) -> None:
    rule = {"subject_kind": "principal", "subject": subject, "unix_user": live.user, **more}
    assert live.http("POST", "/v1/impersonation-rules", rule).status == 201


def source(dag_id: str, more: str = "pass") -> str:
    return dag(dag_id, more)


def refused(live: Live, answer: Answer, status: int, problem: str, who: Person | None = None) -> None:
    """Refused so, and in the audit log under the caller's name."""
    assert (answer.status, answer.problem) == (status, problem), answer.body
    if who is not None:
        last = live.audit(principal=who.name)[-1]
        assert last["verdict"] == "refused", last
        assert last["detail"].startswith(f"{problem}: ")


def test_who_does_not_say_who_he_is(live: Live, alice: Person) -> None:
    expired = person(live, "late", expires_at=time.time_ns() // 1000 + 200_000)
    revoked = person(live, "gone")
    token_id = revoked.token.split("_")[1]
    assert live.http("DELETE", f"/v1/tokens/{token_id}").status == 204
    head, token_id, secret, _ = alice.token.split("_")
    flipped = alice.token[:20] + ("a" if alice.token[20] != "a" else "b") + alice.token[21:]
    time.sleep(0.25)
    broken = ("x", flipped, alice.token + "0", alice.token.upper(), f"{head}_{token_id}_{secret}")
    tokens = ("", *broken, expired.token, revoked.token)
    for token in tokens:
        for route in ROUTES:
            if ACTIONS[route.action] != PUBLIC and "{" not in route.path:
                answer = live.http(route.method, route.path, None if route.method == "GET" else b"{}", token=token)
                refused(live, answer, 401, "unauthenticated")
                assert answer.headers["www-authenticate"].startswith("Bearer")
                assert not token or token not in answer.body.decode()
        refused(live, live.push("t18nobody.py", source("t18nobody"), token=token), 401, "unauthenticated")
    for scheme in ("Basic ", "bearer", "Token ", ""):
        answer = live.http("GET", "/v1/archives", token="", headers={"Authorization": scheme + alice.token})
        refused(live, answer, 401, "unauthenticated")
    assert live.http("GET", "/v1/archives/t18nobody.py").status == 404
    assert alice.http("GET", "/v1/archives").status == 200


FOR_OTHERS = [route for route in ROUTES if ACTIONS[route.action] in (ADMIN, WORKERS)]


@pytest.mark.parametrize("route", FOR_OTHERS, ids=lambda route: f"{route.method} {route.path}")
def test_what_is_for_administrators_and_workers(live: Live, route: Any) -> None:
    somebody = person(live, "somebody")
    path = path_of(route)
    answer = somebody.http(route.method, path, None if route.method in ("GET", "DELETE") else b"{}")
    refused(live, answer, 403, "out-of-scope", somebody)


def test_anothers_archive(live: Live, alice: Person, bob: Person) -> None:
    name, dag_id = f"{alice.name}.py", alice.name
    first = alice.push(name, source(dag_id))
    assert first.status == 201, first.body
    allow(live, alice.name)
    mine = alice.launch(dag_id)
    assert mine.status == 201
    launch_id, digest = mine.json["id"], first.json["digest"].partition(":")[2]

    release = f"/v1/archives/{name}/releases"
    about = f"/v1/launches/{launch_id}"
    for answer in (
        bob.push(name, source(dag_id) + "# mine now\n"),
        bob.push(name, source(dag_id)),
        bob.push(name, source(dag_id), f"?group={bob.name}"),
        bob.launch(dag_id),
        bob.launch(dag_id, release=1),
        bob.http("GET", f"/v1/archives/{name}"),
        bob.http("GET", release),
        bob.http("GET", f"{release}/1"),
        bob.http("GET", f"{release}/1/manifest"),
        bob.http("POST", f"{release}/1/activate"),
        bob.http("POST", f"{release}/1/revoke"),
        bob.http("GET", about),
        bob.http("GET", f"{about}/log"),
        bob.http("POST", f"{about}/cancel"),
    ):
        refused(live, answer, 403, "not-owner", bob)
    assert bob.http("GET", f"/v1/blobs/sha512/{digest}").status in (403, 404)
    assert name not in bob.http("GET", "/v1/archives").body.decode()
    assert launch_id not in bob.http("GET", "/v1/launches").body.decode()
    assert len(alice.http("GET", release).json["releases"]) == 1
    assert live.wait(launch_id)["state"] == "success"

    # In the group, he may.
    group = f"team-{secrets.token_hex(4)}"
    assert live.http("PUT", f"/v1/groups/{group}", {"members": [alice.name, bob.name]}).status == 200
    assert alice.push(name, source(dag_id), f"?group={group}").status == 201
    assert bob.push(name, source(dag_id) + "# ours\n").status == 201
    changed = bob.http("GET", f"{release}/3").json
    assert (changed["owner"], changed["submitted_by"], changed["group"]) == (alice.name, bob.name, group)
    refused(live, bob.push(name, source(dag_id) + "# ours\n", f"?group={bob.name}"), 403, "not-owner", bob)
    # And no more once he left it.
    assert live.http("PUT", f"/v1/groups/{group}", {"members": [alice.name]}).status == 200
    refused(live, bob.push(name, source(dag_id) + "# again\n"), 403, "not-owner", bob)
    refused(live, bob.push(f"{bob.name}.py", source(bob.name), f"?group={group}"), 403, "not-owner", bob)


def test_anothers_dag_id(live: Live, alice: Person, bob: Person) -> None:
    dag_id = alice.name
    assert alice.push(f"{alice.name}.py", source(dag_id)).status == 201
    blobs = sorted((live.stack.folder / "api").rglob("*"))
    for text in (source(dag_id), source(bob.name) + source(dag_id)):
        refused(live, bob.push(f"{bob.name}.py", text), 409, "conflict", bob)
    assert live.http("GET", f"/v1/archives/{bob.name}.py").status == 404
    assert sorted((live.stack.folder / "api").rglob("*")) == blobs
    refused(live, bob.launch(dag_id), 403, "not-owner", bob)
    # Also after the archive no longer defines it: a dag_id is its archive's for good.
    assert alice.push(f"{alice.name}.py", source(f"{dag_id}-new")).status == 201
    refused(live, bob.push(f"{bob.name}.py", source(dag_id)), 409, "conflict", bob)


def test_a_mode_that_is_not_his_to_change(live: Live, alice: Person, bob: Person) -> None:
    """Nor hers to give away: code of another's would run with what that other may."""
    name, path = f"{alice.name}.py", f"/v1/ownership/archive/{alice.name}.py"
    assert alice.push(name, source(alice.name)).status == 201
    before = alice.http("GET", path).json
    assert (before["owner"], before["group"], before["mode"]) == (alice.name, alice.name, "rwxrwx---")
    refused(live, bob.http("GET", path), 403, "not-owner", bob)
    for who, body in (
        (bob, {"mode": "777"}), (bob, {"group": bob.name}), (bob, {"owner": bob.name}),
        (alice, {"owner": bob.name}), (alice, {"owner": bob.name, "mode": "777"}), (alice, {"group": bob.name}),
    ):  # fmt: skip
        refused(live, who.http("PATCH", path, body), 403, "not-owner", who)
    assert alice.http("GET", path).json == before
    # Whoever may replace an archive is not its owner yet; whoever may launch it may not replace it.
    assert alice.http("PATCH", path, {"mode": "o+rwx"}).status == 200
    refused(live, bob.http("PATCH", path, {"group": bob.name}), 403, "not-owner", bob)
    assert bob.push(name, source(alice.name) + "# his\n").status == 201
    assert alice.http("PATCH", path, {"mode": "o=x"}).status == 200
    refused(live, bob.push(name, source(alice.name) + "# more\n"), 403, "not-owner", bob)
    refused(live, bob.http("GET", f"/v1/archives/{name}"), 403, "not-owner", bob)
    allow(live, alice.name)
    launched = bob.launch(alice.name)
    assert launched.status == 201, "the execute bit is enough, and what he launched he may see"
    assert bob.http("GET", f"/v1/launches/{launched.json['id']}?wait_seconds=30").json["state"] == "success"


def test_a_dag_id_that_is_not_his_to_give(live: Live, alice: Person, bob: Person) -> None:
    for who in (alice, bob):
        assert who.push(f"{who.name}.py", source(who.name)).status == 201
    path, to_bob = f"/v1/dags/{alice.name}/transfer", {"archive": f"{bob.name}.py"}
    for who in (alice, bob):  # neither may write both
        refused(live, who.http("POST", path, to_bob), 403, "not-owner", who)
    refused(live, bob.push(f"{bob.name}.py", source(alice.name)), 409, "conflict", bob)
    assert live.http("PATCH", f"/v1/ownership/archive/{bob.name}.py", {"mode": "o+w"}).status == 200
    assert alice.http("POST", path, to_bob).json["was"] == f"{alice.name}.py"
    refused(live, alice.launch(alice.name), 403, "not-owner", alice)
    refused(live, alice.push(f"{alice.name}.py", source(alice.name) + "# new\n"), 409, "conflict", alice)
    assert bob.push(f"{bob.name}.py", source(alice.name)).status == 201
    moved = live.audit(object=f"dag:{alice.name}")[-1]
    assert (moved["verdict"], moved["principal"]) == ("accepted", alice.name)
    assert moved["detail"] == f"{alice.name}.py -> {bob.name}.py"


def test_a_secret_that_is_not_hers_to_spread(live: Live, alice: Person, bob: Person) -> None:
    """She owns it: she replaces it and gives it to her group; everybody's tasks get it from an administrator only."""
    conn = f"t18-{secrets.token_hex(4)}"
    refused(live, alice.http("PUT", f"/v1/connections/{conn}", {"value": "http://hers"}), 403, "out-of-scope", alice)
    assert live.http("GET", f"/v1/connections/{conn}").status == 404
    assert live.http("PUT", f"/v1/connections/{conn}", {"value": "http://a:b@c"}).status == 201
    path = f"/v1/ownership/connection/{conn}"
    assert live.http("PATCH", path, {"owner": alice.name, "group": alice.name, "mode": "u+x"}).status == 200
    for who, body in (
        (alice, {"mode": "o+x"}),
        (alice, {"mode": "777"}),
        (bob, {"mode": "o+x"}),
        (alice, {"group": bob.name}),
    ):
        refused(live, who.http("PATCH", path, body), 403, "not-owner", who)
    for method, where in (("GET", f"/v1/connections/{conn}"), ("DELETE", f"/v1/connections/{conn}")):
        refused(live, bob.http(method, where), 403, "not-owner", bob)
    refused(live, bob.http("PUT", f"/v1/connections/{conn}", {"value": "http://his"}), 403, "not-owner", bob)
    assert bob.http("GET", "/v1/connections").json == {"connections": []}
    assert alice.http("PUT", f"/v1/connections/{conn}", {"value": "http://new"}).json["version"] == 2
    for who, status in ((alice, 201), (bob, 403)):
        allow(live, who.name)
        assert who.push(f"{who.name}.py", SQL.format(dag_id=who.name, conn=conn)).status == 201
        answer = who.launch(who.name)
        assert answer.status == status, answer.body
        if status == 201:
            live.wait(answer.json["id"])
    assert alice.http("PATCH", path, {"mode": "u-x"}).status == 200
    refused(live, alice.launch(alice.name), 403, "out-of-scope", alice)


def test_a_queue_that_is_anothers(live: Live, alice: Person, bob: Person) -> None:
    queue = f"q-{secrets.token_hex(4)}"
    for who in (alice, bob):
        allow(live, who.name)
        assert who.push(f"{who.name}.py", source(who.name)).status == 201
    refused(live, bob.http("PUT", f"/v1/queues/{queue}", {}), 403, "out-of-scope", bob)
    worker = LyingAgent.enrol(live)
    for name in (queue, worker.name):
        assert live.http("PUT", f"/v1/queues/{name}", {"owner": alice.name, "mode": "700"}).status == 201
    refused(live, bob.launch(bob.name, queue=queue), 403, "not-owner", bob)
    assert alice.launch(alice.name, queue=queue).status == 201
    # Whose tasks run there is asked again when one is offered.
    reserved = alice.launch(alice.name, queue=worker.name)
    assert live.http("PATCH", f"/v1/ownership/queue/{worker.name}", {"mode": "000"}).status == 200
    body = {"queues": [worker.name]}
    assert live.http("POST", f"/v1/workers/{worker.name}/take", body, token=worker.token).status == 204
    launch = alice.http("GET", f"/v1/launches/{reserved.json['id']}").json
    assert (launch["state"], launch["error"]) == ("refused", "not-owner")


def test_a_connection_that_was_not_granted(live: Live, alice: Person, bob: Person) -> None:
    conn, canary = f"t18-{secrets.token_hex(4)}", secrets.token_hex(16)
    allow(live, alice.name)
    assert alice.push(f"{alice.name}.py", SQL.format(dag_id=alice.name, conn=conn)).status == 201
    missing = alice.launch(alice.name)
    refused(live, missing, 403, "out-of-scope", alice)
    assert f"{conn!r}, which does not exist" in missing.json["detail"]
    assert live.http("PUT", f"/v1/connections/{conn}", {"value": f"postgres://u:{canary}@127.0.0.1:1/x"}).status == 201
    for kind, to in (("principal", bob.name), ("group", alice.name)):
        grant = {"kind": "connection", "name": conn, "to_kind": kind, "to": to}
        assert live.http("POST", "/v1/grants", grant).status == 201
        denied = alice.launch(alice.name)
        refused(live, denied, 403, "out-of-scope", alice)
        assert f"{conn!r}, which is not granted to {alice.name}" in denied.json["detail"]
        assert canary not in denied.body.decode()
    assert alice.http("GET", f"/v1/launches?dag_id={alice.name}").json["launches"] == []
    # An administrator's launch of her DAG does not change whose it is.
    body = {"dag_id": alice.name, "task_id": "t", "run_id": "by-admin"}
    assert live.http("POST", "/v1/launches", body).status == 403
    grant = {"kind": "connection", "name": conn, "to_kind": "principal", "to": alice.name}
    assert live.http("POST", "/v1/grants", grant).status == 201
    accepted = alice.launch(alice.name)
    assert accepted.status == 201
    live.wait(accepted.json["id"])


def test_a_grant_that_was_taken_back_in_between(live: Live, alice: Person) -> None:
    """Reserved while granted; when it is to be offered or claimed, it no longer is."""
    conn = f"t18-{secrets.token_hex(4)}"
    allow(live, alice.name)
    assert live.http("PUT", f"/v1/connections/{conn}", {"value": "http://a:b@c"}).status == 201
    grant = {"kind": "connection", "name": conn, "to_kind": "principal", "to": alice.name}
    made = live.http("POST", "/v1/grants", grant)
    assert alice.push(f"{alice.name}.py", SQL.format(dag_id=alice.name, conn=conn)).status == 201
    worker = LyingAgent.enrol(live)
    reserved = alice.launch(alice.name, queue=worker.name)
    assert reserved.status == 201, reserved.body
    assert live.http("DELETE", f"/v1/grants/{made.json['id']}").status == 204
    body = {"queues": [worker.name]}
    assert live.http("POST", f"/v1/workers/{worker.name}/take", body, token=worker.token).status == 204
    launch = alice.http("GET", f"/v1/launches/{reserved.json['id']}").json
    assert (launch["state"], launch["error"]) == ("refused", "out-of-scope")


READER = """
from airflow.sdk.execution_time.xcom import XCom
try:
    found = XCom.get_one(dag_id={other!r}, task_id="t", key="return_value", run_id={run_id!r})
except Exception as error:
    print("denied:", error)
    raise
print("found:", found[::-1])
"""


def reader(dag_id: str, other: str, run_id: str, declared: bool) -> str:
    config = {"dagseal": {"xcom_dags": [other]}} if declared else {}
    return dag(dag_id, READER.format(other=other, run_id=run_id), arguments=f"executor_config={config!r}")


def test_the_xcoms_of_anothers_dag(live: Live, alice: Person, bob: Person) -> None:
    """Bob's task pushed something in a run; alice's task of the same run reaches for it, declared and undeclared."""
    run_id, canary = f"shared-{secrets.token_hex(4)}", secrets.token_hex(16)
    for who in (alice, bob):
        allow(live, who.name)
    assert bob.push(f"{bob.name}.py", source(bob.name, f"return {canary[::-1]!r}[::-1]")).status == 201
    assert live.wait(bob.launch(bob.name, run_id=run_id).json["id"])["state"] == "success"
    name, dag_id = f"{alice.name}.py", alice.name

    assert alice.push(name, reader(dag_id, bob.name, run_id, declared=False)).status == 201
    undeclared = live.wait(alice.launch(dag_id, run_id=run_id).json["id"])
    assert undeclared["state"] == "failed"
    log = live.log(undeclared["id"])
    assert "denied: " in log and f"XComs of dag {bob.name!r} were not granted to this task" in log
    assert "found:" not in log and canary not in log and canary[::-1] not in log

    assert alice.push(name, reader(dag_id, bob.name, run_id, declared=True)).status == 201
    before = len(alice.http("GET", "/v1/launches").json["launches"])
    for who in (alice, Person(live, "admin", live.token)):
        denied = who.launch(dag_id, run_id=run_id, try_number=2, release=2)
        refused(live, denied, 403, "out-of-scope", who)
        assert f"reads XComs of dag {bob.name}, which belongs to {bob.name}" in denied.json["detail"]
        assert canary not in denied.body.decode()
    assert len(alice.http("GET", "/v1/launches").json["launches"]) == before
    assert f"xcoms:{bob.name}" not in {event["object"] for event in live.audit()}

    # A member of bob's group may read, and it is on record.
    assert live.http("PUT", f"/v1/groups/{bob.name}", {"members": [alice.name]}).status == 200
    given = live.wait(alice.launch(dag_id, run_id=run_id, try_number=2, release=2).json["id"])
    assert given["state"] == "success", (given, live.log(given["id"]))
    assert f"found: {canary[::-1]}" in live.log(given["id"])
    assert f"xcoms:{bob.name}" in {event["object"] for event in live.audit()}


def test_a_member_who_launches_to_get_what_is_not_his(live: Live, alice: Person, bob: Person) -> None:
    """Bob may launch alice's dag, which asks for its caller's grants too: what she has and he has not he cannot make it use."""
    conn, canary, group = f"t18-{secrets.token_hex(4)}", secrets.token_hex(16), f"team-{secrets.token_hex(4)}"
    assert live.http("PUT", f"/v1/groups/{group}", {"members": [alice.name, bob.name]}).status == 200
    assert live.http("PUT", f"/v1/connections/{conn}", {"value": f"http://u:{canary}@h"}).status == 201
    assert live.http("PUT", f"/v1/variables/{conn}", {"value": canary}).status == 201
    for kind in ("connection", "variable"):
        grant = {"kind": kind, "name": conn, "to_kind": "principal", "to": alice.name}
        assert live.http("POST", "/v1/grants", grant).status == 201
    allow(live, alice.name)
    body = f"""
    from airflow.sdk import BaseHook, Variable
    print("variable:", Variable.get({conn!r}, default="none"))
    print("password:", BaseHook.get_connection({conn!r}).password[::-1])
    """
    assert alice.push(f"{alice.name}.py", source(alice.name, body), f"?group={group}&require_caller=true").status == 201
    bobs = live.wait(bob.launch(alice.name).json["id"])
    log = live.log(bobs["id"])
    assert bobs["state"] == "failed" and f"connection {conn!r} was not granted to this task" in log
    assert "variable: none" in log and "password: " not in log and canary not in log and canary[::-1] not in log
    delivered = [event["object"] for event in live.audit() if event["detail"] == f"launch:{bobs['id']}"]
    assert delivered == []
    hers = live.wait(alice.launch(alice.name).json["id"])
    assert hers["state"] == "success" and f"password: {canary[::-1]}" in live.log(hers["id"])


def test_a_unix_user_that_was_not_given(live: Live, alice: Person, bob: Person) -> None:
    dag_id = alice.name
    assert alice.push(f"{alice.name}.py", source(dag_id)).status == 201

    def denied(**more: Any) -> None:
        answer = alice.launch(dag_id, **more)
        refused(live, answer, 403, "out-of-scope", alice)
        assert f"no rule lets {alice.name} run dag {dag_id} as unix user" in answer.json["detail"]

    denied()
    allow(live, bob.name)
    denied()
    allow(live, alice.name, dag_glob="another-*")
    denied()
    allow(live, alice.name, queue_glob="another-*")
    denied()
    allow(live, alice.name, unix_user="another")
    denied()
    allow(live, alice.name, subject_kind="group")
    denied()
    denied(run_as_user="root")
    allow(live, alice.name, dag_glob=f"{dag_id[:8]}*", queue_glob="default")
    assert alice.launch(dag_id).status == 201
    denied(run_as_user="another-one")
    denied(queue="another")


def test_an_account_that_was_denied(live: Live, alice: Person, bob: Person) -> None:
    """Who may not use it reaches it neither by a colleague's archive, nor by launching a colleague's dag."""
    name, dag_id, group = f"{alice.name}.py", alice.name, f"team-{secrets.token_hex(4)}"
    assert live.http("PUT", f"/v1/groups/{group}", {"members": [alice.name, bob.name]}).status == 200
    assert alice.push(name, source(dag_id), f"?group={group}").status == 201
    allow(live, alice.name)
    allow(live, bob.name, effect="deny")
    refused(live, bob.launch(dag_id), 403, "out-of-scope", bob)
    assert bob.push(name, source(dag_id) + "# mine\n").status == 201
    answer = alice.launch(dag_id)
    refused(live, answer, 403, "out-of-scope", alice)
    assert f"{bob.name} is the submitter" in answer.json["detail"]
    assert alice.http("GET", f"/v1/launches?dag_id={dag_id}").json["launches"] == []
    first = alice.launch(dag_id, release=1)
    assert first.status == 201
    live.wait(first.json["id"])


def test_what_is_not_there(live: Live, alice: Person) -> None:
    assert alice.push(f"{alice.name}.py", source(alice.name)).status == 201
    allow(live, alice.name)
    release = f"/v1/archives/{alice.name}.py/releases"
    for answer in (
        alice.http("GET", "/v1/archives/absent.py"),
        alice.http("GET", f"{release}/2"),
        alice.http("POST", f"{release}/2/activate"),
        alice.http("GET", f"{release}/2/manifest"),
        alice.http("GET", f"/v1/launches/{'0' * 32}"),
        alice.http("POST", f"/v1/launches/{'0' * 32}/cancel"),
        alice.launch("absent"),
        alice.launch(alice.name, release=2),
        alice.launch(alice.name, task_id="absent"),
    ):
        assert (answer.status, answer.problem) == (404, "not-found"), answer.body


def test_a_revoked_release(live: Live, alice: Person) -> None:
    name, dag_id = f"{alice.name}.py", alice.name
    allow(live, alice.name)
    assert alice.push(name, source(dag_id)).status == 201
    assert alice.http("POST", f"/v1/archives/{name}/releases/1/revoke").status == 200
    refused(live, alice.launch(dag_id, release=1), 409, "conflict", alice)
    refused(live, alice.launch(dag_id), 409, "conflict", alice)
    refused(live, alice.push(name, source(dag_id)), 409, "conflict", alice)
    assert alice.http("GET", "/v1/launches").json["launches"] == []


def test_a_try_is_reserved_once(live: Live, alice: Person) -> None:
    assert alice.push(f"{alice.name}.py", source(alice.name)).status == 201
    allow(live, alice.name)
    first = alice.launch(alice.name, run_id="once")
    assert first.status == 201
    refused(live, alice.launch(alice.name, run_id="once"), 409, "conflict", alice)
    assert alice.launch(alice.name, run_id="once", try_number=2).status == 201
    live.wait(first.json["id"])

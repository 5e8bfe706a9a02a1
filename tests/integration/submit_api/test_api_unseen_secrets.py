"""No secret ever stands in an audit event, an export or a log: every route is driven with marked ones, good and bad."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from api_rig import SOURCE, Api, dag_entry, task_entry

from submit_api import accepting
from submit_api.http.routes import DSSE
from submit_api.http.table import ROUTES
from submit_api.permissions import ACTIONS, PUBLIC, WORKERS
from tests.routes import path_of
from vocabulary.claims import Xcom

MARK = "m4rk3d"
CONNECTION, VARIABLE, XCOM, SAID, LOGGED, SENT = (f"{MARK}-{n}" for n in ("conn", "var", "xcom", "said", "log", "sent"))


async def a_launch_with_secrets(api: Api) -> str:
    """To its end, which tells them; the worker's token."""
    alice = await api.token("alice")
    api.launcher.dags["etl.py"] = [dag_entry("etl", task_entry("t", connections=("db",)), task_entry("u"))]
    assert (await api.push("etl.py", SOURCE, token=alice)).status == 201
    await api.allow("alice")
    await api.connection("db", f"postgres://u:{CONNECTION}@h/d", to="alice")
    await api.connection("other", {"conn_type": "http", "password": CONNECTION, "extra": json.dumps({"k": CONNECTION})})
    assert (await api.call("PUT", "/v1/variables/v", token=api.admin, json={"value": VARIABLE})).status == 201
    grant = {"kind": "variable", "name": "v", "to_kind": "principal", "to": "alice"}
    assert (await api.call("POST", "/v1/grants", token=api.admin, json=grant)).status == 201
    worker = await api.worker()
    for task, state in (("t", "success"), ("u", "failed")):
        assert (await api.launch(token=alice, task_id=task)).status == 201
        offer = await worker.take()
        assert offer is not None
        secrets = await worker.claimed(offer)
        assert CONNECTION in secrets.connections["db"] and secrets.variables == {"v": VARIABLE}
        log = await worker.post(offer["launch_id"], "log?offset=0", LOGGED.encode(), kind="application/octet-stream")
        assert log.status == 200
        done = await worker.finish(
            offer, state, xcoms=(Xcom(key="k", value=json.dumps(XCOM)),), detail=f"it was {SAID}"
        )
        assert done.status == 200
        shown = (await api.call("GET", f"/v1/launches/{offer['launch_id']}", token=alice)).json
        assert shown["detail"] == f"it was {SAID}", "the launch's members do see it"
    return worker.token


async def each_route_with_marks(api: Api, worker: str) -> None:
    """As a body that is none, as fields that are unknown, as fields of the wrong kind, as a token; by anybody."""
    fields: dict[str, Any] = {
        "value": {"conn_type": "http", "pasword": SENT}, "password": SENT, "principal": [SENT], "members": {SENT: SENT},
        "verify_key": SENT, "kind": SENT, "dag_id": 7, "queues": SENT, "state": "refused", "error": [SENT],
    }  # fmt: skip
    bodies = (
        ("application/json", json.dumps(fields).encode()),
        ("application/json", f"{{{SENT}".encode()),
        (DSSE, json.dumps(fields).encode()),
        (f"text/{SENT}", SENT.encode()),
        ("application/json", json.dumps({"value": 7, SENT: 1}).encode()),
    )
    for route in ROUTES:
        if ACTIONS[route.action] == PUBLIC:
            continue
        path = path_of(route, name="etl.py", secret="db")
        allowed = worker if ACTIONS[route.action] == WORKERS else api.admin
        for token in (
            allowed,
            api.tokens["alice"],
            worker,
            f"dgs_{SENT}",
            f"dgs_{'a' * 12}_{SENT.replace('-', 'x') * 5}_000000",
        ):
            for kind, body in bodies if route.method in ("POST", "PUT") else bodies[:1]:
                headers = {"Content-Type": kind, "X-Other": SENT, "Repr-Digest": f"sha-512=:{SENT}:"}
                sent = body if route.method in ("POST", "PUT") else None
                answer = await api.call(route.method, path, token=token, body=sent, headers=headers)
                assert answer.status < 500


async def logged_or_recorded(api: Api) -> dict[str, bytes]:
    events: list[dict[str, Any]] = []
    while page := (
        await api.call("GET", f"/v1/audit?limit=1000&after={events[-1]['seq'] if events else 0}", token=api.admin)
    ).json["events"]:
        events += page
    found = {"events": json.dumps(events).encode()}
    for form in ("application/jsonl", "text/x-cef"):
        found[form] = (await api.call("GET", "/v1/audit", token=api.admin, headers={"Accept": form})).body
    assert found["text/x-cef"].count(b"\n") == found["application/jsonl"].count(b"\n") + 1 == len(events) + 1
    return found


def hidden_values(api: Api, tokens: list[str]) -> list[bytes]:
    """The marks, the secret part of each token, and the service's keys: as they are, and as base64 writes them."""
    keys = []
    for path in (api.settings.signing_key_file, api.settings.row_key_file):
        with open(path) as file:
            keys.append(file.read().strip())
    plain = [MARK, *(token.split("_")[2] for token in tokens), *keys]
    raw = [text.encode() for text in plain] + [bytes.fromhex(key) for key in keys]
    return raw + [base64.b64encode(one)[: len(one) // 3 * 4] for one in raw]


async def test_no_secret_stands_in_events_exports_or_logs(
    api: Api, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await a_launch_with_secrets(api)
    made = await api.call("POST", "/v1/tokens", token=api.admin, json={"principal": "carl"})
    export = json.dumps({"good": f"http://u:{CONNECTION}@h", "bad one": f"http://u:{CONNECTION}@h"}).encode()
    assert (await api.call("POST", "/v1/connections/import", token=api.admin, body=export)).status == 422
    assert (
        await api.call("POST", "/v1/connections/import", token=api.admin, body=export.replace(b"bad one", b"two"))
    ).status == 200
    await each_route_with_marks(api, worker)

    def fail(*_: object, **__: object) -> None:
        raise ValueError(f"postgres://u:{CONNECTION}@h")  # as a database's error may hold the row that it is about

    with monkeypatch.context() as patched:
        patched.setattr(accepting, "wanted", fail)
        assert (await api.push("etl.py", SOURCE)).status == 500
    found = await logged_or_recorded(api)
    told = capfd.readouterr()
    found |= {"stdout": told.out.encode(), "stderr": told.err.encode(), "logging": caplog.text.encode()}
    assert len(found["events"]) > 10_000 and b"/v1/launches" in found["stdout"] and b"unexpected" in found["stdout"]
    for hidden in hidden_values(api, [made.json["token"], worker, *api.tokens.values()]):
        for where, text in found.items():
            at = text.find(hidden)
            assert at < 0, f"{where}: {text[max(at - 200, 0) : at + 80]!r}"

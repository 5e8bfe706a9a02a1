"""Connections, variables, grants, rules, groups, tokens and workers over HTTP; no secret ever comes back."""

from __future__ import annotations

import json

import pytest
from api_rig import Api, WorkerPeer

from integrity.fields import to_base64
from submit_api import connections
from submit_api.registry import secrets
from vocabulary.keys import fingerprint


async def stored(api: Api, name: str, kind: str = "connection") -> str:
    async with api.service.database.read() as tx:
        row = await secrets.find(tx, kind, name)
    assert row is not None
    return connections.open_secret(api.service.keys.rows, row)


async def test_a_connection_is_stored_encrypted_and_never_sent_back(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    value = "postgres://u:hunter2-s3cret@h/d"
    made = await api.call("PUT", "/v1/connections/db", token=api.admin, json={"value": value})
    assert (made.status, made.json["version"]) == (201, 1)
    again = await api.call("PUT", "/v1/connections/db", token=api.admin, json={"value": value})
    assert (again.status, again.json["version"]) == (200, 2)
    assert await stored(api, "db") == value
    answers = [made, again]
    for path in ("connections", "connections/db", "audit?limit=1000", "grants"):
        answers.append(await api.call("GET", f"/v1/{path}", token=api.admin))
    assert all(b"s3cret" not in answer.body for answer in answers)
    assert "s3cret" not in capsys.readouterr().out
    assert b"s3cret" not in await api.at_rest()
    assert (await api.call("DELETE", "/v1/connections/db", token=api.admin)).status == 204
    assert (await api.call("GET", "/v1/connections/db", token=api.admin)).slug == "not-found"
    assert (await api.call("DELETE", "/v1/connections/db", token=api.admin)).slug == "not-found"


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("db", "no-uri s3cret", 422),
        ("db", {"conn_type": "http", "passwort": "s3cret"}, 422),
        ("db", {"host": "s3cret"}, 422),
        ("db", '{"conn_type": "http", "conn_type": "s3cret"}', 422),
        ("db", {"conn_type": "http", "port": [1]}, 422),
        ("bad name", "http://s3cret", 400),
    ],
)
async def test_values_that_cannot_be_used_are_refused_unseen(api: Api, name: str, value: object, status: int) -> None:
    answer = await api.call("PUT", f"/v1/connections/{name}", token=api.admin, json={"value": value})
    assert answer.status == status
    assert b"s3cret" not in answer.body
    assert (await api.call("GET", "/v1/connections", token=api.admin)).json == {"connections": []}


async def test_a_connection_id_may_hold_slashes_and_a_variable_any_text(api: Api) -> None:
    assert (await api.call("PUT", "/v1/connections/a/b:c", token=api.admin, json={"value": "http://h"})).status == 201
    assert await stored(api, "a/b:c") == "http://h"
    assert (
        await api.call("PUT", "/v1/variables/d%C3%A9j%C3%A0 vu", token=api.admin, json={"value": "é"})
    ).status == 201
    assert await stored(api, "déjà vu", "variable") == "é"
    listed = (await api.call("GET", "/v1/variables", token=api.admin)).json["variables"]
    assert [row["name"] for row in listed] == ["déjà vu"]
    assert (await api.call("PUT", "/v1/variables/x", token=api.admin, json={"value": {"a": 1}})).status == 422
    for unwanted in ("%0A", "x%0Ay", "x%C2%85"):
        answer = await api.call("PUT", f"/v1/variables/{unwanted}", token=api.admin, json={"value": "é"})
        assert (answer.status, answer.slug) == (400, "malformed")


EXPORTED_JSON = json.dumps(
    {
        "db": {
            "conn_type": "postgres", "description": None, "login": "ü", "password": "", "host": "h", "port": 5432,
            "schema": None, "extra": '{"sslmode": "require"}',
        },
        "api": "http://u:p%40ss@h",
    }
)  # fmt: skip
EXPORTED_YAML = """
db:
  conn_type: postgres
  description: null
  extra: '{"sslmode": "require"}'
  host: h
  login: "\\xFC"
  password: ''
  port: 5432
  schema: null
api: http://u:p%40ss@h
"""
EXPORTED_ENV = """# comment
db={"conn_type": "postgres", "login": "ü", "password": "", "host": "h", "port": 5432, "extra": "{\\"sslmode\\": \\"require\\"}"}

api=http://u:p%40ss@h
"""


@pytest.mark.parametrize(
    ("kind", "query", "body"),
    [
        ("application/json", "", EXPORTED_JSON),
        ("application/yaml", "", EXPORTED_YAML),
        ("text/plain", "", EXPORTED_ENV),
        ("application/octet-stream", "", EXPORTED_JSON),
        ("application/octet-stream", "", EXPORTED_YAML),
        ("application/octet-stream", "", EXPORTED_ENV),
        ("application/octet-stream", "?format=env", EXPORTED_ENV),
    ],
)
async def test_what_airflow_exports_is_imported(api: Api, kind: str, query: str, body: str) -> None:
    headers = {"Content-Type": kind}
    answer = await api.call(
        "POST", f"/v1/connections/import{query}", token=api.admin, body=body.encode(), headers=headers
    )
    assert (answer.status, answer.json) == (200, {"imported": ["api", "db"]})
    assert json.loads(await stored(api, "db")) == {
        "conn_type": "postgres", "login": "ü", "password": "", "host": "h", "port": 5432,
        "extra": '{"sslmode": "require"}',
    }  # fmt: skip
    assert await stored(api, "api") == "http://u:p%40ss@h"
    assert [e["object"] for e in await api.events() if e["action"] == "connection.import"] == [
        "connection:db",
        "connection:api",
    ]


@pytest.mark.parametrize(
    "body",
    [
        '{"good": "http://h", "bad one": "http://s3cret"}',
        '{"good": "http://h", "good": "http://s3cret"}',
        '{"good": "http://h", "b": {"conn_type": "http", "nope": "s3cret"}}',
        '["http://s3cret"]',
        "good: &x http://h\nb: *x\n",
        "good: http://h\ngood: http://s3cret\n",
        "good: !!python/object/apply:os.system [s3cret]\n",
        "good=http://h\ngood=http://s3cret\n",
        "good=http://h\nb=s3cret\n",
        "",
        "{",
    ],
)
async def test_an_import_is_all_or_nothing(api: Api, body: str) -> None:
    answer = await api.call("POST", "/v1/connections/import", token=api.admin, body=body.encode())
    assert (answer.status, answer.slug) == (422, "invalid-request")
    assert b"s3cret" not in answer.body
    assert (await api.call("GET", "/v1/connections", token=api.admin)).json == {"connections": []}


async def test_grants_rules_and_groups(api: Api) -> None:
    grant = {"kind": "connection", "name": "db", "to_kind": "group", "to": "team"}
    assert (await api.call("POST", "/v1/grants", token=api.admin, json=grant)).slug == "not-found"
    await api.connection("db", "http://h")
    made = await api.call("POST", "/v1/grants", token=api.admin, json=grant)
    assert made.status == 201
    assert (await api.call("POST", "/v1/grants", token=api.admin, json=grant)).slug == "conflict"
    assert len((await api.call("GET", "/v1/grants", token=api.admin)).json["grants"]) == 1
    assert (await api.call("GET", f"/v1/grants/{made.json['id']}", token=api.admin)).json == made.json
    assert (await api.call("DELETE", f"/v1/grants/{made.json['id']}", token=api.admin)).status == 204
    assert (await api.call("DELETE", f"/v1/grants/{made.json['id']}", token=api.admin)).slug == "not-found"
    rule = {"subject_kind": "group", "subject": "team", "dag_glob": "etl_*", "unix_user": "nobody"}
    made = await api.call("POST", "/v1/impersonation-rules", token=api.admin, json=rule)
    assert made.json["queue_glob"] == "*"
    assert (await api.call("GET", f"/v1/impersonation-rules/{made.json['id']}", token=api.admin)).json == made.json
    bad = await api.call("POST", "/v1/impersonation-rules", token=api.admin, json={**rule, "unix_user": "0"})
    assert (bad.status, bad.slug) == (422, "invalid-request")
    assert len((await api.call("GET", "/v1/impersonation-rules", token=api.admin)).json["rules"]) == 1
    assert (await api.call("DELETE", f"/v1/impersonation-rules/{made.json['id']}", token=api.admin)).status == 204
    put = await api.call("PUT", "/v1/groups/team", token=api.admin, json={"members": ["b", "a", "a"]})
    assert put.json == {"name": "team", "members": ["a", "b"], "approvals": 0}
    assert (await api.call("GET", "/v1/groups", token=api.admin)).json["groups"] == [put.json]
    assert (await api.call("GET", "/v1/groups/none", token=api.admin)).slug == "not-found"


async def test_a_grant_dies_with_its_connection(api: Api) -> None:
    await api.connection("db", "http://h", to="alice")
    await api.call("DELETE", "/v1/connections/db", token=api.admin)
    await api.connection("db", "http://other")
    assert (await api.call("GET", "/v1/grants", token=api.admin)).json == {"grants": []}


async def test_tokens_are_shown_once_and_stored_as_a_hash(api: Api) -> None:
    made = await api.call("POST", "/v1/tokens", token=api.admin, json={"principal": "alice"})
    secret = made.json["token"].split("_")[2]
    listed = await api.call("GET", "/v1/tokens", token=api.admin)
    one = await api.call("GET", f"/v1/tokens/{made.json['token_id']}", token=api.admin)
    assert secret.encode() not in listed.body + one.body and b"hash" not in listed.body
    held = await api.at_rest()
    assert secret.encode() not in held and made.json["token_id"].encode() in held
    alice = made.json["token"]
    assert (await api.call("POST", "/v1/tokens", token=alice, json={"principal": "bob"})).slug == "out-of-scope"
    over = await api.call("POST", "/v1/tokens", token=api.admin, json={"principal": "bob", "expires_at": 1})
    assert over.slug == "invalid-request"


async def test_a_worker_is_enrolled_by_its_fingerprint(api: Api) -> None:
    peer = WorkerPeer(api, "w1", "", ["default"])
    body = {
        "name": "w1",
        "verify_key": to_base64(peer.signing.public.raw),
        "sealing_key": to_base64(peer.sealing.public.raw),
        "fingerprint": "0" * 64,
        "queues": ["default"],
    }
    assert (await api.call("POST", "/v1/workers", token=api.admin, json=body)).slug == "invalid-request"
    short = {**body, "fingerprint": fingerprint(peer.signing.public, peer.sealing.public), "sealing_key": "AAAA"}
    assert (await api.call("POST", "/v1/workers", token=api.admin, json=short)).slug == "invalid-request"
    good = {**body, "fingerprint": fingerprint(peer.signing.public, peer.sealing.public)}
    assert (await api.call("POST", "/v1/workers", token=api.admin, json=good)).status == 201
    assert (await api.call("POST", "/v1/workers", token=api.admin, json=good)).slug == "conflict"
    shown = (await api.call("GET", "/v1/workers/w1", token=api.admin)).json
    assert shown["fingerprint"] == fingerprint(peer.signing.public, peer.sealing.public) and "token" not in shown
    assert (await api.call("DELETE", "/v1/workers/w1", token=api.admin)).status == 204
    assert (await api.call("POST", "/v1/workers", token=api.admin, json=good)).status == 201
    assert len((await api.call("GET", "/v1/workers", token=api.admin)).json["workers"]) == 1


async def test_the_audit_log_is_read_by_pages_and_filters(api: Api) -> None:
    await api.token("alice")
    for number in range(3):
        await api.connection(f"c{number}", "http://h")
    events = await api.events()
    assert [event["seq"] for event in events] == sorted(event["seq"] for event in events)
    page = (await api.call("GET", f"/v1/audit?after={events[1]['seq']}&limit=1", token=api.admin)).json["events"]
    assert page == [events[2]]
    about = (await api.call("GET", "/v1/audit?object=connection:c1", token=api.admin)).json["events"]
    assert [event["action"] for event in about] == ["connection.write"]
    assert (await api.call("GET", "/v1/audit", token=api.tokens["alice"])).slug == "out-of-scope"

"""Limited tokens over HTTP: refused by name, with an audit event and nothing done; and when a token was last used."""

from __future__ import annotations

from typing import Any

import pytest
from api_rig import Api
from sqlalchemy import text

SOURCE = b"from airflow.sdk import DAG\n"


async def limited(api: Api, *scopes: str, principal: str = "alice", admin: bool = False) -> str:
    body: dict[str, Any] = {"principal": principal, "admin": admin, "scopes": list(scopes)}
    made = await api.call("POST", "/v1/tokens", token=api.admin, json=body)
    assert made.status == 201, made.body
    return str(made.json["token"])


async def test_a_push_token_pushes_what_begins_with_its_prefix(api: Api) -> None:
    token = await limited(api, "archive:push:etl")
    assert (await api.push("etl.py", SOURCE, token=token)).status == 201
    before = await api.remains()
    refused = await api.push("other.py", SOURCE, token=token)
    assert (refused.status, refused.slug) == (403, "out-of-scope")
    assert refused.json["detail"] == "other.py is outside this token's scopes, archive:push:etl: use another token"
    assert await api.remains() == before
    last = (await api.events())[-1]
    assert (last["action"], last["principal"], last["object"], last["verdict"]) == (
        "archive.submit", "alice", "archive:other.py", "refused",
    )  # fmt: skip


async def test_a_push_token_sees_its_archives_only(api: Api) -> None:
    whole = await api.token("alice")
    for name in ("etl.py", "other.py"):
        assert (await api.push(name, SOURCE + name.encode(), token=whole)).status == 201
    token = await limited(api, "archive:push:etl")
    listed = (await api.call("GET", "/v1/archives", token=token)).json["archives"]
    assert [archive["name"] for archive in listed] == ["etl.py"]
    assert (await api.call("GET", "/v1/archives/etl.py", token=token)).status == 200
    assert (await api.call("GET", "/v1/archives/other.py", token=token)).slug == "out-of-scope"
    digest = (await api.call("GET", "/v1/archives/other.py", token=whole)).json["releases"][0]["digest"]
    path = f"/v1/blobs/sha512/{digest.removeprefix('sha512:')}"
    assert (await api.call("GET", path, token=whole)).status == 200
    assert (await api.call("GET", path, token=token)).status == 404


async def test_a_launch_token_launches_what_matches(api: Api) -> None:
    whole = await api.token("alice")
    await api.allow("alice")
    assert (await api.push("etl.py", SOURCE, token=whole)).status == 201
    there = await api.launch(token=await limited(api, "launch:et?"))
    assert there.status == 201, there.body
    other = await limited(api, "launch:x*")
    events = len(await api.events())
    refused = await api.launch(token=other, run_id="r2")
    assert (refused.status, refused.slug) == (403, "out-of-scope")
    assert refused.json["detail"] == "etl is outside this token's scopes, launch:x*: use another token"
    new = (await api.events())[events:]
    assert [(event["action"], event["verdict"]) for event in new] == [("launch.create", "refused")]
    assert (await api.call("GET", "/v1/launches", token=other)).json["launches"] == []
    about = f"/v1/launches/{there.json['id']}"
    for method, path in (("GET", about), ("GET", about + "/log"), ("POST", about + "/cancel")):
        assert (await api.call(method, path, token=other)).slug == "out-of-scope"
    assert (await api.call("GET", about, token=whole)).json["state"] == "queued"
    assert (await api.push("etl.py", SOURCE + b"#", token=await limited(api, "launch:*"))).slug == "out-of-scope"


async def test_an_auditors_token_reads_the_audit_log_and_no_more(api: Api) -> None:
    auditor = await limited(api, "audit:read", principal="auditor", admin=True)
    assert (await api.call("GET", "/v1/audit", token=auditor)).status == 200
    refused = await api.call("POST", "/v1/tokens", token=auditor, json={"principal": "mallory", "admin": True})
    assert (refused.status, refused.slug) == (403, "out-of-scope")
    tokens = (await api.call("GET", "/v1/tokens", token=api.admin)).json["tokens"]
    assert "mallory" not in {token["principal"] for token in tokens}
    # It takes away and never gives: who is no administrator does not read it with any scope.
    assert (await api.call("GET", "/v1/audit", token=await limited(api, "audit:read"))).slug == "out-of-scope"


@pytest.mark.parametrize("scope", ["archive:push:", "launch:a b", "everything"])
async def test_what_is_no_scope_is_refused(api: Api, scope: str) -> None:
    refused = await api.call("POST", "/v1/tokens", token=api.admin, json={"principal": "alice", "scopes": [scope]})
    assert refused.status == 422
    assert (
        f"{scope!r} is no scope: write archive:push:PREFIX, launch:GLOB, audit:read or admin" in refused.body.decode()
    )


async def test_when_a_token_was_last_used(api: Api) -> None:
    token = await api.token("alice")

    async def last_used() -> int | None:
        tokens = (await api.call("GET", "/v1/tokens", token=api.admin)).json["tokens"]
        return next(found["last_used_at"] for found in tokens if found["principal"] == "alice")

    assert await last_used() is None
    first = api.clock.at
    await api.call("GET", "/v1/archives", token=token)
    assert await last_used() == first
    api.clock.at += 59_000_000
    await api.call("GET", "/v1/archives", token=token)
    assert await last_used() == first  # not written for every request
    api.clock.at += 1_000_000
    await api.call("GET", "/v1/archives", token=token)
    assert await last_used() == first + 60_000_000


FULL = {
    "sqlite": (
        ["CREATE TRIGGER no_room BEFORE UPDATE ON tokens BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"],
        "DROP TRIGGER no_room",
    ),
    "postgresql": (
        [
            "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION USING ERRCODE = 'disk_full'; END $$",
            "CREATE TRIGGER no_room BEFORE UPDATE ON tokens FOR EACH ROW EXECUTE FUNCTION no_room()",
        ],
        "DROP TRIGGER no_room ON tokens",
    ),
}


async def test_a_use_that_cannot_be_noted_keeps_nobody_from_reading(api: Api) -> None:
    token = await api.token("alice")
    full, room = FULL[api.service.database.kind]
    async with api.service.database.write() as tx:
        for statement in full:
            await tx.session.execute(text(statement))
    assert (await api.call("GET", "/v1/archives", token=token)).status == 200
    revoked = await api.call("DELETE", f"/v1/tokens/{token.split('_')[1]}", token=api.admin)
    assert (revoked.status, revoked.slug) == (507, "no-space")
    async with api.service.database.write() as tx:
        await tx.session.execute(text(room))
    tokens = (await api.call("GET", "/v1/tokens", token=api.admin)).json["tokens"]
    assert next(found["last_used_at"] for found in tokens if found["principal"] == "alice") is None

"""Decisions about releases over HTTP: activate, roll back, revoke; each with its audit event, none unseen by another."""

from __future__ import annotations

from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from api_rig import SOURCE, Answer, Api
from sqlalchemy import text

from submit_api.registry import migrate
from submit_api.registry.tables import Base

AT = "/v1/archives/etl.py"


async def pushed(api: Api, count: int, *, token: str | None = None) -> None:
    for number in range(1, count + 1):
        answer = await api.push("etl.py", SOURCE + b"#" * number + b"\n", token=token)
        assert (answer.status, answer.json["number"]) == (201, number)


async def decide(api: Api, what: str, *, token: str | None = None, **headers: str) -> Answer:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return await api.call("POST", f"{AT}/{what}", token=token or api.admin, headers=sent)


async def active(api: Api) -> int | None:
    found: int | None = (await api.call("GET", AT, token=api.admin)).json["active"]
    return found


async def decisions(api: Api) -> list[tuple[str, str, str]]:
    return [
        (event["action"].removeprefix("release."), event["verdict"], event["detail"])
        for event in await api.events()
        if event["action"].startswith("release.")
    ]


async def test_rollback_goes_back_step_by_step_and_says_so(api: Api) -> None:
    await pushed(api, 3)
    done = await decide(api, "rollback", If_Match='"3"')
    assert (done.status, done.json["number"], done.json["state"]) == (200, 2, "active")
    assert (await decide(api, "rollback")).json["number"] == 1
    stuck = await decide(api, "rollback")
    assert (stuck.status, stuck.slug) == (409, "conflict")
    assert "release 1 is active, and nothing that can be launched was active before" in stuck.json["detail"]
    assert await active(api) == 1
    assert (await decide(api, "releases/3/activate")).json["state"] == "active"
    assert (await decide(api, "rollback?to=1")).json["number"] == 1
    assert await decisions(api) == [
        ("rollback", "accepted", "release 3 -> 2"),
        ("rollback", "accepted", "release 2 -> 1"),
        ("rollback", "refused", f"conflict: {stuck.json['detail']}"),
        ("activate", "accepted", "release 1 -> 3"),
        ("rollback", "accepted", "release 3 -> 1"),
    ]
    digests = {r["number"]: r["digest"] for r in (await api.call("GET", AT, token=api.admin)).json["releases"]}
    events = [e for e in await api.events() if e["action"].startswith("release.") and e["verdict"] == "accepted"]
    assert [event["digest"] for event in events] == [digests[n] for n in (2, 1, 3, 1)]
    assert await api.fsck() == []


async def test_two_people_do_not_undo_each_other_unseen(api: Api) -> None:
    await pushed(api, 3)
    assert (await decide(api, "rollback", If_Match='"3"')).status == 200
    for what in ("rollback", "releases/1/activate", "rollback?to=1"):
        late = await decide(api, what, If_Match='"3"')
        assert (late.status, late.slug) == (412, "precondition")
        assert 'the active release of etl.py is 2, not "3": somebody changed it' in late.json["detail"]
    assert await active(api) == 2
    assert (await decide(api, "releases/1/activate", If_Match='"3", "2"')).status == 200
    assert (await decide(api, "releases/1/revoke")).status == 200
    for tag in ('"1"', "*", "none", ""):
        assert (await decide(api, "rollback", If_Match=tag)).status == 412, tag
    assert (await decide(api, "rollback", If_Match='"none"')).json["number"] == 2
    assert (await decide(api, "releases/3/activate", If_Match="*")).status == 200


async def test_an_activation_again_is_no_step_to_go_back(api: Api) -> None:
    await pushed(api, 2)
    assert (await decide(api, "releases/2/activate")).status == 200
    assert (await decide(api, "rollback")).json["number"] == 1


@pytest.mark.parametrize(
    ("what", "status", "slug"),
    [
        ("rollback?to=0", 422, "invalid-request"),
        ("rollback?to=x", 422, "invalid-request"),
        ("rollback?to=9", 404, "not-found"),
        ("rollback?to=2", 409, "conflict"),
        ("releases/9/activate", 404, "not-found"),
    ],
)
async def test_what_cannot_be_decided_changes_nothing(api: Api, what: str, status: int, slug: str) -> None:
    await pushed(api, 2)
    answer = await decide(api, what)
    assert (answer.status, answer.slug) == (status, slug)
    assert await active(api) == 2


async def test_only_members_decide(api: Api) -> None:
    alice, bob = await api.token("alice"), await api.token("bob")
    await pushed(api, 2, token=alice)
    for what in ("rollback", "releases/1/activate", "releases/2/revoke"):
        answer = await decide(api, what, token=bob)
        assert (answer.status, answer.slug) == (403, "not-owner")
    assert await active(api) == 2
    assert (await decide(api, "rollback", token=alice)).status == 200


async def test_the_record_is_made_for_releases_of_before_and_unmade(api: Api) -> None:
    """A database of the version before, with data, comes up with the record that pushes alone would have made."""
    await pushed(api, 3)
    assert (await decide(api, "releases/1/activate")).status == 200
    database = api.service.database

    async def columns(table: str) -> list[tuple[Any, ...]]:
        async with database.read() as tx:
            return [tuple(row) for row in (await tx.session.execute(text(f"SELECT * FROM {table}"))).all()]

    before = await columns("archives"), await columns("releases")
    record = await columns("activations")
    await migrate.downgrade(database, "0004")
    await migrate.upgrade(database)
    await api.begin_log()
    assert (await columns("archives"), await columns("releases")) == before
    assert [row[:5] for row in await columns("activations")] == [row[:5] for row in record]
    async with database.engine.connect() as connection:
        difference = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), Base.metadata)
        )
    assert difference == []
    assert (await decide(api, "rollback")).json["number"] == 3
    assert await api.fsck() == []


async def test_a_revocation_says_why_once_and_can_kill_later(api: Api) -> None:
    await pushed(api, 2)
    await api.allow("admin")
    worker = await api.worker()
    offers = []
    for number in (1, 2, 3):
        assert (await api.launch(try_number=number, release=1)).status == 201
        offers.append(await worker.take())
    assert offers[0] and offers[1] and offers[2]
    await worker.claimed(offers[0])
    await worker.claimed(offers[1])
    await worker.finish(offers[1])
    done = await decide(api, "releases/1/revoke?reason=leaks+data")
    assert (done.status, done.json["revoke_reason"], done.json["revoked_by"]) == (200, "leaks data", "admin")
    beat = await worker.post(offers[0]["launch_id"], "state", b'{"state": "running"}', kind="application/json")
    assert beat.json == {"state": "running", "cancel": False}
    again = await decide(api, "releases/1/revoke?reason=another&kill=true")
    assert (again.json["revoke_reason"], again.json["revoked_at"]) == ("leaks data", done.json["revoked_at"])
    beat = await worker.post(offers[0]["launch_id"], "state", b'{"state": "running"}', kind="application/json")
    assert beat.json == {"state": "running", "cancel": True}
    assert (await worker.claim(offers[2])).slug == "conflict"
    cancelled = [e["object"] for e in await api.events() if e["action"] == "launch.cancel"]
    assert cancelled == [f"launch:{offers[0]['launch_id']}"]
    assert await decisions(api) == [
        ("revoke", "accepted", "release 1: leaks data"),
        ("revoke", "accepted", "release 1, 1 running killed: another"),
    ]
    assert await active(api) == 2
    assert await api.fsck() == []


@pytest.mark.parametrize("query", ["reason=", "reason=%20", "reason=a%0ab", "kill=yes", "kill=", "reason=" + "x" * 501])
async def test_a_revocation_that_cannot_be_read_revokes_nothing(api: Api, query: str) -> None:
    await pushed(api, 1)
    answer = await decide(api, f"releases/1/revoke?{query}")
    assert (answer.status, answer.slug) == (422, "invalid-request")
    assert await active(api) == 1


async def test_a_diff_is_for_members_and_against_what_is_active(api: Api) -> None:
    alice, bob = await api.token("alice"), await api.token("bob")
    await pushed(api, 3, token=alice)

    async def diff(query: str, token: str = alice) -> Answer:
        return await api.call("GET", f"{AT}/releases/{query}", token=token)

    assert [(await diff("3/diff")).json[side] for side in ("before", "after")] == [
        2,
        3,
    ]  # the active one: what it changed
    assert (await diff("1/diff")).json["before"] == 3
    assert (await diff("1/diff?against=2")).json["before"] == 2
    same = (await diff("2/diff?against=2")).json
    assert (same["same"], same["members"], same["tasks"]) == (True, [], [])
    changed = (await diff("2/diff?against=1")).json
    assert [change["name"] for change in changed["members"]] == [["etl.py"]]
    assert changed["digests"][0] != changed["digests"][1]
    for query, status, slug in (("9/diff", 404, "not-found"), ("1/diff?against=9", 404, "not-found")):
        answer = await diff(query)
        assert (answer.status, answer.slug) == (status, slug)
    assert (await diff("3/diff", bob)).slug == "not-owner"
    assert (await diff("3/diff?against=x")).slug == "invalid-request"
    assert (await api.push("one.py", SOURCE + b"one", token=bob)).status == 201
    lonely = await api.call("GET", "/v1/archives/one.py/releases/1/diff", token=bob)
    assert (lonely.status, lonely.slug) == (409, "conflict")

"""Required approval over HTTP: who may approve what, and that nothing is launched before."""

from __future__ import annotations

from typing import Any

import pytest
from api_rig import SOURCE, Answer, Api, dag_entry, task_entry
from sqlalchemy import text

from submit_api.registry import migrate

AT = "/v1/archives/etl.py"


@pytest.fixture
async def api(api: Api) -> Api:
    """Group team of alice, bob and carol; release 1 of alice is of before it asked for one approval."""
    for name in ("alice", "bob", "carol", "eve"):
        await api.token(name)
    await group(api, members=["alice", "bob", "carol"])
    await api.allow("alice")
    assert (await push(api, 1)).json["state"] == "active"
    await group(api, approvals=1)
    return api


async def group(api: Api, name: str = "team", **body: Any) -> None:
    answer = await api.call("PUT", f"/v1/groups/{name}", token=api.admin, json=body)
    assert answer.status == 200, answer.body


async def push(api: Api, number: int, *, by: str = "alice", query: str = "?group=team") -> Answer:
    answer = await api.push("etl.py", SOURCE + b"#" * number, token=api.tokens[by], query=query)
    assert (answer.status, answer.json["number"]) == (201, number), answer.body
    return answer


async def approve(api: Api, number: int, *, by: str = "bob", token: str | None = None, **changes: Any) -> Answer:
    digest = (await api.call("GET", f"{AT}/releases/{number}", token=api.admin)).json.get(
        "digest", "sha512:" + "0" * 128
    )
    body = {"digest": digest, **changes}
    return await api.call("POST", f"{AT}/releases/{number}/approve", token=token or api.tokens[by], json=body)


async def view(api: Api, number: int) -> dict[str, Any]:
    return dict((await api.call("GET", f"{AT}/releases/{number}", token=api.admin)).json)


async def archive(api: Api) -> dict[str, Any]:
    return dict((await api.call("GET", AT, token=api.admin)).json)


async def decisions(api: Api) -> list[tuple[str, str, str]]:
    found = [e for e in await api.events() if e["action"].startswith("release.") and e["verdict"] == "accepted"]
    return [(e["principal"], e["action"].removeprefix("release."), e["detail"]) for e in found]


async def test_a_release_waits_and_the_one_before_stays_active(api: Api) -> None:
    waiting = (await push(api, 2)).json
    assert (waiting["state"], waiting["approvals"], waiting["approval_groups"]) == ("pending", 1, ["team"])
    assert (await archive(api))["active"] == 1
    assert (await api.launch()).json["release"] == 1
    for answer in (
        await api.launch(release=2, run_id="r2"),
        await api.call("POST", f"{AT}/releases/2/activate", token=api.tokens["alice"]),
        await api.call("POST", f"{AT}/releases/2/activate", token=api.admin),
    ):
        assert (answer.status, answer.slug) == (409, "unapproved")
        assert answer.json["detail"] == (
            "etl.py@2 waits for approval by 1 of group team: a member other than alice can do so with "
            "'dagseal approve etl.py@2'"
        )
    assert (await archive(api))["active"] == 1
    done = await approve(api, 2)
    assert (done.status, done.json["state"], done.json["approved_by"]) == (200, "active", ["bob"])
    assert (await api.launch(run_id="r2")).json["release"] == 2
    assert await decisions(api) == [("bob", "approve", "release 2, 1 of 1"), ("bob", "activate", "release 1 -> 2")]
    assert await api.fsck() == []


async def test_who_may_not_approve(api: Api) -> None:
    await push(api, 2)
    again = await api.token("alice")  # the same principal under another token
    cases = [
        (await approve(api, 2, by="alice"), 403, "second-member", "alice submitted etl.py@2"),
        (await approve(api, 2, token=again), 403, "second-member", "alice submitted etl.py@2"),
        (await approve(api, 2, by="eve"), 403, "not-owner", ""),
        (await approve(api, 2, token=api.admin), 403, "second-member", "admin is not a member of group team"),
        (await approve(api, 2, digest="sha512:" + "0" * 128), 412, "precondition", "not what was looked at"),
        (await approve(api, 2, digest="sha512:0"), 422, "invalid-request", "digest"),
        (await approve(api, 9), 404, "not-found", "no release 9"),
        (await approve(api, 1), 409, "conflict", "does not wait for approval"),
        (await approve(api, 2, unsafe_alone=True, reason="now"), 403, "out-of-scope", "administrator's token"),
        (await approve(api, 2, token=api.admin, unsafe_alone=True), 422, "invalid-request", "needs a reason"),
        (await approve(api, 2, token=api.admin, unsafe_alone=True, reason=" "), 422, "invalid-request", "reason"),
    ]
    for answer, status, slug, says in cases:
        assert (answer.status, answer.slug) == (status, slug), answer.body
        assert says in answer.json["detail"]
    waiting = await view(api, 2)
    assert (waiting["state"], waiting["approved_by"]) == ("pending", [])
    assert await decisions(api) == []
    refusals = [e for e in await api.events() if e["action"] == "release.approve" and e["verdict"] == "refused"]
    assert len(refusals) == len(cases)


async def test_a_push_after_the_approval_needs_its_own(api: Api) -> None:
    await push(api, 2)
    assert (await approve(api, 2)).json["state"] == "active"
    assert (await push(api, 3)).json["state"] == "pending"
    # The approved bytes once more, to be launched otherwise: another release.
    answer = await api.push("etl.py", SOURCE + b"##", token=api.tokens["alice"], query="?task_check=archive")
    assert (answer.json["number"], answer.json["state"]) == (4, "pending")
    assert (await archive(api))["active"] == 2


async def test_two_approvals_of_two_members_who_are_still_there(api: Api) -> None:
    await group(api, approvals=2)
    await push(api, 2)
    assert (await approve(api, 2)).json["state"] == "pending"
    assert "waits for approval by 1 of group team" in (await api.launch(release=2)).json["detail"]
    twice = await approve(api, 2)
    assert (twice.status, twice.slug) == (409, "conflict")
    await group(api, members=["alice", "carol"])  # bob left: he approved, and counts no more
    assert (await approve(api, 2, by="carol")).json["state"] == "pending"
    assert (await archive(api))["active"] == 1
    await group(api, members=["alice", "carol", "eve"])
    assert (await approve(api, 2, by="eve")).json["state"] == "active"
    assert [detail for _, what, detail in await decisions(api) if what == "approve"] == [
        "release 2, 1 of 2", "release 2, 1 of 2", "release 2, 2 of 2",
    ]  # fmt: skip


async def test_turning_it_on_or_off_changes_nothing_that_is_recorded(api: Api) -> None:
    assert (await view(api, 1))["state"] == "active"
    await push(api, 2)
    await group(api, approvals=0)
    assert (await view(api, 2))["state"] == "pending"
    assert (await api.launch(release=2)).slug == "unapproved"
    assert (await push(api, 3)).json["state"] == "active"
    # Approved later it does not take the place of the newer one.
    assert (await approve(api, 2)).json["state"] == "inactive"
    assert (await archive(api))["active"] == 3
    changes = [e["detail"] for e in await api.events() if e["action"] == "group.write"]
    assert changes[1:] == [
        "approvals: 0 -> 1, members: alice, bob, carol",
        "approvals: 1 -> 0, members: alice, bob, carol",
    ]


async def test_moving_the_archive_elsewhere_is_no_way_around(api: Api) -> None:
    moved = await push(api, 2, query="?group=alice")
    assert (moved.json["state"], moved.json["approval_groups"]) == ("pending", ["team"])
    assert (await archive(api))["group"] == "team"
    assert (await push(api, 3, query="")).json["state"] == "pending"  # and the next is of team, as before
    await group(api, "other", members=["alice", "carol"], approvals=2)
    both = await push(api, 4, query="?group=other")
    assert (both.json["approvals"], both.json["approval_groups"]) == (2, ["other", "team"])
    assert (await approve(api, 4)).slug == "second-member"  # bob is of one of the two
    assert (await approve(api, 2)).json["state"] == "active"
    assert (await archive(api))["group"] == "alice"


async def test_an_archive_of_ones_own_is_no_way_around(api: Api) -> None:
    """What was granted to the group that asks is not for other archives of its members."""
    await api.connection("warehouse", "http://h")
    for to_kind, to in (("group", "team"), ("group", "free")):
        grant = {"kind": "connection", "name": "warehouse", "to_kind": to_kind, "to": to}
        assert (await api.call("POST", "/v1/grants", token=api.admin, json=grant)).status == 201
    api.launcher.dags["own.py"] = [dag_entry("own", task_entry(connections=("warehouse",)), member="own.py")]
    assert (await api.push("own.py", SOURCE + b"own", token=api.tokens["alice"])).json["state"] == "active"
    answer = await api.launch(dag_id="own")
    assert (answer.status, answer.slug) == (403, "out-of-scope")
    assert "what group team may is for archives of that group only, as it asks for approvals" in answer.json["detail"]
    # Nor does it arrive by the other way, at the claim of a task that does not name it.
    api.launcher.dags["own.py"] = [dag_entry("own", member="own.py")]
    assert (await api.push("own.py", SOURCE + b"own 2", token=api.tokens["alice"])).status == 201
    worker = await api.worker()
    assert (await api.launch(dag_id="own")).status == 201
    assert (await worker.claimed(await worker.take() or {})).connections == {}
    assert (await api.launch()).json["release"] == 1
    assert (await worker.claimed(await worker.take() or {})).connections == {"warehouse": "http://h"}
    await group(api, "free", members=["alice"])
    assert (await api.launch(dag_id="own", run_id="r2")).status == 201
    assert (await worker.claimed(await worker.take() or {})).connections == {"warehouse": "http://h"}


async def test_the_first_release_of_an_archive_waits_too(api: Api) -> None:
    answer = await api.push("new.py", SOURCE + b"new", token=api.tokens["alice"], query="?group=team")
    assert (answer.status, answer.json["state"]) == (201, "pending")
    launched = await api.launch(dag_id="new")
    assert (launched.status, launched.slug) == (409, "unapproved")
    assert await api.fsck() == []


async def test_an_administrator_alone_says_that_it_is_unsafe(api: Api) -> None:
    answer = await api.push("etl.py", SOURCE + b"##", token=api.admin)
    assert answer.json["state"] == "pending"  # no way around by who pushes
    done = await approve(api, 2, token=api.admin, unsafe_alone=True, reason="bob and carol are on a mountain")
    assert (done.json["state"], done.json["approved_by"], done.json["unsafe_alone"]) == ("active", ["admin"], True)
    assert await decisions(api) == [
        ("admin", "approve-unsafe", "release 2, 0 of 1: bob and carol are on a mountain"),
        ("admin", "activate", "release 1 -> 2"),
    ]


async def test_what_is_revoked_is_not_approved_and_what_waits_is_not_gone_back_to(api: Api) -> None:
    await push(api, 2)
    await push(api, 3)
    assert (await approve(api, 3)).json["state"] == "active"
    back = await api.call("POST", f"{AT}/rollback", token=api.tokens["bob"])
    assert back.json["number"] == 1
    assert (await api.call("POST", f"{AT}/rollback?to=2", token=api.tokens["bob"])).slug == "conflict"
    assert (await api.call("POST", f"{AT}/releases/2/revoke", token=api.tokens["bob"])).json["state"] == "revoked"
    late = await approve(api, 2)
    assert (late.status, late.slug) == (409, "conflict") and "was revoked" in late.json["detail"]


async def test_it_is_asked_again_at_the_offer_and_at_the_claim(api: Api) -> None:
    """As if the row had been changed behind the rules, after the launch was reserved and after its ticket was signed."""
    await push(api, 2)
    await approve(api, 2)
    worker = await api.worker()
    ids = [(await api.launch(try_number=number)).json["id"] for number in (1, 2)]
    offer = await worker.take()
    assert offer is not None
    async with api.service.database.write() as tx:
        await tx.session.execute(text("UPDATE releases SET approved_at = NULL WHERE number = 2"))
    answer = await worker.claim(offer)
    assert (answer.status, answer.slug) == (409, "unapproved")
    assert await worker.take() is None
    for launch_id in ids:
        launch = (await api.call("GET", f"/v1/launches/{launch_id}", token=api.admin)).json
        assert (launch["state"], launch["error"]) == ("refused", "unapproved")
    assert {finding.rule for finding in await api.fsck()} == {"active-release", "log-release-disagrees"}


async def test_the_version_before_launches_nothing_that_waits_or_was_retired(api: Api) -> None:
    """Down and up again, with data: what that version cannot know is revoked in it, and stays so."""
    await push(api, 2)
    async with api.service.database.write() as tx:
        await tx.session.execute(text("UPDATE archives SET active = NULL"))
        await tx.session.execute(text("UPDATE releases SET retired_at = 5 WHERE number = 1"))
    database = api.service.database
    await migrate.downgrade(database, "0008")
    async with database.read() as tx:
        rows = (await tx.session.execute(text("SELECT * FROM releases ORDER BY number"))).mappings().all()
    assert not {"approvals", "approval_groups", "approved_by", "approved_at", "unsafe_alone", "retired_at"} & set(
        rows[0]
    )
    assert [row["revoke_reason"] for row in rows] == [
        "its bytes were retired",
        "it waited for approval when the service was set back to a version without approvals",
    ]
    assert rows[0]["revoked_at"] == 5 and rows[1]["revoked_at"] is not None
    await migrate.upgrade(database)
    assert [(await view(api, number))["state"] for number in (1, 2)] == ["revoked", "revoked"]
    assert (await api.launch(release=2)).slug == "conflict"
    assert (await api.call("GET", "/v1/groups/team", token=api.admin)).json["approvals"] == 0

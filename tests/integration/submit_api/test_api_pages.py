"""Lists by pages, and what is looked up by an index instead of being read whole: the same rows, in order, none twice and none
left out.

Each is held against the rule in its plain form, over all rows. Seen to fail when weakened: `>` for `>=` where a name is a
prefix itself; a source left out of `ownership.readable`; `_FEW` archives taken for all; `limit` before the order.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from api_rig import SOURCE, T0, Api
from sqlalchemy import insert

from submit_api import audit, launches, modes, releasing
from submit_api.identity import USER
from submit_api.issuing import issue
from submit_api.registry import archives, ledger
from submit_api.registry.records import Activation, Archive, Launch, Release, columns
from submit_api.registry.tables import ActivationRow, ArchiveRow, DagRow, LaunchRow, ReleaseRow, TaskRow

PEOPLE, GROUPS = ("ann", "bob", "eve"), ("red", "blue", "none")
MODES = (0o770, 0o740, 0o700, 0o744, 0o704, 0o070, 0o007, 0o000, 0o330)
DIGEST = "sha512:" + "ab" * 64


def archive(name: str, **changes: Any) -> Archive:
    fields = {"owner": "ann", "group": "red", "mode": 0o770, "latest": 1, "active": 1, "created_at": 1, "activation": 0}
    return Archive(**{"name": name, **fields, **changes})


def release(name: str, number: int, **changes: Any) -> Release:
    fields: dict[str, Any] = {
        "archive": name, "number": number, "digest": DIGEST, "size": 1, "owner": "ann", "group": "red",
        "submitted_by": "ann", "created_at": 1, "revoked_at": None, "task_check": "task", "isolation": None,
        "manifest": b"-", "manifest_digest": DIGEST,
    }  # fmt: skip
    return Release(**{**fields, **changes})


def launch(number: int, **changes: Any) -> Launch:
    fields: dict[str, Any] = {
        "id": f"{number:032x}", "state": "success", "dag_id": "d", "task_id": "t", "run_id": f"r{number}", "map_index": -1,
        "try_number": 1, "archive": "a.py", "release": 1, "digest": DIGEST, "unix_user": "u", "queue": "default",
        "owner": "ann", "group": "red", "principal": "ann", "timeout_seconds": 1, "created_at": 1,
    }  # fmt: skip
    return Launch(**{**fields, **changes})


async def store(api: Api, row: type, records: list[Any]) -> None:
    async with api.service.database.write() as tx:
        await tx.session.execute(insert(row), [columns(one) for one in records])


async def paged(api: Api, path: str, rows: str, key: str, token: str, *, begin: str = "") -> list[Any]:
    """All pages. Each is as long as was asked for, but for the last."""
    found: list[Any] = []
    after = begin
    while page := (await api.call("GET", f"{path}limit=3{after}", token=token)).json[rows]:
        assert len(page) <= 3
        found += page
        after = f"&after={page[-1][key]}"
    return found


async def test_archives_are_those_that_the_mode_shows_by_name(api: Api) -> None:
    names = [f"{first}{second}" for first, second in product("aAzZ_.-b", ("a.py", ".py", "-1.zip", "b.py"))]
    rng = random.Random(5)
    rows = [
        archive(name, owner=rng.choice(PEOPLE), group=rng.choice(GROUPS), mode=rng.choice(MODES))
        for name in names
        if not name.startswith((".", "-"))
    ]
    await store(api, ArchiveRow, rows)
    await store(api, ReleaseRow, [release(row.name, 1) for row in rows])
    for group, members in (("red", ["ann", "bob"]), ("blue", ["bob"])):
        body = {"members": members}
        assert (await api.call("PUT", f"/v1/groups/{group}", token=api.admin, json=body)).status == 200
    groups = {"ann": {"red"}, "bob": {"red", "blue"}, "eve": set()}
    for person in PEOPLE:
        token = await api.token(person)
        found = [row["name"] for row in await paged(api, "/v1/archives?", "archives", "name", token)]
        seen = [r.name for r in rows if modes.permits(r, modes.READ, principal=person, groups=groups[person])]
        assert found == sorted(seen) and 0 < len(found) < len(rows)
        whole = (await api.call("GET", "/v1/archives", token=token)).json["archives"]
        assert [row["name"] for row in whole] == found
    assert [r["name"] for r in await paged(api, "/v1/archives?", "archives", "name", api.admin)] == sorted(
        row.name for row in rows
    )


@pytest.mark.parametrize("prefixes", [("a",), ("aa.py",), ("a", "aa"), ("b", "Z", "aa.py"), ("x",), ("z", "_")])
async def test_a_limited_token_sees_names_with_its_prefixes(api: Api, prefixes: tuple[str, ...]) -> None:
    names = ["a.py", "aa.py", "aa.py.zip", "ab.py", "b.py", "Z.py", "Zz.py", "z.py", "_.py", "__.py"]
    await store(api, ArchiveRow, [archive(name) for name in names])
    await store(api, ReleaseRow, [release(name, 1) for name in names])
    scopes = [f"archive:push:{prefix}" for prefix in prefixes]
    for principal, admin in (("ann", False), ("admin", True)):
        async with api.service.database.write() as tx:
            made = await issue(
                tx, api.service, audit.SERVICE, principal=principal, kind=USER, admin=admin, scopes=scopes
            )
        found = [row["name"] for row in await paged(api, "/v1/archives?", "archives", "name", made.text)]
        assert found == sorted(name for name in names if name.startswith(prefixes))


async def test_the_list_has_the_latest_release_of_each(api: Api) -> None:
    rows = [archive(f"{name}.py", latest=2) for name in "abc"]
    await store(api, ArchiveRow, rows)
    digests = {(row.name, number): f"sha512:{row.name[0]}{number}" for row in rows for number in (1, 2)}
    await store(api, ReleaseRow, [release(name, number, digest=said) for (name, number), said in digests.items()])
    dags = [("a.py", 1, "old"), ("a.py", 2, "z"), ("a.py", 2, "k"), ("b.py", 2, "b"), ("c.py", 1, "c")]
    async with api.service.database.write() as tx:
        await tx.session.execute(insert(DagRow), [{"dag_id": dag_id, "archive": name} for name, _, dag_id in dags])
        fields = {"digest": DIGEST, "run_as_user": None, "connections": []}
        tasks = [
            {"archive": name, "number": number, "dag_id": dag_id, "task_id": task, **fields}
            for name, number, dag_id in dags
            for task in ("t", "u")
        ]
        await tx.session.execute(insert(TaskRow), tasks)
    found = (await api.call("GET", "/v1/archives", token=api.admin)).json["archives"]
    assert [(row["name"], row["digest"], row["dags"]) for row in found] == [
        ("a.py", "sha512:a2", ["k", "z"]),
        ("b.py", "sha512:b2", ["b"]),
        ("c.py", "sha512:c2", []),
    ]


async def test_pages_while_others_push(api: Api) -> None:
    """What was there at the beginning is in it, once and in order; what comes meanwhile may be."""
    for number in range(6):
        assert (await api.push(f"m{number}.py", SOURCE + b"#%d" % number)).status == 201

    async def push(names: list[str]) -> None:
        for number, name in enumerate(names):
            assert (await api.push(name, SOURCE + b"#more %d" % number)).status == 201

    pushing = asyncio.create_task(push([f"{c}{n}.py" for n in range(4) for c in "anz"] + ["m0.py"] * 5))
    for _ in range(6):
        names = [row["name"] for row in await paged(api, "/v1/archives?", "archives", "name", api.admin)]
        assert names == sorted(set(names)) and {f"m{number}.py" for number in range(6)} <= set(names)
    await pushing
    more = asyncio.create_task(push_releases(api, 25))
    path, seen = "/v1/archives/etl.py/releases?", 0
    while not more.done():
        if (await api.call("GET", path, token=api.admin)).status == 404:
            continue
        rows = await paged(api, path, "releases", "number", api.admin, begin="&after=0")
        assert [row["number"] for row in rows] == list(range(1, len(rows) + 1)) and len(rows) >= seen
        seen = len(rows)
    await more
    assert len(await paged(api, path, "releases", "number", api.admin, begin="&after=0")) == 25


async def push_releases(api: Api, count: int) -> None:
    for number in range(count):
        assert (await api.push("etl.py", SOURCE + b"#%d" % number)).status == 201


async def test_releases_without_after_are_the_newest_and_the_detail_is_bounded(api: Api) -> None:
    await push_releases(api, 104)
    path = "/v1/archives/etl.py"

    async def numbers(query: str) -> list[int]:
        answer = await api.call("GET", f"{path}{query}", token=api.admin)
        assert answer.status == 200, answer.body
        return [row["number"] for row in answer.json["releases"]]

    assert await numbers("") == await numbers("/releases") == list(range(5, 105))
    assert await numbers("/releases?limit=2") == [103, 104]
    assert await numbers("/releases?limit=2&after=0") == [1, 2]
    assert await numbers("/releases?after=102") == [103, 104] and await numbers("/releases?after=104") == []
    assert await numbers("/releases?limit=0") == []
    (of_three,) = (await api.call("GET", f"{path}/releases?limit=1&after=2", token=api.admin)).json["releases"]
    assert await numbers(f"/releases?digest={of_three['digest']}") == [3]
    assert await numbers(f"/releases?digest={of_three['digest']}&after=3") == []
    for query in ("limit=x", "limit=1001", "after=-1", "digest=sha512:ab", "digest=x"):
        assert (await api.call("GET", f"{path}/releases?{query}", token=api.admin)).status in (400, 422), query
    for query in ("limit=1001", "after=", "after=../x", "after=a%00.py"):
        assert (await api.call("GET", f"/v1/archives?{query}", token=api.admin)).status in (400, 422), query


@pytest.mark.parametrize("readable", [3, ledger._FEW, ledger._FEW + 1, 80])
async def test_launches_are_what_somebody_made_and_may_read_newest_first(api: Api, readable: int) -> None:
    rng = random.Random(readable)
    rows = [archive(f"a{n}.py", owner="bob", group="none", mode=0o744) for n in range(readable)]
    hidden = [archive(f"h{n}.py", owner="bob", mode=0o700) for n in range(5)]
    await store(api, ArchiveRow, [*rows, *hidden])
    made = [
        launch(
            number,
            archive=rng.choice([*rows, *hidden]).name,
            principal=rng.choice(PEOPLE),
            dag_id=rng.choice(("d", "e", "f")),
            state=rng.choice(("success", "failed", "running")),
            created_at=T0 + rng.randrange(100),
        )
        for number in range(400)
    ]
    await store(api, LaunchRow, made)
    may = {row.name for row in rows}
    made.sort(key=lambda one: (one.created_at, one.id), reverse=True)
    for person, dag_id, state, limit in product(("ann", "eve", None), (None, "d", "none"), (None, "failed"), (7, 1000)):
        expected = [
            one
            for one in made
            if (person is None or one.principal == person or one.archive in may)
            and dag_id in (None, one.dag_id)
            and state in (None, one.state)
        ][:limit]
        async with api.service.database.read() as tx:
            found = await ledger.listed(
                tx, dag_id=dag_id, state=state, limit=limit, seen_by=None if person is None else (person, {"red"})
            )
        assert [one.id for one in found] == [one.id for one in expected], (person, dag_id, state, limit)


async def test_the_oldest_queued_of_several_queues(api: Api) -> None:
    rng = random.Random(3)
    queues = ("default", "big", "gpu")
    made = [
        launch(n, state=rng.choice(("queued", "running")), queue=rng.choice(queues), created_at=T0 + rng.randrange(20))
        for n in range(60)
    ]
    await store(api, LaunchRow, made)
    for asked in (("default",), ("big", "gpu"), queues, ("none",), ("none", "gpu")):
        waiting = [one for one in made if one.state == "queued" and one.queue in asked]
        expected = min(waiting, key=lambda one: (one.created_at, one.id), default=None)
        async with api.service.database.read() as tx:
            assert await ledger.oldest_queued(tx, asked) == expected


@pytest.mark.parametrize("seed", range(4))
async def test_the_way_back_is_the_recorded_one(api: Api, seed: int) -> None:
    rng = random.Random(seed)
    made: list[Activation] = []
    for seq in range(1, 121):
        before = rng.choice([seq - 1, seq - 1, made[-1].before if made else 0, rng.randrange(seq)])
        made.append(
            Activation(
                archive="a.py", seq=seq, number=rng.randrange(1, 40), was=None, before=before, at=1, principal="ann"
            )
        )
    await store(api, ArchiveRow, [archive("a.py", activation=120), archive("b.py", activation=120)])
    await store(api, ActivationRow, [*made, *(replace(one, archive="b.py", before=0) for one in made)])
    way, at = [], made[-1].before
    while at:
        way.append(made[at - 1])
        at = made[at - 1].before
    async with api.service.database.read() as tx:
        found = [one async for one in releasing._back(tx, archive("a.py", activation=120), None)]
        assert found == way
        for number in range(1, 41):
            some = [one async for one in releasing._back(tx, archive("a.py", activation=120), number)]
            assert some == [one for one in way if one.number == number]


async def test_rollback_past_many_releases(api: Api) -> None:
    """Pushed 60 times; then 59 to 30 are revoked: it goes to 29, and on from there."""
    await push_releases(api, 60)
    for number in range(30, 60):
        assert (await api.call("POST", f"/v1/archives/etl.py/releases/{number}/revoke", token=api.admin)).status == 200

    async def back(query: str = "") -> int:
        return int((await api.call("POST", f"/v1/archives/etl.py/rollback{query}", token=api.admin)).json["number"])

    assert [await back(), await back(), await back("?to=2"), await back()] == [29, 28, 2, 1]


async def test_what_can_be_launched_is_the_same_to_the_database_as_to_the_rule(api: Api) -> None:
    """Each kind of release alone in an archive, and all of them in one."""
    kinds = [
        {"revoked_at": revoked, "retired_at": retired, "approvals": asked, "approved_at": approved}
        for revoked, retired, asked, approved in product((None, 5), (None, 5), (0, 1), (None, 5))
    ]
    alone = [release(f"a{number}.py", 1, **kind) for number, kind in enumerate(kinds)]
    together = [release("all.py", number, **kind) for number, kind in enumerate(kinds, start=1)]
    await store(api, ArchiveRow, [archive(one.archive) for one in (*alone, together[0])])
    await store(api, ReleaseRow, [*alone, *together])
    async with api.service.database.read() as tx:
        for one in alone:
            fit = 1 if launches.unlaunchable(one) is None else None
            assert await archives.launchable_after(tx, one.archive, 0) == fit, one
        for number in range(17):
            fits = [one.number for one in together if one.number > number and launches.unlaunchable(one) is None]
            assert await archives.launchable_after(tx, "all.py", number) == max(fits, default=None)


async def test_bytes_that_come_again(api: Api) -> None:
    """A revoked release's bytes are refused, however many releases came since; others make a release, or are the newest one."""
    for body in (b"#a", b"#b", b"#a", b"#c", b"#a"):
        assert (await api.push("etl.py", SOURCE + body)).status == 201
    assert (await api.push("etl.py", SOURCE + b"#a")).status == 200
    assert (await api.push("other.py", SOURCE.replace(b"etl", b"other") + b"#b")).status == 201
    assert (await api.call("POST", "/v1/archives/etl.py/releases/2/revoke", token=api.admin)).status == 200
    refused = await api.push("etl.py", SOURCE + b"#b")
    assert refused.status == 409 and "etl.py@2" in refused.json["detail"]
    assert (await api.push("etl.py", SOURCE + b"#d")).json["number"] == 6

"""Sets of releases: what is put is exactly what was recorded, and is there for who may read all of it."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator

import pytest
from api_rig import SOURCE, Api, WorkerPeer
from sqlalchemy import text

from integrity.digests import Digest
from submit_api import retiring
from submit_api.registry import migrate
from vocabulary import sets
from vocabulary.sets import Member

DAY = 86_400
OTHER = SOURCE + b"#"
EMPTY = b'{"releases":[],"v":1}'


def member(name: str = "etl.py", number: int = 1, data: bytes = SOURCE) -> Member:
    return Member(archive=name, number=number, digest=Digest.of(data))


BOTH = sets.to_bytes([member("other.py", data=OTHER), member()])


@pytest.fixture
async def api(folder: str) -> AsyncIterator[Api]:
    async with Api(folder, retention={"keep_releases": 2, "keep_days": 30}) as running:
        yield running


@pytest.fixture
async def worker(api: Api) -> WorkerPeer:
    alice, bob = await api.token("alice"), await api.token("bob")
    assert (await api.push("etl.py", SOURCE, token=alice)).status == 201
    assert (await api.push("other.py", OTHER, token=bob)).status == 201
    await api.allow("alice")
    return await api.worker()


async def put(api: Api, worker: WorkerPeer, body: bytes, name: str = "") -> tuple[int, str]:
    answer = await api.call("PUT", f"/v1/sets/{name or Digest.of(body).hex}", token=worker.token, body=body)
    return answer.status, answer.slug if answer.status >= 400 else ""


async def stored(api: Api) -> list[str]:
    async with api.service.database.read() as tx:
        return list((await tx.session.execute(text("SELECT hex FROM release_sets ORDER BY hex"))).scalars())


async def test_what_is_put_is_there(api: Api, worker: WorkerPeer) -> None:
    assert await put(api, worker, BOTH) == (201, "")
    events = await api.events()
    assert await put(api, worker, BOTH) == (200, "")
    found = await api.call("GET", f"/v1/sets/{Digest.of(BOTH).hex}", token=worker.token)
    assert (found.status, found.body, "immutable" in found.headers["Cache-Control"]) == (200, BOTH, True)
    told = [event for event in await api.events() if event["action"] == "set.put"]
    assert [event["detail"] for event in told] == ["2 releases"] and told[0] in events
    assert await api.fsck() == []


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        (json.dumps({"v": 1, "releases": []}).encode(), 400, "malformed"),
        (EMPTY, 400, "malformed"),
        (b'{"releases":[],"v":2}', 400, "malformed"),
        (b'{"more":1,"releases":[],"v":1}', 400, "malformed"),
        (b"", 400, "malformed"),
        (BOTH.replace(b'"etl.py"', b'"zzz.py"'), 400, "malformed"),  # not in order
        (sets.to_bytes([member(), member()]), 400, "malformed"),  # one archive twice
        (sets.to_bytes([member(number=2)]), 404, "not-found"),
        (sets.to_bytes([member(data=OTHER)]), 404, "not-found"),  # another archive's bytes
        (sets.to_bytes([member("new.py")]), 404, "not-found"),
    ],
)
async def test_what_is_no_set_or_of_no_release(
    api: Api, worker: WorkerPeer, body: bytes, status: int, slug: str
) -> None:
    assert await put(api, worker, body) == (status, slug)
    assert await put(api, worker, BOTH, Digest.of(body).hex) == (422, "digest-mismatch")
    assert await stored(api) == []


async def test_only_who_may_read_all_of_it_finds_it(api: Api, worker: WorkerPeer) -> None:
    await put(api, worker, BOTH)
    path = f"/v1/sets/{Digest.of(BOTH).hex}"
    assert (await api.call("GET", path, token=api.admin)).body == BOTH
    answer = await api.call("GET", path, token=api.tokens["alice"])
    assert (answer.status, answer.slug) == (404, "not-found")
    event = (await api.events())[-1]
    assert (event["action"], event["principal"], event["verdict"]) == ("set.read", "alice", "refused")
    missing = await api.call("GET", f"/v1/sets/{'0' * 128}", token=api.tokens["alice"])
    assert missing.json["detail"].replace("0" * 128, "") == answer.json["detail"].replace(Digest.of(BOTH).hex, "")
    mode = {"mode": "o+r"}
    assert (await api.call("PATCH", "/v1/ownership/archive/other.py", token=api.admin, json=mode)).status == 200
    assert (await api.call("GET", path, token=api.tokens["alice"])).body == BOTH


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ("UPDATE release_sets SET body = :other", "set-damaged"),
        ("UPDATE releases SET number = 7 WHERE archive = 'other.py'", "set-release"),
        ("UPDATE launches SET queueing = NULL", "reservation-row"),
        ("UPDATE launches SET supervised = FALSE", "reservation-row"),
    ],
)
async def test_damage_is_found(api: Api, worker: WorkerPeer, statement: str, rule: str) -> None:
    await put(api, worker, BOTH)
    await reserve(api, BOTH)
    assert await api.fsck() == []
    async with api.service.database.write() as tx:
        await tx.session.execute(text(statement), {"other": EMPTY} if ":other" in statement else {})
    assert rule in {finding.rule for finding in await api.fsck()}


async def reserve(api: Api, body: bytes, valid_seconds: int = 600) -> str:
    wanted = {
        "task_instance": str(uuid.uuid4()), "queueing": "1", "dag_id": "etl", "task_id": "t", "run_id": "r",
        "map_index": -1, "try_number": 1, "queue": "default", "set": Digest.of(body).hex,
        "task_digest": str(Digest.of(b"task t")), "valid_seconds": valid_seconds,
    }  # fmt: skip
    answer = await api.call("POST", "/v1/reservations", token=api.admin, json={"reservations": [wanted]})
    (found,) = answer.json["reservations"]
    assert found["state"] == "queued", found
    return str(found["launch_id"])


async def test_a_set_that_is_not_used_any_more_goes(api: Api, worker: WorkerPeer) -> None:
    alone = sets.to_bytes([member()])
    await put(api, worker, alone)
    await put(api, worker, BOTH)
    launch_id = await reserve(api, BOTH, valid_seconds=DAY)
    api.clock.forward(31 * DAY)
    await retiring.retire(api.service)
    assert await stored(api) == [Digest.of(BOTH).hex]  # its launch is queued
    event = (await api.events())[-1]
    assert (event["action"], event["object"]) == ("set.remove", f"set:{Digest.of(alone).hex}")
    assert (await api.call("POST", f"/v1/launches/{launch_id}/cancel", token=api.admin)).status == 200
    assert await put(api, worker, BOTH) == (200, "")
    await retiring.retire(api.service)
    assert await stored(api) == [Digest.of(BOTH).hex]  # somebody serves it
    api.clock.forward(29 * DAY)
    launch_id = await reserve(api, BOTH)
    assert (await api.call("POST", f"/v1/launches/{launch_id}/cancel", token=api.admin)).status == 200
    api.clock.forward(29 * DAY)
    await retiring.retire(api.service)
    assert await stored(api) == [Digest.of(BOTH).hex]  # somebody reserved by it
    api.clock.forward(31 * DAY)
    await retiring.retire(api.service)
    assert await stored(api) == []


async def test_back_to_the_tables_of_before_and_up_again(api: Api, worker: WorkerPeer) -> None:
    """Reservations go: an older service would offer them to everybody. What else there is stays."""
    plain = (await api.launch(token=api.tokens["alice"])).json["id"]
    offer = await worker.take()
    assert offer is not None
    await worker.claimed(offer)
    await worker.finish(offer)
    await put(api, worker, BOTH)
    await reserve(api, BOTH)
    await migrate.downgrade(api.service.database, "0016")
    async with api.service.database.read() as tx:
        assert list((await tx.session.execute(text("SELECT id FROM launches"))).scalars()) == [plain]
    await migrate.upgrade(api.service.database)
    assert await stored(api) == [] and await api.fsck() == []
    assert (await api.launch(token=api.tokens["alice"])).slug == "conflict"  # the try is still launched once
    await put(api, worker, BOTH)
    await reserve(api, BOTH)

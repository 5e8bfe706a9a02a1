"""The audit log over HTTP: every refusal has its event, with a limit for strangers; pages, filters, times."""

from __future__ import annotations

import asyncio
import json
import resource
from typing import Any

import pytest
from api_rig import SOURCE, T0, Api, WorkerPeer, dag_entry, task_entry
from sqlalchemy import insert

from integrity.digests import Digest
from submit_api.http.routes import Route
from submit_api.http.table import ROUTES
from submit_api.permissions import ACTIONS, FETCHERS, PUBLIC, WORKERS
from submit_api.registry.events import newest
from submit_api.registry.tables import EventRow
from tests.bench.audit_pages import row as bench_row
from tests.routes import path_of

GUARDED = [route for route in ROUTES if ACTIONS[route.action] != PUBLIC]


def ids(route: Route) -> str:
    return f"{route.method} {route.path}"


async def since(api: Api, seq: int) -> list[dict[str, Any]]:
    return list((await api.call("GET", f"/v1/audit?after={seq}&limit=1000", token=api.admin)).json["events"])


async def last(api: Api) -> int:
    async with api.service.database.read() as tx:
        return await newest(tx)


@pytest.fixture
async def launched(api: Api) -> tuple[WorkerPeer, dict[str, Any]]:
    """A worker with the offer of a launch of alice's dag `etl`."""
    alice = await api.token("alice")
    api.launcher.dags["etl.py"] = [dag_entry("etl", task_entry("t"))]
    assert (await api.push("etl.py", SOURCE, token=alice)).status == 201
    await api.allow("alice")
    worker = await api.worker()
    assert (await api.launch()).status == 201
    offer = await worker.take()
    assert offer is not None
    return worker, offer


async def test_each_route_records_who_is_refused_there(api: Api) -> None:
    """Without a token, and with a token of the wrong kind."""
    user, worker = await api.token("mallory"), (await api.worker()).token
    api.service.strangers._most = api.service.strangers._most_of_one = 1000
    for route in GUARDED:
        wrong = user if ACTIONS[route.action] == WORKERS else worker
        expected = [("", 401, "unauthenticated")]
        if ACTIONS[route.action] != FETCHERS:
            expected.append((wrong, 403, "out-of-scope"))
        for token, status, slug in expected:
            before = await last(api)
            sent = {"Authorization": f"Bearer {token}"} if token else {}
            answer = await api.call(route.method, path_of(route), headers=sent)
            assert (answer.status, answer.slug) == (status, slug), ids(route)
            (event,) = await since(api, before)
            assert (event["action"], event["verdict"], event["rule"]) == (route.action, "refused", slug), ids(route)
            who = token.split("_")[1] if token else ""
            assert (event["token_id"], event["address"]) == (who, "127.0.0.1")
            assert event["principal"] == {"": "", user: "mallory", worker: "w1"}[token]
            assert event["detail"].startswith(f"{slug}: ") and event["object"] and event["at"] == T0


async def test_accepted_and_refused_name_their_rule(api: Api, launched: tuple[WorkerPeer, dict[str, Any]]) -> None:
    found = {(event["action"], event["verdict"]): event["rule"] for event in await api.events()}
    assert found["archive.submit", "accepted"] == "archive:w"
    assert found["worker.enroll", "accepted"] == "admin"
    assert len(found["launch.create", "accepted"]) == 32
    refused = await api.push("etl.py", b"x = '\0'\n", token=api.tokens["alice"])
    assert refused.status == 422
    event = (await api.events())[-1]
    assert (event["action"], event["verdict"], event["object"]) == ("archive.submit", "refused", "archive:etl.py")
    assert event["rule"] == refused.json["errors"][0]["rule"] != ""


async def test_a_refused_claim_has_one_event(api: Api, launched: tuple[WorkerPeer, dict[str, Any]]) -> None:
    worker, offer = launched
    assert (await api.call("POST", "/v1/archives/etl.py/releases/1/revoke", token=api.admin)).status == 200
    before = await last(api)
    assert (await worker.claim(offer)).slug == "conflict"
    assert [(event["action"], event["verdict"], event["rule"]) for event in await since(api, before)] == [
        ("launch.claim", "refused", "conflict")
    ]
    before = await last(api)
    assert (await worker.claim(offer)).slug == "conflict"  # it has ended: no transaction of its own
    assert [(event["action"], event["verdict"]) for event in await since(api, before)] == [("launch.claim", "refused")]


async def test_bytes_that_are_hidden_are_a_decision_and_bytes_that_are_not_there_none(api: Api) -> None:
    alice, bob = await api.token("alice"), await api.token("bob")
    digest = (await api.push("etl.py", SOURCE, token=alice)).json["digest"].removeprefix("sha512:")
    before = await last(api)
    assert (await api.call("GET", f"/v1/blobs/sha512/{digest}", token=bob)).slug == "not-found"
    (event,) = await since(api, before)
    assert (event["principal"], event["action"], event["verdict"]) == ("bob", "blob.read", "refused")
    assert event["object"] == f"blob:{digest}"
    assert (await api.call("GET", f"/v1/blobs/sha512/{'0' * 128}", token=bob)).slug == "not-found"
    assert await since(api, event["seq"]) == []


async def test_a_flood_without_tokens_leaves_a_few_events_and_a_count(folder: str) -> None:
    async with Api(folder, audit={"unauthenticated_per_minute": 8}) as api:
        before = await last(api)
        for _ in range(50):
            assert (await api.call("GET", "/v1/archives")).status == 401
        assert [event["action"] for event in await since(api, before)] == ["archive.list"] * 2
        api.clock.forward(60)
        assert (await api.call("GET", "/v1/launches")).status == 401
        *_, counted, fresh = await since(api, before)
        assert (counted["action"], counted["principal"], counted["verdict"]) == ("audit.left-out", "dagseal", "refused")
        assert counted["detail"] == "48 more requests that proved nothing were refused and not written one by one"
        assert (fresh["action"], fresh["principal"]) == ("launch.list", "")
        # Who has a token is not limited, and not kept from it by a flood.
        for _ in range(9):
            assert (
                await api.call("GET", "/v1/archives/none.py", token=(await api.worker(f"w{_}")).token)
            ).status == 403
        refused = [event for event in await since(api, fresh["seq"]) if event["verdict"] == "refused"]
        assert len(refused) == 9
        for _ in range(5):
            assert (await api.call("GET", "/v1/archives")).status == 401
        settings = api.settings
    # What was counted when the service is stopped is written before it ends.
    async with Api(folder, audit=settings.audit.model_dump()) as again:
        found = [event["detail"] for event in await again.events() if event["action"] == "audit.left-out"]
        assert found[-1].startswith("4 more requests")


async def query(api: Api, text: str) -> list[int]:
    answer = await api.call("GET", f"/v1/audit?{text}", token=api.admin)
    assert answer.status == 200, answer.body
    return [event["seq"] for event in answer.json["events"]]


async def test_events_are_found_by_what_they_have(api: Api) -> None:
    for number in range(3):
        api.clock.forward(100)
        await api.connection(f"c{number}", "http://h")
    await api.call("GET", "/v1/archives")
    events = await api.events()
    first = min(event["seq"] for event in events if event["object"] == "connection:c0")
    assert await query(api, "object=connection:c0") == [first]
    assert await query(api, "action=connection.write") == [first, first + 1, first + 2]
    assert await query(api, "action=connection.write&limit=1") == [first]
    assert await query(api, f"action=connection.write&limit=1&after={first}") == [first + 1]
    assert await query(api, "verdict=refused") == [first + 3]
    assert await query(api, "verdict=accepted&principal=admin") == [first, first + 1, first + 2]
    assert await query(api, "action=connection.write&verdict=refused") == []
    # Times: `since` is included, `until` is not; in microseconds, or as RFC 3339 writes them in any zone.
    at = T0 + 200_000_000
    assert await query(api, f"since={at}&verdict=accepted") == [first + 1, first + 2]
    assert await query(api, f"since={at}&until={at + 1}") == [first + 1]
    assert first + 1 not in await query(api, f"until={at}")
    assert await query(api, "since=2027-01-15T08:03:20Z&until=2027-01-15T08:03:20.000001Z") == [first + 1]
    assert await query(api, "since=2027-01-15t09:03:20%2B01:00&until=2027-01-15T08:03:21z") == [first + 1]
    assert await query(api, "since=2030-01-01T00:00:00Z") == []
    assert await query(api, "until=1970-01-01T00:00:00Z") == []


@pytest.mark.parametrize("hours", [0, 0.9, -0.9])
async def test_times_are_right_also_when_the_clock_is_set_back(api: Api, hours: float) -> None:
    """Each event whose time is in the range is there, wherever it stands."""
    for step in (100, -hours * 3600, 4000, 30, hours * 3600, 4000, 1):
        api.clock.forward(step)
        await api.connection("c", "http://h")
    events = await api.events()
    times = sorted({event["at"] for event in events})
    for start in times:
        for end in times:
            expected = [event["seq"] for event in events if start <= event["at"] < end]
            assert await query(api, f"since={start}&until={end}") == expected


@pytest.mark.parametrize(
    "text",
    [
        "since=yesterday", "since=2027-01-15", "since=2027-01-15T08:00:00", "until=2027-13-15T08:00:00Z", "since=-1",
        "since=", "until=2027-01-15T08:00:00+01:00", "verdict=maybe", "limit=1001", "after=-1", "since=1.5",
    ],
)  # fmt: skip
async def test_what_is_no_query_is_refused_with_its_name(api: Api, text: str) -> None:
    answer = await api.call("GET", f"/v1/audit?{text}", token=api.admin)
    assert (answer.status, answer.slug) == (422, "invalid-request")
    assert answer.json["detail"].startswith(text.partition("=")[0])


async def test_numbers_have_no_gap_whatever_fails(api: Api) -> None:
    with pytest.raises(RuntimeError):
        async with api.service.database.write() as tx:
            from submit_api import audit

            await audit.accepted(tx, at=1, caller=audit.SERVICE, action="x", about="x")
            raise RuntimeError
    await api.connection("c", "http://h")
    numbers = [event["seq"] for event in await api.events()]
    assert numbers == list(range(1, len(numbers) + 1))


async def exported(api: Api, text: str = "", accept: str = "application/jsonl") -> bytes:
    answer = await api.call("GET", f"/v1/audit?{text}", token=api.admin, headers={"Accept": accept})
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"] == f"{accept}; charset=utf-8"
    return answer.body


async def add_many(api: Api, count: int) -> None:
    """Events of a service that has run for long."""
    async with api.service.database.write() as tx:
        first = await newest(tx) + 1
        for start in range(first, first + count, 5000):
            rows = [bench_row(seq) for seq in range(start, min(start + 5000, first + count))]
            await tx.session.execute(insert(EventRow), rows)


async def test_an_export_is_all_lines_and_says_so_with_its_digest(api: Api) -> None:
    await add_many(api, 2500)
    events: list[int] = []
    while page := await query(api, f"limit=1000&after={events[-1] if events else 0}"):
        events += page
    lines = (await exported(api)).splitlines()
    assert [json.loads(line)["seq"] for line in lines] == events
    (first,) = (await api.call("GET", "/v1/audit?limit=1", token=api.admin)).json["events"]
    assert json.loads(lines[0]) == first
    (event,) = await since(api, events[-1])
    assert (event["action"], event["verdict"], event["principal"]) == ("audit.export", "accepted", "admin")
    assert event["object"] == f"audit:1-{events[-1]}"
    assert event["digest"] == str(Digest.of(b"".join(line + b"\n" for line in lines)))
    assert event["detail"] == f"{len(events)} events as application/jsonl"
    # Gone on with, by number; the export is in the next one.
    more = (await exported(api, f"after={events[-1]}")).splitlines()
    assert [json.loads(line)["action"] for line in more] == ["audit.export"]


async def test_an_export_as_cef_has_the_same_events(api: Api) -> None:
    await api.connection("c", "http://h")
    await api.call("GET", "/v1/archives")
    events = await api.events()
    lines = (await exported(api, accept="text/x-cef")).decode().splitlines()
    assert len(lines) == len(events)
    for line, event in zip(lines, events, strict=True):
        assert (
            line.startswith("CEF:0|dagseal|dagseal|") and f" externalId={event['seq']} act={event['action']} " in line
        )
    assert lines[-1].split("|")[5:7] == ["archive.list refused", "7"]


async def test_an_export_of_some_does_not_pass_for_one_of_all(api: Api) -> None:
    await api.connection("c", "http://h")
    for text, count in (
        ("action=connection.write", 1),
        ("verdict=accepted&limit=1", 1),
        ("limit=1", 1),
        ("since=1", 3),
    ):
        before = await last(api)
        assert len((await exported(api, text)).splitlines()) >= count
        (event,) = await since(api, before)
        assert (event["action"], event["object"]) == ("audit.export", "audit")
        assert event["detail"].startswith(f"{count} events as application/jsonl, chosen" if count == 1 else "")
    before = await last(api)
    assert await exported(api, "principal=nobody") == b""
    head = await api.call("HEAD", "/v1/audit", token=api.admin, headers={"Accept": "application/jsonl"})
    assert (head.status, head.headers["Content-Type"]) == (200, "application/json")
    bad = await api.call("GET", "/v1/audit?since=x", token=api.admin, headers={"Accept": "application/jsonl"})
    assert (bad.status, bad.slug) == (422, "invalid-request")
    assert await since(api, before) == [], "nothing, its head alone and a refusal of its words are no export"


async def test_an_export_that_breaks_off_is_not_recorded_as_one(api: Api) -> None:
    await add_many(api, 30_000)
    before = await last(api)
    headers = {"Accept": "application/jsonl", "Authorization": f"Bearer {api.admin}"}
    async with api.session.get(api.url + "/v1/audit", headers=headers) as response:
        await response.content.readany()
        response.close()
    async with asyncio.timeout(10):
        while api.listener._runner.server and len(api.listener._runner.server.connections) > 1:
            await asyncio.sleep(0)
    assert await last(api) == before


@pytest.mark.soak
async def test_a_million_events_are_exported_in_the_memory_of_a_page(api: Api) -> None:
    await add_many(api, 1_000_000)
    headers = {"Accept": "application/jsonl", "Authorization": f"Bearer {api.admin}"}
    async with api.session.get(api.url + "/v1/audit?limit=50000", headers=headers) as response:
        async for _ in response.content.iter_chunked(65536):
            pass
    before, total = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    async with api.session.get(api.url + "/v1/audit", headers=headers) as response:
        async for chunk in response.content.iter_chunked(65536):
            total += chunk.count(b"\n")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert total > 1_000_000
    assert grown < 32 * 1024, f"{grown} KiB more than for 50,000"

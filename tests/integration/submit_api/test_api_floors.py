"""Isolation floors over HTTP: stated by a release or set for a queue, and decided at the claim, before anything is sealed."""

from __future__ import annotations

from typing import Any

import pytest
from api_rig import SOURCE, Answer, Api, WorkerPeer
from sqlalchemy import text

from submit_api.registry import migrate, rows
from vocabulary import manifest
from vocabulary.claims import PROFILES

PATH = "/v1/archives/etl.py/releases"
UNKNOWN = [
    {},
    {"profile": None},
    {"profile": ""},
    {"profile": "Strict"},
    {"profile": "paranoid"},
    {"profile": ["strict"]},
]


async def ready(api: Api, query: str = "", *, queues: list[str] | None = None) -> WorkerPeer:
    """Dag `etl` is released with this query; there is a connection to deliver, a rule, and a worker."""
    assert (await api.push("etl.py", SOURCE, query=query)).status == 201
    await api.connection("db", "http://s3cret@h", to="admin")
    await api.allow("admin")
    return await api.worker(queues=queues)


async def offered(api: Api, worker: WorkerPeer, **changes: Any) -> dict[str, Any]:
    assert (await api.launch(**changes)).status == 201
    offer = await worker.take()
    assert offer is not None
    return offer


async def refused(api: Api, launch_id: str, answer: Answer, *, who: str, floor: str, profile: str) -> None:
    """So says the answer, so ended the launch, so says the audit; and nothing was delivered."""
    assert (answer.status, answer.slug) == (403, "below-isolation-floor")
    detail = answer.json["detail"]
    assert detail.startswith(f"{who} asks for isolation profile {floor} or more, the launcher attests to {profile}: ")
    launch = (await api.call("GET", f"/v1/launches/{launch_id}", token=api.admin)).json
    assert (launch["state"], launch["error"], launch["detail"]) == ("refused", "below-isolation-floor", detail)
    assert (launch["started_at"], launch["attestation"]) == (None, None)
    events = await api.events()
    assert "secret.deliver" not in [event["action"] for event in events]
    event = next(e for e in events if (e["action"], e["object"]) == ("launch.claim", f"launch:{launch_id}"))
    assert (event["principal"], event["verdict"]) == ("w1", "refused")
    assert event["detail"] == f"below-isolation-floor: {detail}"


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("floor", PROFILES)
async def test_a_releases_floor(api: Api, floor: str, profile: str) -> None:
    worker = await ready(api, f"?isolation={floor}")
    offer = await offered(api, worker)
    answer = await worker.claim(offer, attestation={"profile": profile})
    if PROFILES.index(profile) >= PROFILES.index(floor):
        assert answer.status == 200, answer.body
        return
    await refused(api, offer["launch_id"], answer, who="release etl.py@1", floor=floor, profile=profile)


@pytest.mark.parametrize("attestation", UNKNOWN)
async def test_no_profile_is_below_every_floor_and_above_none(api: Api, attestation: dict[str, Any]) -> None:
    worker = await ready(api)
    assert (await worker.claim(await offered(api, worker), attestation=attestation)).status == 200
    events = len(await api.events())
    assert (await api.push("etl.py", SOURCE, query="?isolation=minimal")).json["number"] == 2
    offer = await offered(api, worker, run_id="r2")
    answer = await worker.claim(offer, attestation=attestation)
    assert (answer.status, answer.slug) == (403, "below-isolation-floor")
    assert "etl.py@2 asks for isolation profile minimal or more, the launcher attests to none" in answer.json["detail"]
    assert "secret.deliver" not in [event["action"] for event in (await api.events())[events:]]


@pytest.mark.parametrize(
    ("query", "queue", "profile", "who", "floor"),
    [
        ("", "default", "minimal", "", ""),
        ("", "payments", "standard", "", ""),
        ("", "payments", "minimal", "queue payments", "standard"),
        ("?isolation=minimal", "payments", "minimal", "queue payments", "standard"),
        ("?isolation=standard", "vault", "standard", "queue vault", "strict"),
        ("?isolation=strict", "payments", "standard", "release etl.py@1", "strict"),
        ("?isolation=strict", "vault", "strict", "", ""),
    ],
)
async def test_a_queues_floor_holds_in_it_alone_and_the_higher_of_two_decides(
    folder: str, query: str, queue: str, profile: str, who: str, floor: str
) -> None:
    floors = {"payments": "standard", "vault": "strict"}
    async with Api(folder, launches={"watch_interval_seconds": 3600, "isolation_floors": floors}) as api:
        worker = await ready(api, query, queues=["default", "payments", "vault"])
        offer = await offered(api, worker, queue=queue)
        answer = await worker.claim(offer, attestation={"profile": profile})
        if who:
            await refused(api, offer["launch_id"], answer, who=who, floor=floor, profile=profile)
        else:
            assert answer.status == 200, answer.body


async def test_a_refused_claim_is_final_and_the_launchers_word_of_it_is_kept(api: Api) -> None:
    worker = await ready(api, "?isolation=strict")
    offer = await offered(api, worker)
    answer = await worker.claim(offer, attestation={"profile": "standard"})
    await refused(api, offer["launch_id"], answer, who="release etl.py@1", floor="strict", profile="standard")
    again = await worker.claim(offer, attestation={"profile": "strict"})
    assert (again.status, again.slug) == (409, "conflict")
    assert (await worker.finish(offer, "refused", error="unauthorized", exit_code=77)).json["state"] == "refused"
    ended = (await api.call("GET", f"/v1/launches/{offer['launch_id']}", token=api.admin)).json
    assert (ended["error"], ended["exit_code"]) == ("below-isolation-floor", 77)
    assert await worker.take() is None
    assert await api.fsck() == []


async def test_a_floor_is_shown_signed_and_part_of_what_makes_a_release(api: Api) -> None:
    stated = []
    for query, status in (
        ("", 201),
        ("?isolation=strict", 201),
        ("?isolation=strict", 200),
        ("?isolation=minimal", 201),
    ):
        answer = await api.push("etl.py", SOURCE, query=query)
        assert answer.status == status, answer.body
        stated.append((answer.json["number"], answer.json["isolation"]))
    assert stated == [(1, None), (2, "strict"), (2, "strict"), (3, "minimal")]
    listed = (await api.call("GET", PATH, token=api.admin)).json["releases"]
    assert [release["isolation"] for release in listed] == [None, "strict", "minimal"]
    for number, floor in ((1, None), (2, "strict")):
        envelope = (await api.call("GET", f"{PATH}/{number}/manifest", token=api.admin)).body
        payload = manifest.verify(envelope, api.ring).manifest
        assert payload.isolation == floor
        assert (b'"isolation"' in payload.to_bytes()) == (floor is not None)
    details = [event["detail"] for event in await api.events() if event["action"] == "archive.submit"]
    assert [detail.rpartition("isolation ")[2] for detail in details] == ["any", "strict", "minimal"]
    assert await api.fsck() == []


@pytest.mark.parametrize("value", ["", "STRICT", "none", "strict%20", "2"])
async def test_a_floor_that_is_no_profile_is_refused_and_leaves_nothing(api: Api, value: str) -> None:
    answer = await api.push("etl.py", SOURCE, query=f"?isolation={value}")
    assert (answer.status, answer.slug) == (422, "invalid-request")
    assert answer.json["detail"] == "isolation is to be one of minimal, standard, strict"
    assert await api.remains() == ([], [])


async def test_a_floor_that_is_changed_in_the_database_still_holds_and_is_found(api: Api) -> None:
    worker = await ready(api, "?isolation=strict")
    async with api.service.database.write() as tx:
        await tx.session.execute(text("UPDATE releases SET isolation = NULL"))
    assert [(found.rule, "isolation" in found.detail) for found in await api.fsck()] == [("manifest-disagrees", True)]
    offer = await offered(api, worker)
    answer = await worker.claim(offer, attestation={"profile": "standard"})
    await refused(api, offer["launch_id"], answer, who="release etl.py@1", floor="strict", profile="standard")


async def test_releases_from_before_there_were_floors_state_none(api: Api) -> None:
    worker = await ready(api)
    await migrate.downgrade(api.service.database, "0001")
    async with api.service.database.read() as tx:
        columns = next(table.columns.keys() for table in await rows.tables(tx) if table.name == "releases")
    assert "isolation" not in columns and "task_check" in columns
    await migrate.upgrade(api.service.database)
    await api.begin_log()
    assert (await api.call("GET", f"{PATH}/1", token=api.admin)).json["isolation"] is None
    assert await api.fsck() == []
    assert (await api.push("etl.py", SOURCE)).status == 200
    assert (await worker.claim(await offered(api, worker), attestation={"profile": "minimal"})).status == 200

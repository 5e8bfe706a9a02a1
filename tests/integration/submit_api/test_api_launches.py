"""Launches over HTTP: reserve, take, claim, log, result; and each thing that is refused on that way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from api_rig import SOURCE, Api, WorkerPeer, dag_entry, task_entry

from integrity.digests import Digest
from submit_api.dispatching import expire
from vocabulary.claims import Xcom
from vocabulary.logrecords import encode


@pytest.fixture
async def worker(api: Api) -> WorkerPeer:
    """An enrolled worker, a released dag `etl` of alice with tasks t and u, and a rule for nobody."""
    alice = await api.token("alice")
    api.launcher.dags["etl.py"] = [dag_entry("etl", task_entry("t"), task_entry("u"))]
    assert (await api.push("etl.py", SOURCE, token=alice)).status == 201
    await api.allow("alice")
    return await api.worker()


async def state(api: Api, launch_id: str) -> dict[str, Any]:
    return dict((await api.call("GET", f"/v1/launches/{launch_id}", token=api.admin)).json)


async def taken(api: Api, worker: WorkerPeer, **changes: Any) -> dict[str, Any]:
    answer = await api.launch(**changes)
    assert answer.status == 201, answer.body
    offer = await worker.take()
    assert offer is not None and offer["launch_id"] == answer.json["id"]
    return offer


async def test_a_launch_from_reservation_to_result(api: Api, worker: WorkerPeer) -> None:
    await api.connection("db", "postgres://u:s3cret@h/d", to="alice")
    await api.connection("other", "http://h", to="mallory")
    await api.call("PUT", "/v1/variables/limit", token=api.admin, json={"value": "10"})
    await api.call("PUT", "/v1/groups/team", token=api.admin, json={"members": ["alice"]})
    grant = {"kind": "variable", "name": "limit", "to_kind": "group", "to": "team"}
    assert (await api.call("POST", "/v1/grants", token=api.admin, json=grant)).status == 201
    reserved = (await api.launch(token=api.tokens["alice"], run_id="manual__2027-01-02T03:04:05+00:00")).json
    assert (reserved["state"], reserved["unix_user"], reserved["queue"]) == ("queued", "nobody", "default")
    offer = await worker.take()
    assert offer is not None
    ticket = worker.ticket(offer).ticket
    assert (ticket.unix_user, ticket.owner, ticket.principal) == ("nobody", "alice", "alice")
    assert ticket.expires_at - ticket.issued_at == 60
    assert (await state(api, reserved["id"]))["state"] == "offered"
    secrets = await worker.claimed(offer)
    assert secrets.connections == {"db": "postgres://u:s3cret@h/d"} and secrets.variables == {"limit": "10"}
    assert secrets.run["logical_date"] == "2027-01-02T03:04:05+00:00"
    assert secrets.run["start_date"] == "2027-01-15T08:00:00+00:00"
    assert (await state(api, reserved["id"]))["state"] == "running"
    beat = await worker.post(offer["launch_id"], "state", b'{"state": "running"}', kind="application/json")
    assert beat.json == {"state": "running", "cancel": False}
    log = await worker.post(offer["launch_id"], "log?offset=0", b"hello\n", kind="application/octet-stream")
    assert log.json == {"next_offset": 6}
    done = await worker.finish(
        offer, xcoms=(Xcom(key="return_value", value="[1.5]"),), log_bytes=6, log_digest=Digest.of(b"hello\n")
    )
    assert done.json == {"state": "success", "cancel": False}
    ended = await state(api, reserved["id"])
    assert (ended["state"], ended["exit_code"], ended["worker"], ended["log_bytes"]) == ("success", 0, "w1", 6)
    assert ended["attestation"] == {"no_new_privs": True} and ended["timings_us"]["run"] == 1000
    read = await api.call("GET", f"/v1/launches/{reserved['id']}/log?offset=2", token=api.tokens["alice"])
    assert (read.body, read.headers["Dagseal-Next-Offset"], read.headers["Dagseal-Launch-State"]) == (
        b"llo\n", "6", "success",
    )  # fmt: skip
    delivered = [event["object"] for event in await api.events() if event["action"] == "secret.deliver"]
    assert delivered == ["connection:db", "variable:limit"]
    grants = {grant["id"] for grant in (await api.call("GET", "/v1/grants", token=api.admin)).json["grants"]}
    rules = [event["rule"] for event in await api.events() if event["action"] == "secret.deliver"]
    assert len(set(rules)) == 2 and set(rules) < grants
    assert "launch.log.check" not in [event["action"] for event in await api.events()]
    assert await api.fsck() == []


async def test_a_later_launch_finds_the_xcoms_of_earlier_tasks(api: Api, worker: WorkerPeer) -> None:
    offer = await taken(api, worker)
    await worker.claimed(offer)
    await worker.finish(offer, xcoms=(Xcom(key="return_value", value="1.5"),))
    other_run = await taken(api, worker, task_id="u", run_id="r2")
    assert (await worker.claimed(other_run)).xcoms == ()
    later = await taken(api, worker, task_id="u")
    expected = {"task_id": "t", "map_index": -1, "key": "return_value", "value": "1.5"}
    assert (await worker.claimed(later)).xcoms == (expected,)
    again = await taken(api, worker, try_number=2)
    assert (await worker.claimed(again)).xcoms == ()  # its own are not upstream, and are gone now
    third = await taken(api, worker, task_id="u", try_number=2)
    assert (await worker.claimed(third)).xcoms == ()


@pytest.mark.parametrize(
    ("changes", "status", "slug", "says"),
    [
        ({"dag_id": "nothing"}, 404, "not-found", "push its file"),
        ({"task_id": "nothing"}, 404, "not-found", "no task"),
        ({"release": 7}, 404, "not-found", "no release 7"),
        ({"run_as_user": "root"}, 403, "out-of-scope", "dagseal impersonation allow alice --as-user root"),
        ({"run_as_user": "0"}, 422, "invalid-request", "run_as_user"),
        ({"map_index": -2}, 422, "invalid-request", "map_index"),
        ({"surprise": 1}, 422, "invalid-request", "surprise"),
        ({"run_id": "a b"}, 422, "invalid-request", "run_id"),
    ],
)
async def test_a_launch_that_is_refused(
    api: Api, worker: WorkerPeer, changes: dict[str, Any], status: int, slug: str, says: str
) -> None:
    answer = await api.launch(**changes)
    assert (answer.status, answer.slug) == (status, slug)
    assert says in answer.json["detail"]
    assert (await api.call("GET", "/v1/launches", token=api.admin)).json == {"launches": []}
    assert (await api.events())[-1]["verdict"] == "refused"


async def test_only_members_launch_see_and_cancel(api: Api, worker: WorkerPeer) -> None:
    bob = await api.token("bob")
    assert (await api.launch(token=bob)).slug == "not-owner"
    launch_id = (await api.launch()).json["id"]
    for method, path in (("GET", ""), ("GET", "/log"), ("POST", "/cancel")):
        answer = await api.call(method, f"/v1/launches/{launch_id}{path}", token=bob)
        assert (answer.status, answer.slug) == (403, "not-owner")
    assert (await api.call("GET", "/v1/launches", token=bob)).json == {"launches": []}
    seen = (await api.call("GET", "/v1/launches?dag_id=etl&state=queued", token=api.tokens["alice"])).json
    assert [launch["id"] for launch in seen["launches"]] == [launch_id]


async def test_a_connection_that_is_missing_or_not_granted(api: Api, worker: WorkerPeer) -> None:
    api.launcher.dags["db.py"] = [dag_entry("usesdb", task_entry(connections=("warehouse",)))]
    await api.push("db.py", SOURCE + b"#\n", token=api.tokens["alice"])
    missing = await api.launch(dag_id="usesdb")
    assert (missing.status, missing.slug) == (403, "out-of-scope") and "does not exist" in missing.json["detail"]
    await api.connection("warehouse", "http://h")
    ungranted = await api.launch(dag_id="usesdb")
    assert (ungranted.status, ungranted.slug) == (403, "out-of-scope")
    assert "dagseal connection grant warehouse --to alice" in ungranted.json["detail"]
    await api.connection("warehouse", "http://h", to="alice")
    launched = await api.launch(dag_id="usesdb")
    assert launched.status == 201
    # Taken back between reservation and ticket: refused then.
    (grant,) = (await api.call("GET", "/v1/grants", token=api.admin)).json["grants"]
    assert (await api.call("DELETE", f"/v1/grants/{grant['id']}", token=api.admin)).status == 204
    assert await worker.take() is None
    assert (await state(api, launched.json["id"]))["state"] == "refused"


async def test_the_unix_user_is_the_requests_the_manifests_or_the_default(folder: str) -> None:
    async with Api(folder, launches={"watch_interval_seconds": 3600, "default_impersonation": "daemon"}) as api:
        api.launcher.dags["etl.py"] = [dag_entry("etl", task_entry("t", run_as_user=None), task_entry("u"))]
        await api.push("etl.py", SOURCE)
        for user in ("daemon", "nobody", "games"):
            await api.allow("admin", user)
        assert (await api.launch()).json["unix_user"] == "daemon"
        assert (await api.launch(task_id="u")).json["unix_user"] == "nobody"
        assert (await api.launch(task_id="u", run_id="r2", run_as_user="games")).json["unix_user"] == "games"


async def test_without_any_unix_user_it_is_refused(api: Api) -> None:
    api.launcher.dags["etl.py"] = [dag_entry("etl", task_entry(run_as_user=None))]
    await api.push("etl.py", SOURCE)
    answer = await api.launch()
    assert (answer.status, answer.slug) == (422, "invalid-request")
    assert "default_impersonation" in answer.json["detail"]


async def test_one_try_is_launched_once(api: Api, worker: WorkerPeer) -> None:
    assert (await api.launch()).status == 201
    again = await api.launch()
    assert (again.status, again.slug) == (409, "conflict") and "try_number 2" in again.json["detail"]
    assert (await api.launch(try_number=2)).status == 201


async def test_a_revoked_release_is_neither_launched_nor_claimed(api: Api, worker: WorkerPeer) -> None:
    offer = await taken(api, worker)
    queued = (await api.launch(try_number=2)).json["id"]
    await api.call("POST", "/v1/archives/etl.py/releases/1/revoke", token=api.admin)
    assert (await api.launch(try_number=3)).slug == "conflict"
    assert (await api.launch(try_number=3, release=1)).slug == "conflict"
    answer = await worker.claim(offer)
    assert (answer.status, answer.slug) == (409, "conflict")
    assert await worker.take() is None
    for launch_id in (offer["launch_id"], queued):
        assert (await state(api, launch_id))["state"] == "refused"


async def test_a_damaged_blob_gets_no_ticket(api: Api, worker: WorkerPeer) -> None:
    launch_id = (await api.launch()).json["id"]
    with open(f"{api.settings.blobs_folder}/{api.files()[0]}", "r+b") as file:
        file.write(b"X")
    assert await worker.take() is None
    ended = await state(api, launch_id)
    assert (ended["state"], ended["error"]) == ("refused", "digest-mismatch")
    event = (await api.events())[-1]
    assert (event["action"], event["verdict"]) == ("launch.offer", "refused")


async def test_a_claim_is_good_once(api: Api, worker: WorkerPeer) -> None:
    offer = await taken(api, worker)
    assert (await worker.claim(offer)).status == 200
    again = await worker.claim(offer)
    assert (again.status, again.slug) == (409, "replay")
    assert (await state(api, offer["launch_id"]))["state"] == "running"


async def test_an_expired_ticket_is_refused_and_the_launch_offered_anew(api: Api, worker: WorkerPeer) -> None:
    offer = await taken(api, worker)
    envelope, _ = worker.claim_envelope(offer)
    api.clock.forward(60)
    late = await worker.post(offer["launch_id"], "claim", envelope)
    assert (late.status, late.slug) == (409, "expired")
    await expire(api.service)
    assert (await state(api, offer["launch_id"]))["state"] == "queued"
    newer = await worker.take()
    assert newer is not None and newer["launch_id"] == offer["launch_id"] and newer["ticket"] != offer["ticket"]
    old = await worker.post(offer["launch_id"], "claim", envelope)
    assert (old.status, old.slug) == (409, "expired")
    assert (await worker.claim(newer)).status == 200


async def test_claims_that_are_forged_or_of_others(api: Api, worker: WorkerPeer) -> None:
    offer = await taken(api, worker)
    envelope, _ = worker.claim_envelope(offer)
    stranger = await api.worker("w2")
    foreign = await stranger.post(offer["launch_id"], "claim", envelope)
    assert (foreign.status, foreign.slug) == (403, "signature")
    stranger.signing = worker.signing
    assert (await stranger.post(offer["launch_id"], "claim", envelope)).slug == "signature"
    assert (
        await api.call("POST", f"/v1/launches/{offer['launch_id']}/claim", token=api.admin, body=envelope)
    ).slug == ("out-of-scope")
    flipped = bytes([envelope[0] ^ 1]) + envelope[1:]
    assert (await worker.post(offer["launch_id"], "claim", flipped)).slug == "malformed"
    assert (await worker.claim(offer, launch_id="0" * 32)).slug == "out-of-scope"
    assert (await worker.claim(offer, ticket_digest=Digest.of(b"other"))).slug == "expired"
    assert (await state(api, offer["launch_id"]))["state"] == "offered"
    assert (await worker.claim(offer)).status == 200


async def test_another_task_digest_gets_no_secret(api: Api, worker: WorkerPeer) -> None:
    await api.connection("db", "http://h", to="alice")
    offer = await taken(api, worker)
    answer = await worker.claim(offer, task_digest=Digest.of(b"drifted"))
    assert (answer.status, answer.slug) == (422, "digest-mismatch")
    ended = await state(api, offer["launch_id"])
    assert (ended["state"], ended["error"]) == ("refused", "digest-mismatch")
    assert "secret.deliver" not in [event["action"] for event in await api.events()]
    confirmed = await worker.finish(offer, "refused", error="digest-mismatch")
    assert confirmed.json["state"] == "refused"


async def test_task_check_archive_takes_any_task_digest(api: Api, worker: WorkerPeer) -> None:
    await api.push("etl.py", SOURCE, token=api.tokens["alice"], query="?task_check=archive")
    offer = await taken(api, worker)
    assert worker.ticket(offer).ticket.task_digest is None
    assert (await worker.claim(offer, task_digest=Digest.of(b"anything"))).status == 200


async def test_a_row_moved_under_another_name_is_not_delivered(api: Api, worker: WorkerPeer) -> None:
    from sqlalchemy import text

    await api.connection("db", "http://secret-of-bob")
    await api.connection("mine", "http://h", to="alice")
    offer = await taken(api, worker)
    async with api.service.database.write() as tx:
        stolen = (
            "UPDATE secrets SET ciphertext = (SELECT ciphertext FROM secrets WHERE name = 'db') WHERE name = 'mine'"
        )
        await tx.session.execute(text(stolen))
    answer = await worker.claim(offer)
    assert (answer.status, answer.slug) == (403, "signature")
    assert (await state(api, offer["launch_id"]))["state"] == "refused"
    assert [finding.rule for finding in await api.fsck()] == ["secret-unreadable"]


async def test_results_are_stored_once_and_only_genuine_ones(api: Api, worker: WorkerPeer) -> None:
    offer = await taken(api, worker)
    early = await worker.finish(offer, "success")
    assert (early.status, early.slug) == (409, "conflict")
    await worker.claim(offer)
    envelope = worker.result_envelope(offer, worker.ticket(offer).digest, "failed", detail="boom")
    assert (await worker.post(offer["launch_id"], "state", envelope[:-2])).slug == "malformed"
    other = worker.result_envelope(offer, Digest.of(b"other ticket"), "success")
    assert (await worker.post(offer["launch_id"], "state", other)).slug == "expired"
    for _ in range(2):
        answer = await worker.post(offer["launch_id"], "state", envelope)
        assert (answer.status, answer.json["state"]) == (200, "failed")
    assert (await worker.finish(offer, "success")).slug == "conflict"
    assert [event["action"] for event in await api.events()].count("launch.end") == 1
    word = b'{"state": "refused", "error": "fetch", "detail": "x"}'
    assert (await worker.post(offer["launch_id"], "state", word, kind="application/json")).slug == "out-of-scope"


async def test_a_worker_that_cannot_run_it_says_so(api: Api, worker: WorkerPeer) -> None:
    offer = await taken(api, worker)
    word = b'{"state": "refused", "error": "digest-mismatch", "detail": "the cached bytes differ"}'
    for _ in range(2):
        answer = await worker.post(offer["launch_id"], "state", word, kind="application/json")
        assert answer.json["state"] == "refused"
    ended = await state(api, offer["launch_id"])
    assert (ended["error"], ended["detail"]) == ("digest-mismatch", "the cached bytes differ")


async def test_a_silent_launch_is_lost_and_a_heard_one_is_not(api: Api, worker: WorkerPeer) -> None:
    offer = await taken(api, worker)
    await worker.claim(offer)
    api.clock.forward(59)
    await worker.post(offer["launch_id"], "state", b'{"state": "running"}', kind="application/json")
    api.clock.forward(59)
    await expire(api.service)
    assert (await state(api, offer["launch_id"]))["state"] == "running"
    api.clock.forward(1)
    await expire(api.service)
    assert (await state(api, offer["launch_id"]))["state"] == "lost"
    beat = await worker.post(offer["launch_id"], "state", b'{"state": "running"}', kind="application/json")
    assert beat.json == {"state": "lost", "cancel": True}


async def test_cancelling_before_and_after_the_claim(api: Api, worker: WorkerPeer) -> None:
    queued = (await api.launch()).json["id"]
    assert (await api.call("POST", f"/v1/launches/{queued}/cancel", token=api.admin)).json["state"] == "cancelled"
    assert await worker.take() is None
    offer = await taken(api, worker, try_number=2)
    await worker.claim(offer)
    path = f"/v1/launches/{offer['launch_id']}/cancel"
    assert (await api.call("POST", path, token=api.admin)).json["state"] == "running"
    beat = await worker.post(offer["launch_id"], "state", b'{"state": "running"}', kind="application/json")
    assert beat.json == {"state": "running", "cancel": True}
    assert (await worker.finish(offer, "cancelled")).json["state"] == "cancelled"
    assert (await api.call("POST", path, token=api.admin)).slug == "conflict"


async def test_logs_by_offset_are_never_doubled_and_capped(folder: str) -> None:
    async with Api(folder, limits={"max_log_bytes": 1024}) as api:
        await api.push("etl.py", SOURCE)
        await api.allow("admin")
        worker = await api.worker()
        offer = await taken(api, worker)
        await worker.claim(offer)

        async def append(offset: int, data: bytes) -> Any:
            kind = "application/octet-stream"
            return await worker.post(offer["launch_id"], f"log?offset={offset}", data, kind=kind)

        assert (await append(0, b"abc")).json == {"next_offset": 3}
        assert (await append(0, b"abc")).json == {"next_offset": 3}
        assert (await append(1, b"bcde")).json == {"next_offset": 5}
        assert (await append(9, b"x")).slug == "conflict"
        assert (await append(5, b"y" * 2000)).json == {"next_offset": 2005}
        assert (await append(2005, b"more")).json == {"next_offset": 2009}
        log = await api.call("GET", f"/v1/launches/{offer['launch_id']}/log", token=api.admin)
        assert log.body == b"", "a line that is not whole waits"
        accept = {"Accept": "application/x-ndjson"}
        log = await api.call("GET", f"/v1/launches/{offer['launch_id']}/log", token=api.admin, headers=accept)
        assert log.body == b"abcde" + b"y" * 1019
        assert (await state(api, offer["launch_id"]))["log_truncated"] is True
        await worker.finish(offer, log_digest=Digest.of(b"something else"), log_bytes=9)
        assert "launch.log.check" in [event["action"] for event in await api.events()]
        assert (await append(2009, b"late")).slug == "conflict"


async def test_a_log_is_text_or_the_records_that_were_signed_for(api: Api, worker: WorkerPeer) -> None:
    offer = await taken(api, worker)
    await worker.claim(offer)
    path, kind = f"/v1/launches/{offer['launch_id']}/log", "application/octet-stream"
    event = '{"timestamp":"2027-01-15T08:00:00Z","level":"info","logger":"task","event":"two"}\n'
    records = [encode("stdout", 1, "one\n"), encode("log", 2, event), encode("stderr", 3, "three")]
    stream = b"".join(records)
    whole = len(records[0])

    async def read(offset: int, **headers: str) -> tuple[bytes, str, str]:
        answer = await api.call("GET", f"{path}?offset={offset}", token=api.admin, headers=headers)
        return answer.body, answer.headers["Dagseal-Next-Offset"], answer.headers["Content-Type"]

    await worker.post(offer["launch_id"], "log?offset=0", stream[: whole + 9], kind=kind)
    assert await read(0) == (b"one\n", str(whole), kind), "half a record is not shown yet"
    assert await read(whole) == (b"", str(whole), kind)
    ndjson = {"Accept": "application/x-ndjson"}
    assert await read(0, **ndjson) == (stream[: whole + 9], str(whole + 9), ndjson["Accept"])
    await worker.post(offer["launch_id"], f"log?offset={whole + 9}", stream[whole + 9 :], kind=kind)
    shown = b"[2027-01-15T08:00:00Z] {INFO} task - two\nthree"
    assert await read(whole) == (shown, str(len(stream)), kind)
    assert await read(0, **ndjson) == (stream, str(len(stream)), ndjson["Accept"])
    assert (await state(api, offer["launch_id"]))["log_digest"] is None
    await worker.finish(offer, log_digest=Digest.of(stream), log_bytes=len(stream))
    assert (await state(api, offer["launch_id"]))["log_digest"] == str(Digest.of(stream))
    assert "launch.log.check" not in [event["action"] for event in await api.events()]


async def test_waiting_for_work_for_logs_and_for_the_end(api: Api, worker: WorkerPeer) -> None:
    waiting = asyncio.create_task(worker.take(wait=20))
    while not api.service.signals.waiting("queue"):
        await asyncio.sleep(0)
    launch_id = (await api.launch()).json["id"]
    offer = await asyncio.wait_for(waiting, 5)
    assert offer is not None and offer["launch_id"] == launch_id
    await worker.claim(offer)
    path = f"/v1/launches/{launch_id}"
    log = asyncio.create_task(api.call("GET", f"{path}/log?wait_seconds=20", token=api.admin))
    end = asyncio.create_task(api.call("GET", f"{path}?wait_seconds=20", token=api.admin))
    while api.service.signals.waiting(f"launch:{launch_id}") < 2:
        await asyncio.sleep(0)
    await worker.post(launch_id, "log?offset=0", b"line\n", kind="application/octet-stream")
    assert (await asyncio.wait_for(log, 5)).body == b"line\n"
    await worker.finish(offer, log_digest=Digest.of(b"line\n"), log_bytes=5)
    assert (await asyncio.wait_for(end, 5)).json["state"] == "success"


async def test_workers_share_a_queue_without_sharing_a_launch(api: Api, worker: WorkerPeer) -> None:
    other = await api.worker("w2", ["default", "big"])
    for number in range(1, 5):
        await api.launch(try_number=number)
    offers = await asyncio.gather(*(peer.take() for peer in (worker, other, worker, other, worker)))
    ids = [offer["launch_id"] for offer in offers if offer]
    assert len(ids) == len(set(ids)) == 4


async def test_workers_stay_in_their_queues_and_names(api: Api, worker: WorkerPeer) -> None:
    outside = await api.call("POST", "/v1/workers/w1/take", token=worker.token, json={"queues": ["big"]})
    assert (outside.status, outside.slug) == (403, "out-of-scope")
    body = {"queues": ["default"]}
    assert (await api.call("POST", "/v1/workers/w2/take", token=worker.token, json=body)).slug == "out-of-scope"
    assert (await api.call("POST", "/v1/workers/w1/take", token=api.admin, json=body)).slug == "out-of-scope"
    assert (await api.call("DELETE", "/v1/workers/w1", token=api.admin)).status == 204
    assert (await api.call("POST", "/v1/workers/w1/take", token=worker.token, json=body)).status == 401


async def test_a_worker_fetches_the_blob_and_manifest_of_any_release(api: Api, worker: WorkerPeer) -> None:
    offer = await taken(api, worker)
    blob = await api.call("GET", f"/v1/blobs/sha512/{offer['digest'][7:]}", token=worker.token)
    assert blob.body == SOURCE
    envelope = await api.call("GET", "/v1/archives/etl.py/releases/1/manifest", token=worker.token)
    assert envelope.status == 200
    assert (await api.call("GET", "/v1/archives/etl.py", token=worker.token)).slug == "out-of-scope"

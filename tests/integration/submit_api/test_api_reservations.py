"""What a scheduler reserves for Airflow: once for each queueing, by the set that its run is pinned to, for one worker."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from api_rig import SOURCE, Answer, Api, WorkerPeer, dag_entry, task_entry
from sqlalchemy import text

from integrity.digests import Digest
from submit_api.dispatching import expire
from submit_api.signals import of_launch
from vocabulary import sets
from vocabulary.claims import Xcom
from vocabulary.sets import Member

DAY = 86_400


def body_of(*members: tuple[str, int, bytes]) -> bytes:
    return sets.to_bytes(Member(archive=name, number=number, digest=Digest.of(data)) for name, number, data in members)


async def put_set(api: Api, worker: WorkerPeer, body: bytes) -> str:
    name = Digest.of(body).hex
    answer = await api.call("PUT", f"/v1/sets/{name}", token=worker.token, body=body)
    assert answer.status in (200, 201), answer.body
    return name


class Scheduler:
    """Reserves tasks of dag `etl` by a set with its first release."""

    def __init__(self, api: Api, name: str) -> None:
        self.api, self.set = api, name

    def wanted(self, **changes: Any) -> dict[str, Any]:
        fields = {
            "task_instance": str(uuid.uuid4()),
            "queueing": "1",
            "dag_id": "etl",
            "task_id": "t",
            "run_id": "r1",
            "map_index": -1,
            "try_number": 1,
            "queue": "default",
            "set": self.set,
            "task_digest": str(Digest.of(b"task t")),
            "valid_seconds": 600,
        }
        return {**fields, **changes}

    async def ask(self, *wanted: dict[str, Any], token: str | None = None) -> Answer:
        body = {"reservations": list(wanted)}
        return await self.api.call("POST", "/v1/reservations", token=token or self.api.admin, json=body)

    async def reserve(self, *wanted: dict[str, Any], token: str | None = None) -> list[dict[str, Any]]:
        answer = await self.ask(*wanted, token=token)
        assert answer.status == 200, answer.body
        found = list(answer.json["reservations"])
        asked = [(one["task_instance"], one["queueing"]) for one in wanted]
        assert [(one["task_instance"], one["queueing"]) for one in found] == asked
        return found

    async def one(self, *, token: str | None = None, **changes: Any) -> dict[str, Any]:
        (found,) = await self.reserve(self.wanted(**changes), token=token)
        return found


@pytest.fixture
async def worker(api: Api) -> WorkerPeer:
    alice = await api.token("alice")
    api.launcher.dags["etl.py"] = [dag_entry("etl", task_entry("t"), task_entry("u", xcom_dags=("other",)))]
    api.launcher.dags["other.py"] = [dag_entry("other", member="other.py")]
    assert (await api.push("other.py", SOURCE + b"#", token=alice)).status == 201
    assert (await api.push("etl.py", SOURCE, token=alice)).status == 201
    await api.allow("alice")
    return await api.worker(queues=["default", "second"])


@pytest.fixture
async def scheduler(api: Api, worker: WorkerPeer) -> Scheduler:
    return Scheduler(api, await put_set(api, worker, body_of(("etl.py", 1, SOURCE), ("other.py", 1, SOURCE + b"#"))))


async def take(worker: WorkerPeer, task_instance: str, *, queues: list[str] | None = None, wait: float = 0) -> Answer:
    body = {"queues": queues or worker.queues, "task_instance": task_instance}
    path = f"/v1/workers/{worker.name}/take?wait_seconds={wait}"
    return await worker.api.call("POST", path, token=worker.token, json=body)


async def taken(worker: WorkerPeer, task_instance: str) -> dict[str, Any]:
    answer = await take(worker, task_instance)
    assert answer.status == 200, answer.body
    return dict(answer.json)


async def launch(api: Api, launch_id: str) -> dict[str, Any]:
    answer = await api.call("GET", f"/v1/launches/{launch_id}", token=api.admin)
    assert answer.status == 200, answer.body
    return dict(answer.json)


async def test_from_reservation_to_result(api: Api, worker: WorkerPeer, scheduler: Scheduler) -> None:
    await api.connection("db", "http://u:p@h", to="alice")
    wanted = scheduler.wanted(task_id="u", task_digest=str(Digest.of(b"task u")))
    (found,) = await scheduler.reserve(wanted)
    assert (found["state"], found["error"], found["detail"]) == ("queued", "", "")
    offer = await taken(worker, wanted["task_instance"])
    assert (offer["launch_id"], offer["xcom_dags"]) == (found["launch_id"], ["other"])
    ticket = worker.ticket(offer).ticket
    assert (ticket.supervised, ticket.release, ticket.unix_user, ticket.queue) == (True, 1, "nobody", "default")
    assert (ticket.dag_id, ticket.task_id, ticket.run_id, ticket.map_index, ticket.try_number) == (
        "etl",
        "u",
        "r1",
        -1,
        1,
    )
    assert ticket.timeout_seconds == 30 * DAY
    secrets = await worker.claimed(offer)
    assert secrets.connections == {"db": "http://u:p@h"}
    assert (secrets.xcoms, secrets.run) == ((), {})
    beat = await worker.post(offer["launch_id"], "state", b'{"state": "running"}', kind="application/json")
    assert beat.json == {"state": "running", "cancel": False}
    assert (await worker.finish(offer, xcoms=(Xcom(key="return_value", value="1"),))).json["state"] == "success"
    seen = await launch(api, found["launch_id"])
    assert (seen["supervised"], seen["task_instance"]) == (True, wanted["task_instance"])
    async with api.service.database.read() as tx:
        assert (await tx.session.execute(text("SELECT count(*) FROM xcoms"))).scalar_one() == 0
    told = {event["action"]: event for event in await api.events()}
    assert told["launch.reserve"]["object"] == f"launch:{found['launch_id']}"
    assert told["launch.reserve"]["rule"] == ticket.rule and told["secret.deliver"]["object"] == "connection:db"
    assert await api.fsck() == []


async def test_a_plain_launch_and_a_reservation_never_meet(api: Api, worker: WorkerPeer, scheduler: Scheduler) -> None:
    wanted = scheduler.wanted()
    await scheduler.reserve(wanted)
    assert await worker.take() is None
    plain = await api.launch()
    assert plain.status == 201, plain.body  # also of the same try
    offer = await worker.take()
    assert offer is not None and offer["launch_id"] == plain.json["id"] and offer["xcom_dags"] == []
    assert not worker.ticket(offer).ticket.supervised
    assert worker.ticket(await taken(worker, wanted["task_instance"])).ticket.supervised


async def test_the_same_queueing_is_reserved_once(api: Api, worker: WorkerPeer, scheduler: Scheduler) -> None:
    wanted = [scheduler.wanted(map_index=index) for index in range(3)] + [scheduler.wanted(set=None)]
    first = await scheduler.reserve(*wanted)
    assert [one["state"] for one in first] == ["queued"] * 3 + ["refused"]
    events = len(await api.events())
    assert await scheduler.reserve(*wanted) == first
    assert len(await api.events()) == events
    await taken(worker, wanted[0]["task_instance"])
    again = await scheduler.reserve(*wanted)
    assert [one["launch_id"] for one in again] == [one["launch_id"] for one in first]
    assert again[0]["state"] == "offered"


async def test_a_queueing_that_was_reserved_otherwise_stays_as_it_is(
    api: Api, worker: WorkerPeer, scheduler: Scheduler
) -> None:
    """By somebody else, with another set, for another task: each may be launched, and is not what was reserved."""
    wanted = scheduler.wanted()
    (first,) = await scheduler.reserve(wanted)
    other_set = await put_set(api, worker, body_of(("etl.py", 1, SOURCE)))
    another = {"task_id": "u", "task_digest": str(Digest.of(b"task u"))}
    for token, changes in ((api.tokens["alice"], {}), (None, {"set": other_set}), (None, another)):
        (told,) = await scheduler.reserve({**wanted, **changes}, token=token)
        assert (told["state"], told["error"], told["launch_id"]) == ("refused", "conflict", None)
        assert told["detail"] == "queueing 1 was reserved already, otherwise"
    assert await scheduler.reserve(wanted) == [first]
    about = f"task-instance:{wanted['task_instance']}"
    assert [one["verdict"] for one in await api.events() if one["object"] == about] == ["refused"] * 3


async def test_a_refusal_does_not_bind_the_task_instance(api: Api, worker: WorkerPeer, scheduler: Scheduler) -> None:
    """Whoever names it first with a dag that there is not cannot keep its scheduler from it."""
    wanted = scheduler.wanted()
    assert (await scheduler.one(task_instance=wanted["task_instance"], dag_id="nothing"))["state"] == "refused"
    (found,) = await scheduler.reserve({**wanted, "queueing": "2"})
    assert found["state"] == "queued"


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"set": None}, "no-version", "no version"),
        ({"set": "0" * 128}, "not-found", "there is no set"),
        ({"dag_id": "nothing"}, "not-found", "push its file"),
        ({"task_id": "nothing"}, "not-found", "no task"),
        ({"task_digest": str(Digest.of(b"another"))}, "digest-mismatch", "is not the one that was recorded"),
        ({"task_digest": None}, "digest-mismatch", "is not the one that was recorded"),
        ({"queue": "closed"}, "not-owner", "queue closed belongs to"),
    ],
)
async def test_one_that_is_refused_does_not_stop_the_others(
    api: Api, worker: WorkerPeer, scheduler: Scheduler, changes: dict[str, Any], error: str, says: str
) -> None:
    closed = {"owner": "zoe", "mode": "u=rwx,go="}
    assert (await api.call("PUT", "/v1/queues/closed", token=api.admin, json=closed)).status == 201
    bad, good = scheduler.wanted(**changes), scheduler.wanted(run_id="r2")
    refused, queued = await scheduler.reserve(bad, good)
    assert (refused["state"], refused["error"]) == ("refused", error) and says in refused["detail"]
    assert queued["state"] == "queued"
    seen = await launch(api, refused["launch_id"])
    assert (seen["state"], seen["error"], seen["ended_at"]) == ("refused", error, api.clock.at)
    event = next(one for one in await api.events() if one["object"] == f"launch:{refused['launch_id']}")
    assert (event["action"], event["verdict"], event["rule"]) == ("launch.reserve", "refused", error)
    if bad["queue"] == "default":
        answer = await take(worker, bad["task_instance"])
        assert (answer.status, answer.slug, answer.json["detail"]) == (409, error, refused["detail"])
    assert (await take(worker, good["task_instance"])).status == 200
    assert await api.fsck() == []


async def test_a_dag_that_the_set_lacks_or_has_in_a_release_that_is_revoked(
    api: Api, worker: WorkerPeer, scheduler: Scheduler
) -> None:
    lacking = await put_set(api, worker, body_of(("other.py", 1, SOURCE + b"#")))
    found = await scheduler.one(set=lacking)
    assert (found["error"], "etl.py is not in set" in found["detail"]) == ("not-found", True)
    await api.call("POST", "/v1/archives/etl.py/releases/1/revoke", token=api.admin)
    found = await scheduler.one()
    assert (found["error"], "etl.py@1 was revoked" in found["detail"]) == ("conflict", True)


async def test_the_release_is_the_sets_and_not_the_active_one(
    api: Api, worker: WorkerPeer, scheduler: Scheduler
) -> None:
    assert (await api.push("etl.py", SOURCE + b"#2", token=api.tokens["alice"])).status == 201
    wanted = scheduler.wanted()
    await scheduler.reserve(wanted)
    assert worker.ticket(await taken(worker, wanted["task_instance"])).ticket.release == 1


async def test_a_release_without_task_check_needs_no_digest(api: Api, worker: WorkerPeer, scheduler: Scheduler) -> None:
    body = SOURCE + b"#archive"
    pushed = await api.push("etl.py", body, token=api.tokens["alice"], query="?task_check=archive")
    assert pushed.status == 201, pushed.body
    name = await put_set(api, worker, body_of(("etl.py", 2, body)))
    assert (await scheduler.one(set=name, task_digest=None))["state"] == "queued"


async def test_a_new_queueing_supersedes_what_nobody_claimed(
    api: Api, worker: WorkerPeer, scheduler: Scheduler
) -> None:
    wanted = scheduler.wanted()
    (first,) = await scheduler.reserve(wanted)
    offer = await taken(worker, wanted["task_instance"])
    (second,) = await scheduler.reserve({**wanted, "queueing": "2"})
    ended = await launch(api, first["launch_id"])
    assert (ended["state"], ended["error"]) == ("cancelled", "superseded") and "queueing 2" in ended["detail"]
    claim = await worker.claim(offer)
    assert (claim.status, claim.slug) == (409, "conflict")
    assert (await taken(worker, wanted["task_instance"]))["launch_id"] == second["launch_id"]


async def test_what_runs_is_asked_to_end_and_the_next_waits_for_that(
    api: Api, worker: WorkerPeer, scheduler: Scheduler
) -> None:
    wanted = scheduler.wanted()
    await scheduler.reserve(wanted)
    offer = await taken(worker, wanted["task_instance"])
    await worker.claimed(offer)
    (second,) = await scheduler.reserve({**wanted, "queueing": "2"})
    (third,) = await scheduler.reserve({**wanted, "queueing": "3"})
    assert (await launch(api, second["launch_id"]))["error"] == "superseded"
    beat = await worker.post(offer["launch_id"], "state", b'{"state": "running"}', kind="application/json")
    assert beat.json == {"state": "running", "cancel": True}
    assert (await take(worker, wanted["task_instance"])).status == 204
    assert [e["action"] for e in await api.events() if e["object"] == f"launch:{offer['launch_id']}"].count(
        "launch.cancel"
    ) == 1
    waiting = take(worker, wanted["task_instance"], wait=20)
    ending = worker.finish(offer, "cancelled")
    answer, ended = await asyncio.gather(waiting, ending)
    assert ended.json["state"] == "cancelled"
    assert (answer.status, answer.json["launch_id"]) == (200, third["launch_id"])


async def test_the_same_try_is_queued_again_after_a_deferral(
    api: Api, worker: WorkerPeer, scheduler: Scheduler
) -> None:
    wanted = scheduler.wanted()
    for queueing in ("1", "2"):
        await scheduler.reserve({**wanted, "queueing": queueing})
        offer = await taken(worker, wanted["task_instance"])
        await worker.claimed(offer)
        again = await take(worker, wanted["task_instance"])
        assert (again.status, again.slug) == (409, "conflict") and "is running" in again.json["detail"]
        assert (await worker.finish(offer, "deferred")).status == 200
    again = await take(worker, wanted["task_instance"])
    assert (again.status, again.slug) == (409, "conflict") and "is deferred" in again.json["detail"]


async def test_nobody_took_it_in_time(api: Api, worker: WorkerPeer, scheduler: Scheduler) -> None:
    wanted, other = scheduler.wanted(valid_seconds=60), scheduler.wanted(valid_seconds=61, run_id="r2")
    (found, _) = await scheduler.reserve(wanted, other)
    await taken(worker, wanted["task_instance"])  # and its ticket runs out at the same moment
    api.clock.forward(60)
    await expire(api.service)
    await expire(api.service)
    ended = await launch(api, found["launch_id"])
    assert (ended["state"], ended["error"]) == ("refused", "expired")
    answer = await take(worker, wanted["task_instance"])
    assert (answer.status, answer.slug) == (409, "expired")
    assert (await take(worker, other["task_instance"])).status == 200
    assert (await api.events())[-2]["action"] == "launch.take"


async def test_a_cancelled_one_is_told_to_who_waits(api: Api, worker: WorkerPeer, scheduler: Scheduler) -> None:
    wanted = scheduler.wanted()
    (found,) = await scheduler.reserve(wanted)
    assert (await api.call("POST", f"/v1/launches/{found['launch_id']}/cancel", token=api.admin)).status == 200
    answer = await take(worker, wanted["task_instance"])
    assert (answer.status, answer.slug, answer.json["detail"]) == (409, "cancelled", "cancelled by admin")


async def test_a_superseded_one_is_told_to_who_waits_for_it(api: Api, worker: WorkerPeer, scheduler: Scheduler) -> None:
    wanted = scheduler.wanted()
    (first,) = await scheduler.reserve(wanted)
    path = f"/v1/launches/{first['launch_id']}?wait_seconds=60"
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        waiting = group.create_task(api.call("GET", path, token=api.admin))
        while not api.service.signals.waiting(of_launch(first["launch_id"])):
            await asyncio.sleep(0)
        await scheduler.reserve({**wanted, "queueing": "2"})
    assert waiting.result().json["error"] == "superseded"


async def test_a_release_that_is_not_the_one_in_the_set(api: Api, worker: WorkerPeer, scheduler: Scheduler) -> None:
    """Its row says otherwise than when the set was put: what is launched is what the run is pinned to, or nothing."""
    async with api.service.database.write() as tx:
        other = str(Digest.of(b"other"))
        await tx.session.execute(text("UPDATE releases SET digest = :other WHERE archive = 'etl.py'"), {"other": other})
    found = await scheduler.one()
    assert (found["state"], found["error"]) == ("refused", "digest-mismatch")
    assert found["detail"].startswith("the digest of etl.py@1")


async def test_what_was_revoked_after_it_was_reserved_is_refused_at_the_take(
    api: Api, worker: WorkerPeer, scheduler: Scheduler
) -> None:
    wanted = scheduler.wanted()
    await scheduler.reserve(wanted)
    await api.call("POST", "/v1/archives/etl.py/releases/1/revoke", token=api.admin)
    answer = await take(worker, wanted["task_instance"])
    assert (answer.status, answer.slug) == (409, "conflict") and "was revoked" in answer.json["detail"]


async def test_a_launcher_that_refuses_is_not_asked_again(api: Api, worker: WorkerPeer, scheduler: Scheduler) -> None:
    """Whatever it says: a word that means 'try again' would have its agent ask for ever."""
    wanted = scheduler.wanted()
    await scheduler.reserve(wanted)
    offer = await taken(worker, wanted["task_instance"])
    said = b'{"state": "refused", "error": "fetch", "detail": "no"}'
    assert (await worker.post(offer["launch_id"], "state", said, kind="application/json")).status == 200
    answer = await take(worker, wanted["task_instance"])
    assert (answer.status, answer.slug, answer.json["detail"]) == (409, "conflict", "no")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task_instance": "x"}, "task_instance"),
        ({"queueing": ""}, "queueing"),
        ({"queueing": "a b"}, "queueing"),
        ({"set": "sha512:" + "0" * 128}, "set"),
        ({"valid_seconds": 0}, "valid_seconds"),
        ({"try_number": 0}, "try_number"),
        ({"surprise": 1}, "surprise"),
    ],
)
async def test_what_is_no_reservation(scheduler: Scheduler, changes: dict[str, Any], says: str) -> None:
    answer = await scheduler.ask(scheduler.wanted(**changes))
    assert (answer.status, answer.slug) == (422, "invalid-request") and says in answer.json["detail"]


async def test_a_batch_names_each_task_instance_once_and_is_neither_empty_nor_endless(scheduler: Scheduler) -> None:
    wanted = scheduler.wanted()
    for batch in ([], [wanted, {**wanted, "queueing": "2"}], [scheduler.wanted() for _ in range(501)]):
        answer = await scheduler.ask(*batch)
        assert (answer.status, answer.slug) == (422, "invalid-request")

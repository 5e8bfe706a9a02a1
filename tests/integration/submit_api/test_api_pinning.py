"""A run keeps the release that it began with."""

from __future__ import annotations

from typing import Any

import pytest
from api_rig import SOURCE, Api, WorkerPeer, dag_entry, task_entry
from sqlalchemy import text


@pytest.fixture
async def worker(api: Api) -> WorkerPeer:
    """Two releases of a dag with tasks t and u; the second is active."""
    api.launcher.dags["etl.py"] = [dag_entry("etl", task_entry("t"), task_entry("u"))]
    await push(api, 1)
    await api.allow("admin")
    return await api.worker()


async def push(api: Api, number: int) -> None:
    answer = await api.push("etl.py", SOURCE + b"#" * number)
    assert (answer.status, answer.json["number"]) == (201, number)


async def reserved(api: Api, **changes: Any) -> int:
    api.clock.forward(0.001)
    answer = await api.launch(**changes)
    assert answer.status == 201, answer.body
    assert isinstance(answer.json["release"], int)
    return answer.json["release"]


async def chosen(api: Api) -> str:
    (last,) = [event["detail"] for event in await api.events() if event["action"] == "launch.create"][-1:]
    return str(last).partition(" of etl.py@")[2].partition(", as nobody")[0]


async def run(worker: WorkerPeer, state: str = "success") -> None:
    offer = await worker.take()
    assert offer is not None
    await worker.claimed(offer)
    assert (await worker.finish(offer, state)).status == 200


async def test_the_next_task_runs_what_the_run_began_with(api: Api, worker: WorkerPeer) -> None:
    assert await reserved(api) == 1
    assert await chosen(api) == "1, the active one"
    await push(api, 2)
    assert await reserved(api, task_id="u") == 1  # while the first is only queued
    assert await chosen(api) == "1, which the run began with"
    await run(worker, "failed")
    assert await reserved(api, try_number=2) == 1
    assert await reserved(api, run_id="r2") == 2
    # Who asks gets what he asks for, once: the run is still of release 1.
    assert await reserved(api, try_number=3, release=2) == 2
    assert await chosen(api) == "2, asked for"
    assert await reserved(api, try_number=4) == 1


async def test_a_run_whose_release_was_revoked_does_not_go_on_unseen(api: Api, worker: WorkerPeer) -> None:
    await reserved(api)
    await run(worker)
    await push(api, 2)
    revoked = await api.call("POST", "/v1/archives/etl.py/releases/1/revoke?reason=leaks", token=api.admin)
    assert revoked.status == 200
    answer = await api.launch(task_id="u")
    assert (answer.status, answer.slug) == (409, "conflict")
    assert answer.json["detail"] == (
        "run r1 began with etl.py@1, which was revoked (leaks): to go on with other code, name the release, by --release "
        "or as 'release' (release 2 is active), or begin a new run"
    )
    assert await worker.take() is None
    assert await reserved(api, task_id="u", release=2) == 2
    assert await reserved(api, task_id="u", run_id="r2") == 2


async def test_what_never_ran_does_not_pin(api: Api, worker: WorkerPeer) -> None:
    """Refused, cancelled and failed before the claim."""
    for number, task in enumerate(("t", "u"), 1):
        launch = await api.launch(task_id=task)
        if task == "t":
            offer = await worker.take()
            assert offer is not None
            body = b'{"state": "refused", "error": "digest-mismatch", "detail": "x"}'
            assert (await worker.post(offer["launch_id"], "state", body, kind="application/json")).status == 200
        else:
            path = f"/v1/launches/{launch.json['id']}/cancel"
            assert (await api.call("POST", path, token=api.admin)).status == 200
        await push(api, number + 1)
    assert await reserved(api, try_number=2) == 3


async def test_the_first_launch_of_a_large_run_is_found_by_the_index(api: Api, worker: WorkerPeer) -> None:
    plan = "EXPLAIN QUERY PLAN SELECT release FROM launches WHERE dag_id = 'a' AND run_id = 'b' ORDER BY created_at LIMIT 1"
    if api.service.database.engine.dialect.name != "sqlite":
        pytest.skip("the plan is SQLite's")
    async with api.service.database.read() as tx:
        steps = [row[3] for row in (await tx.session.execute(text(plan))).all()]
    assert steps == ["SEARCH launches USING INDEX ix_launches_dag_id_run_id (dag_id=? AND run_id=?)"]

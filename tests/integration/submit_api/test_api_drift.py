"""What workers say of themselves: who is verified, behind, drifted, silent; and that a drifted one is offered nothing."""

from __future__ import annotations

from typing import Any

from api_rig import SOURCE, Answer, Api, WorkerPeer

from integrity.digests import Digest
from integrity.fields import to_base64
from vocabulary import checkpoints, holdings, tiles
from vocabulary.leaves import from_bytes
from vocabulary.logview import LogView


async def viewed(api: Api) -> tuple[checkpoints.Checkpoint, LogView]:
    """The log, as an agent that follows it has it."""
    note = (await api.call("GET", "/v1/log/checkpoint")).body
    found = checkpoints.verify(note, [api.service.keys.signing.public]).checkpoint
    bundle = (await api.call("GET", f"/v1/log/entries?start=0&end={found.size}", token=api.admin)).body
    return found, LogView().extended(from_bytes(entry) for entry in tiles.entries_of(bundle))


async def report(api: Api, worker: WorkerPeer, *, held: list[Digest] | None = None, **changes: Any) -> Answer:
    """As an honest agent would say it that holds everything; or what is given."""
    checkpoint, view = await viewed(api)
    wanted = view.wanted(frozenset(worker.queues))
    body = {
        "log_size": checkpoint.size,
        "log_root": to_base64(checkpoint.root),
        "held_root": to_base64(holdings.root(wanted if held is None else held)),
        "missing": [],
        "missing_count": 0,
        "damaged": [],
        "alarm": "",
        **changes,
    }
    return await api.call("POST", f"/v1/workers/{worker.name}/report", token=worker.token, json=body)


async def shown(api: Api, worker: WorkerPeer) -> tuple[str, str]:
    found = (await api.call("GET", f"/v1/workers/{worker.name}", token=api.admin)).json
    return found["state"], found["why"]


async def test_a_worker_is_silent_then_verified_then_behind_then_silent(api: Api) -> None:
    worker = await api.worker()
    assert (await shown(api, worker))[0] == "silent"
    await api.push("etl.py", SOURCE)
    assert (await report(api, worker)).json == {"state": "verified", "why": ""}
    old, _ = await viewed(api)
    await api.push("etl.py", SOURCE + b"#\n")
    late = await report(api, worker, log_size=old.size, log_root=to_base64(old.root))
    assert late.json["state"] == "behind"
    missing = [str(Digest.of(SOURCE + b"#\n"))]
    assert (await report(api, worker, held=[], missing=missing, missing_count=1)).json["state"] == "behind"
    assert (await report(api, worker)).json["state"] == "verified"
    api.clock.forward(61)
    assert await shown(api, worker) == ("silent", "no report for 60 seconds")


async def test_a_worker_is_to_hold_what_its_queues_need_and_no_more(api: Api) -> None:
    default, other = await api.worker("w1", ["default"]), await api.worker("w2", ["gpu"])
    await api.push("etl.py", SOURCE)
    assert (await report(api, default, held=[Digest.of(SOURCE)])).json["state"] == "verified"
    assert (await report(api, other, held=[])).json["state"] == "verified"
    assert (await report(api, other, held=[Digest.of(SOURCE)])).json["state"] == "drifted"


async def test_a_drifted_worker_is_offered_nothing_until_it_is_mended(api: Api) -> None:
    worker = await api.worker()
    await api.allow("admin")
    await api.push("etl.py", SOURCE)
    assert (await report(api, worker)).json["state"] == "verified"
    bad = str(Digest.of(SOURCE))
    assert (await report(api, worker, damaged=[bad])).json["state"] == "drifted"
    assert (await report(api, worker, damaged=[bad])).json["state"] == "drifted"
    launch = (await api.launch()).json["id"]
    refused = await api.call("POST", "/v1/workers/w1/take", token=worker.token, json={"queues": ["default"]})
    assert (refused.status, refused.slug) == (409, "drifted")
    assert (await api.call("GET", f"/v1/launches/{launch}", token=api.admin)).json["state"] == "queued"
    assert (await report(api, worker)).json["state"] == "verified"
    offered = await worker.take()
    assert offered is not None and offered["launch_id"] == launch
    told = [(one["action"], one["verdict"]) for one in await api.events() if one["object"] == "worker:w1"]
    assert told[-2:] == [("worker.drift", "refused"), ("worker.mend", "accepted")]


async def test_another_log_is_drift_and_stays_on_record_when_the_process_is_another(api: Api) -> None:
    worker = await api.worker()
    checkpoint, _ = await viewed(api)
    assert (await report(api, worker, log_root=to_base64(b"x" * 32))).json["state"] == "drifted"
    longer = await report(api, worker, log_size=checkpoint.size + 1)
    assert "restored" in longer.json["why"]
    api.service.reports.newest.clear()  # as a new process has them
    state, why = await shown(api, worker)
    assert state == "drifted" and "another log" in why


async def test_a_release_tells_which_workers_hold_it(api: Api) -> None:
    worker, late, gone = await api.worker("w1"), await api.worker("w2"), await api.worker("w3")
    await api.push("etl.py", SOURCE)
    await report(api, late)
    await api.push("etl.py", SOURCE + b"#\n")
    await report(api, worker)
    await api.call("DELETE", f"/v1/workers/{gone.name}", token=api.admin)
    first = await api.call("GET", "/v1/archives/etl.py/releases/1/workers", token=api.admin)
    assert [one["holds"] for one in first.json["workers"]] == [False, False]  # it is not active, nobody fetches it
    second = await api.call("GET", "/v1/archives/etl.py/releases/2/workers", token=api.admin)
    assert second.json["workers"] == [
        {"worker": "w1", "state": "verified", "holds": True},
        {"worker": "w2", "state": "verified", "holds": False},
    ]
    stranger = await api.token("mallory")
    hidden = await api.call("GET", "/v1/archives/etl.py/releases/2/workers", token=stranger)
    assert hidden.status == 403


async def test_a_worker_reports_for_itself_only(api: Api) -> None:
    worker, other = await api.worker("w1"), await api.worker("w2")
    body = {"log_size": 0, "log_root": to_base64(b"x" * 32), "held_root": to_base64(b"x" * 32)}
    body |= {"missing": [], "missing_count": 0, "damaged": [], "alarm": "x"}
    answer = await api.call("POST", f"/v1/workers/{other.name}/report", token=worker.token, json=body)
    assert (answer.status, answer.slug) == (403, "out-of-scope")
    assert (await shown(api, other))[0] == "silent"
    assert not [one for one in await api.events() if one["action"] == "worker.drift"]

"""Retention over a real store: what goes, what stays, what is then refused, and a crash at any point."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from api_rig import SOURCE, T0, Answer, Api, WorkerPeer

from submit_api import retiring
from submit_api.fsck import fsck

AT = "/v1/archives/etl.py"
DAY = 86_400


@pytest.fixture
async def api(folder: str) -> AsyncIterator[Api]:
    async with Api(folder, retention={"keep_releases": 2, "keep_days": 30}) as running:
        await running.allow("admin")
        yield running


async def pushed(api: Api, count: int) -> list[str]:
    """Numbers 1 to `count`, a day apart; their digests."""
    digests = []
    for number in range(1, count + 1):
        answer = await api.push("etl.py", SOURCE + b"#" * number)
        assert (answer.status, answer.json["number"]) == (201, number)
        digests.append(answer.json["digest"])
        api.clock.forward(DAY)
    return digests


async def get(api: Api, path: str = "") -> Answer:
    return await api.call("GET", AT + path, token=api.admin)


async def states(api: Api) -> list[str]:
    return [release["state"] for release in (await get(api)).json["releases"]]


async def retired(api: Api) -> list[int]:
    return [head.number for head in await retiring.retire(api.service)]


def stored(api: Api) -> set[str]:
    return {f"sha512:{os.path.basename(path)}" for path in api.files()}


async def test_old_releases_give_up_their_bytes_and_nothing_else(api: Api) -> None:
    digests = await pushed(api, 5)
    assert await retired(api) == []  # none is old enough
    api.clock.forward(30 * DAY)
    before = (await get(api, "/releases/1")).json
    assert await retired(api) == [1, 2, 3]
    assert await retired(api) == []
    assert await states(api) == ["retired"] * 3 + ["inactive", "active"]
    assert stored(api) == set(digests[3:])
    now = (await get(api, "/releases/1")).json
    assert now == {**before, "state": "retired", "retired_at": api.clock.at}
    assert (await get(api, "/releases/1/manifest")).status == 200
    assert (await get(api, "/releases/1/diff?against=5")).json["same"] is False
    events = [e for e in await api.events() if e["action"] == "release.retire"]
    assert [(e["principal"], e["digest"], e["detail"]) for e in events] == [
        ("dagseal", digest, f"release {number}: unused for 30 days") for number, digest in enumerate(digests[:3], 1)
    ]
    assert await api.fsck() == []


async def test_what_was_retired_is_refused_with_a_clear_word(api: Api) -> None:
    digests = await pushed(api, 5)
    api.clock.forward(30 * DAY)
    assert await retired(api) == [1, 2, 3]
    for answer in (
        await api.launch(release=1),
        await api.call("POST", f"{AT}/releases/1/activate", token=api.admin),
        await api.call("POST", f"{AT}/rollback?to=1", token=api.admin),
    ):
        assert (answer.status, answer.slug) == (409, "conflict")
        assert "etl.py@1 was retired, and its bytes are gone" in answer.json["detail"]
    blob = await api.call("GET", f"/v1/blobs/sha512/{digests[0][7:]}", token=api.admin)
    assert (blob.status, blob.slug) == (404, "not-found")
    assert "etl.py@1 was retired" in blob.json["detail"]
    assert (await api.call("POST", f"{AT}/rollback", token=api.admin)).json["number"] == 4
    # The same bytes can come back, as a release of their own.
    again = await api.push("etl.py", SOURCE + b"#")
    assert (again.status, again.json["number"]) == (201, 6)
    assert (await api.launch(run_id="r9")).json["release"] == 6
    assert await states(api) == ["retired"] * 3 + ["inactive", "inactive", "active"]
    assert await api.fsck() == []


async def launched(api: Api, worker: WorkerPeer, run_id: str, release: int, *, end: bool = True) -> Any:
    assert (await api.launch(run_id=run_id, release=release)).status == 201
    offer = await worker.take()
    assert offer is not None
    await worker.claimed(offer)
    if end:
        await worker.finish(offer)
    return offer


async def test_what_is_used_stays(api: Api) -> None:
    """1 runs; 2 began a run that goes on with 3; 4 waits to be launched; 5 was launched lately; 6 is active."""
    worker = await api.worker()
    await pushed(api, 9)
    running = await launched(api, worker, "r1", 1, end=False)
    await launched(api, worker, "r2", 2)
    other = await launched(api, worker, "r2b", 3, end=False)
    assert (await api.launch(run_id="r2", release=3, try_number=2)).status == 201
    begun = await worker.take()
    assert begun is not None
    await worker.claimed(begun)
    assert (await api.launch(run_id="r4", release=4, queue="big")).status == 201  # nobody takes it
    api.clock.forward(40 * DAY)
    await worker.finish(other)
    late = (await api.launch(run_id="r5", release=5, queue="big")).json["id"]
    assert (await api.call("POST", f"/v1/launches/{late}/cancel", token=api.admin)).status == 200
    api.clock.forward(29 * DAY)
    assert (await api.call("POST", f"{AT}/releases/6/activate", token=api.admin)).status == 200
    assert await retired(api) == [7]
    api.clock.forward(2 * DAY)
    assert await retired(api) == [5]
    api.clock.forward(DAY * 31)
    await worker.finish(running)
    await worker.finish(begun)
    assert await retired(api) == []  # they ended just now
    api.clock.forward(31 * DAY)
    assert await retired(api) == [1, 2, 3]
    assert await states(api) == ["retired"] * 3 + ["inactive", "retired", "active", "retired", "inactive", "inactive"]
    assert await api.fsck() == []


async def test_bytes_stay_while_another_release_has_them(api: Api) -> None:
    await pushed(api, 1)
    for query in ("?task_check=archive", "?isolation=strict", "?isolation=minimal"):
        assert (await api.push("etl.py", SOURCE + b"#", query=query)).status == 201
    api.clock.forward(31 * DAY)
    assert await retired(api) == [1, 2]
    assert len(api.files()) == 1
    assert (await api.launch(run_id="r")).status == 201
    assert await api.fsck() == []


async def test_what_waits_for_approval_stays(api: Api) -> None:
    group = {"members": ["admin", "bob"], "approvals": 1}
    await pushed(api, 1)
    assert (await api.call("PUT", "/v1/groups/team", token=api.admin, json=group)).status == 200
    assert (await api.push("etl.py", SOURCE + b"##", query="?group=team")).json["state"] == "pending"
    for number in (3, 4, 5):
        answer = await api.push("etl.py", SOURCE + b"#" * number)
        assert (answer.json["number"], answer.json["state"]) == (number, "active")
    api.clock.forward(31 * DAY)
    assert await retired(api) == [1, 3]


async def test_without_the_setting_everything_stays(folder: str) -> None:
    async with Api(folder) as api:
        await pushed(api, 5)
        api.clock.forward(4000 * DAY)
        assert await retired(api) == []
        assert len(api.files()) == 5


async def test_bytes_that_a_crash_left_are_clean_and_go_at_the_next_start(folder: str) -> None:
    """After the row and before the unlink, or with the unlink lost: the bytes are there and nothing needs them."""
    async with Api(folder, retention={"keep_releases": 1}) as api:
        await pushed(api, 3)
        api.clock.forward(31 * DAY)
        copy, blobs = f"{folder}/copy", api.settings.blobs_folder
        shutil.copytree(blobs, copy)
        assert await retired(api) == [1, 2]
        assert len(api.files()) == 1
        shutil.copytree(copy, blobs, dirs_exist_ok=True)
        assert len(api.files()) == 3
        assert await api.fsck() == []
        assert len(await retiring.sweep(api.service)) == 2
        assert (len(api.files()), await retiring.sweep(api.service), await api.fsck()) == (1, [], [])


# The real program, which dies just before it removes a file for the N-th time; never for 0.
DYING = """
import os, runpy, signal, sys
left = int(sys.argv.pop(1))
def hook(event, arguments):
    global left
    if event == "os.remove":
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
runpy.run_module("submit_api", run_name="__main__", alter_sys=True)
"""


async def test_kill_9_in_the_middle_leaves_a_clean_store_and_the_next_start_goes_on(folder: str) -> None:
    """Between the commit and the first removal, then among the removals that the next start makes."""
    async with Api(folder) as api:
        api.clock.at = T0 - 3000 * DAY * 1_000_000
        for number in range(1, 13):
            assert (await api.push("etl.py", SOURCE + b"#" * number)).status == 201
        settings = api.settings
    config = f"{folder}/api.toml"
    with open(config, "w") as file:
        file.write(
            f'[api]\nport = 0\nstate_folder = "{settings.api.state_folder}"\n'
            "[retention]\nkeep_releases = 3\nkeep_days = 1\n"
        )

    def blobs() -> int:
        return sum(len(names) for _, _, names in os.walk(settings.blobs_folder))

    for at, left in ((1, 12), (3, 10)):
        command = [sys.executable, "-c", DYING, str(at), "--config", config]
        assert subprocess.run(command, stderr=subprocess.DEVNULL, timeout=120).returncode == -signal.SIGKILL
        assert blobs() == left
        assert await fsck(settings) == []
    with subprocess.Popen([sys.executable, "-c", DYING, "0", "--config", config], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if b'"event": "ready"' in line:
                break
        assert blobs() == 3
        process.terminate()
        assert process.wait(60) == 0
    assert await fsck(settings) == []

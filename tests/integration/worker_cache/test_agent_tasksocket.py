"""`tasks.sock`: every way a supervised launch can go; the agent is real, its peers speak the real protocol."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from agent_host import Host, now
from agent_peers import ApiSim, LauncherSim, problem

from integrity import messages
from worker_cache import framing, supervisors

ID = "1" * 32
TI = "0190a7e0-0000-7000-8000-000000000001"
NAMES = {"dag_id": "etl", "task_id": "load", "run_id": "manual__1", "map_index": -1, "try_number": 1}


class Supervisor:
    """The asker's end, and its own end of the requests socket."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(path)
        self.sock.setblocking(False)
        self.requests, self.task_end = socket.socketpair()

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self.sock, self.requests, self.task_end):
            sock.close()

    def launch(self, task_instance: str = TI, *, fd: int | None = None, **changes: Any) -> Supervisor:
        frame = messages.encode("launch", fds=1, task_instance=task_instance, **{**NAMES, **changes})
        socket.send_fds(self.sock, [frame], [self.task_end.fileno() if fd is None else fd])
        self.task_end.close()
        return self

    async def say(self, kind: str, **fields: Any) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, messages.encode(kind, **fields))

    async def hear(self) -> tuple[str, dict[str, Any]]:
        async with asyncio.timeout(10):
            message = await framing.receive(self.sock)
        return message.kind, {key: message.fields.take(key) for key in message.fields.keys()}

    async def to_the_end(self) -> tuple[bytes, str, dict[str, Any]]:
        """The log, and the last word, after which nothing comes."""
        log = b""
        while True:
            async with asyncio.timeout(10):
                message = await framing.receive(self.sock)
            if message.kind != "log":
                async with asyncio.timeout(10):
                    with pytest.raises(EOFError):
                        await framing.receive(self.sock)
                return log, message.kind, {key: message.fields.take(key) for key in message.fields.keys()}
            log += message.fields.binary("data", max_bytes=1 << 20)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with ApiSim(now) as api, LauncherSim(str(tmp_path / "l.sock"), api.ring, now) as launcher:
        yield Host(tmp_path, api, launcher)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def reserve(host: Host, task_instance: str = TI, launch_id: str = ID, **changes: Any) -> None:
    offer = host.api.offer(host.launcher, launch_id, **{"supervised": True, **changes})
    host.api.reserve(task_instance).put_nowait(offer)


async def test_a_supervised_launch_from_question_to_last_word(host: Host) -> None:
    reserve(host)
    async with host.agent():
        with Supervisor(host.tasks).launch() as asker:
            kind, offered = await asker.hear()
            assert (kind, offered["launch_id"], offered["unix_user"]) == ("offered", ID, "etl")
            assert (offered["archive"], offered["release"], offered["xcom_dags"]) == ("etl.py", 1, [])
            await asker.say("start")
            log, kind, fields = await asker.to_the_end()
            assert (log, kind) == (b"hello\nworld\n", "ended")
            assert fields == {"state": "success", "error": "", "detail": "", "exit_code": 0}
            assert asker.requests.recv(100) == b"the task's word"
            assert asker.requests.recv(100) == b""  # nobody else holds the task's end
        await until(lambda: not host.spooled())
    assert host.api.logs[ID] == b"hello\nworld\n"
    assert host.api.results[ID].state == "success"


async def test_while_airflow_is_asked_the_launcher_prepares_and_nothing_is_claimed(host: Host) -> None:
    reserve(host)
    reserve(host, "other", "2" * 32)
    async with host.agent():
        with Supervisor(host.tasks).launch() as asker, Supervisor(host.tasks).launch("other") as other:
            await asker.hear()
            await other.hear()
            await until(lambda: len(host.launcher.seen_archives) == 2)
            await other.say("start")
            assert (await other.to_the_end())[1] == "ended"
            assert host.api.calls["claim"] == 1
            await asker.say("start")
            assert (await asker.to_the_end())[1] == "ended"


async def test_a_launcher_that_refuses_before_the_start_is_told_at_once(host: Host) -> None:
    host.launcher.say_refused = True
    reserve(host)
    async with host.agent():
        with Supervisor(host.tasks).launch() as asker:
            await asker.hear()
            assert (await asker.to_the_end())[1:] == ("refused", {"error": "unauthorized", "detail": "not here"})
        await asyncio.wait_for(host.api.ended[ID].wait(), 10)
    assert host.api.results[ID].state == "refused"


async def test_an_asker_that_dies_ends_the_task_and_its_result_is_delivered(host: Host) -> None:
    host.launcher.hold = asyncio.Event()
    reserve(host)
    async with host.agent():
        with Supervisor(host.tasks).launch() as asker:
            await asker.hear()
            await asker.say("start")
            await asyncio.wait_for(host.api.running.wait(), 10)
        await asyncio.wait_for(host.api.ended[ID].wait(), 10)
        await until(lambda: not host.spooled())
    assert host.launcher.graces == [0]
    assert host.api.results[ID].state == "cancelled"


async def test_the_agent_does_not_hold_the_tasks_end_while_it_runs(host: Host) -> None:
    host.launcher.hold = asyncio.Event()
    reserve(host)
    async with host.agent():
        with Supervisor(host.tasks).launch() as asker:
            await asker.hear()
            await asker.say("start")
            await asyncio.wait_for(host.api.running.wait(), 10)
            asker.requests.settimeout(5)
            assert await asyncio.to_thread(asker.requests.recv, 100) == b"the task's word"
            assert await asyncio.to_thread(asker.requests.recv, 100) == b""
            host.launcher.hold.set()
            assert (await asker.to_the_end())[2]["state"] == "success"


async def test_an_asker_that_dies_before_it_starts_runs_nothing_and_frees_its_place(host: Host) -> None:
    reserve(host)
    reserve(host, "other", "2" * 32)
    async with host.agent(max_tasks=1):
        with Supervisor(host.tasks).launch() as asker, Supervisor(host.tasks).launch("other") as waiting:
            assert (await asker.hear())[0] == "offered"
            await until(lambda: host.launcher.seen_archives)
            asker.sock.close()
            assert (await waiting.hear())[1]["launch_id"] == "2" * 32
        await until(lambda: host.launcher.closed_early)
    assert "claim" not in host.api.calls
    assert host.api.refusals == {} and host.api.results == {} and host.spooled() == []


async def test_one_more_than_may_waits_until_another_has_ended(host: Host) -> None:
    host.launcher.hold = asyncio.Event()
    reserve(host)
    reserve(host, "other", "2" * 32)
    async with host.agent(max_tasks=1):
        with Supervisor(host.tasks).launch() as first, Supervisor(host.tasks).launch("other") as second:
            await first.hear()
            await first.say("start")
            await asyncio.wait_for(host.api.running.wait(), 10)
            assert host.api.reserve("other").qsize() == 1
            host.launcher.hold.set()
            assert (await first.to_the_end())[1] == "ended"
            assert (await second.hear())[1]["launch_id"] == "2" * 32


async def test_while_the_api_or_the_launcher_is_away_the_question_stays_open(tmp_path: Path) -> None:
    async with ApiSim(now) as api:
        launcher = LauncherSim(str(tmp_path / "l.sock"), api.ring, now)
        host = Host(tmp_path, api, launcher)
        api.fail = {"take": 3}
        reserve(host)
        async with host.agent():
            with Supervisor(host.tasks).launch() as asker:
                await until(lambda: any(call.args == ("task waits",) for call in host.log.calls))
                async with launcher:
                    assert (await asker.hear())[0] == "offered"
                    await asker.say("start")
                    assert (await asker.to_the_end())[2]["state"] == "success"


@pytest.mark.parametrize("slug", ["no-version", "expired", "cancelled", "digest-mismatch"])
async def test_a_reservation_that_was_refused_is_told_by_its_slug(host: Host, slug: str) -> None:
    host.api.reserve(TI).put_nowait(problem(409, slug, "why"))
    async with host.agent():
        with Supervisor(host.tasks).launch() as asker:
            assert await asker.to_the_end() == (b"", "refused", {"error": slug, "detail": "why"})
    assert host.api.refusals == {}


async def test_a_worker_that_has_drifted_keeps_the_question(host: Host) -> None:
    host.api.reserve(TI).put_nowait(problem(409, "drifted", "mend it"))
    reserve(host)
    async with host.agent():
        with Supervisor(host.tasks).launch() as asker:
            assert (await asker.hear())[0] == "offered"


@pytest.mark.parametrize(
    "changes",
    [{"supervised": False}, {"run_id": "other"}, {"map_index": 0}, {"try_number": 2}, {"audience": "f" * 64}],
)
async def test_an_offer_that_is_not_what_was_asked_for_is_refused_here_and_reported(
    host: Host, changes: dict[str, Any]
) -> None:
    reserve(host, **changes)
    async with host.agent():
        with Supervisor(host.tasks).launch() as asker:
            _, kind, fields = await asker.to_the_end()
            assert (kind, fields["error"]) == ("refused", "out-of-scope")
        await until(lambda: ID in host.api.refusals)
    assert "blob" not in host.api.calls
    assert host.launcher.seen_archives == []


async def test_an_xcom_that_the_manifest_does_not_name_is_not_passed_on(host: Host) -> None:
    offer = host.api.offer(host.launcher, supervised=True)
    host.api.reserve(TI).put_nowait({**offer, "xcom_dags": ["other"]})
    async with host.agent():
        with Supervisor(host.tasks).launch() as asker:
            assert (await asker.to_the_end())[2]["error"] == "out-of-scope"


async def test_a_supervised_launch_is_not_run_without_a_supervisor(host: Host) -> None:
    host.api.queue.put_nowait(host.api.offer(host.launcher, supervised=True))
    async with host.agent():
        await asyncio.wait_for(host.api.ended[ID].wait(), 10)
    assert host.api.refusals[ID][0] == "out-of-scope"
    assert host.launcher.seen_archives == []


async def test_cancel_comes_with_the_askers_grace(host: Host) -> None:
    host.launcher.hold = asyncio.Event()
    reserve(host)
    async with host.agent():
        with Supervisor(host.tasks).launch() as asker:
            await asker.hear()
            await asker.say("start")
            await asyncio.wait_for(host.api.running.wait(), 10)
            await asker.say("cancel", grace_seconds=7)
            assert (await asker.to_the_end())[2]["state"] == "cancelled"
    assert host.launcher.graces == [7]


async def test_cancel_before_the_start_is_refused_and_reported(host: Host) -> None:
    reserve(host)
    async with host.agent():
        with Supervisor(host.tasks).launch() as asker:
            await asker.hear()
            await asker.say("cancel", grace_seconds=0)
            assert (await asker.to_the_end())[1:] == (
                "refused",
                {"error": "cancelled", "detail": "its supervisor wants it no more"},
            )
        await until(lambda: ID in host.api.refusals)
    assert "claim" not in host.api.calls and host.launcher.cancelled == 0


async def test_the_apis_wish_comes_with_a_grace_and_that_of_an_agent_that_stops_too(host: Host) -> None:
    for launch_id, task_instance in ((ID, TI), ("2" * 32, "other")):
        host.launcher.hold = asyncio.Event()
        host.api.running.clear()
        reserve(host, task_instance, launch_id)
        async with host.agent(grace_seconds=0.0) as place:
            with Supervisor(host.tasks).launch(task_instance) as asker:
                await asker.hear()
                await asker.say("start")
                await asyncio.wait_for(host.api.running.wait(), 10)
                if launch_id == ID:
                    host.api.cancel.add(launch_id)
                else:
                    place.stopping.set()
                assert (await asker.to_the_end())[2]["state"] == "cancelled"
    assert host.launcher.graces == [5, 5]


async def test_an_asker_that_does_not_read_stalls_neither_the_api_nor_the_result(host: Host) -> None:
    host.launcher.output = [os.urandom(500_000) for _ in range(8)]
    whole = b"".join(host.launcher.output)
    reserve(host)
    async with host.agent():
        with Supervisor(host.tasks).launch() as asker:
            await asker.hear()
            await asker.say("start")
            await asyncio.wait_for(host.api.ended[ID].wait(), 10)
            assert host.api.logs[ID] == whole
            await until(lambda: not host.spooled())
            assert (await asker.to_the_end())[:2] == (whole, "ended")


async def test_an_asker_that_never_reads_is_let_go(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisors, "LAST_SECONDS", 0.1)
    host.launcher.output = [b"x" * 500_000] * 8
    reserve(host)
    reserve(host, "other", "2" * 32)
    async with host.agent(max_tasks=1):
        with Supervisor(host.tasks).launch() as asker, Supervisor(host.tasks).launch("other") as second:
            await asker.hear()
            await asker.say("start")
            assert (await second.hear())[1]["launch_id"] == "2" * 32


async def test_a_launcher_that_dies_after_its_claim_is_lost(host: Host) -> None:
    host.launcher.die_after_claim = True
    reserve(host)
    async with host.agent():
        with Supervisor(host.tasks).launch() as asker:
            await asker.hear()
            await asker.say("start")
            log, kind, fields = await asker.to_the_end()
            assert (log, kind, fields["state"]) == (b"hello\nworld\n", "ended", "lost")
        await until(lambda: host.api.logs.get(ID) == log and not host.spooled())


async def test_a_refusal_of_the_launcher_is_one(host: Host) -> None:
    host.launcher.say_refused = True
    reserve(host)
    async with host.agent():
        with Supervisor(host.tasks).launch() as asker:
            await asker.hear()
            await asker.say("start")
            assert (await asker.to_the_end())[1:] == ("refused", {"error": "unauthorized", "detail": "not here"})
        await asyncio.wait_for(host.api.ended[ID].wait(), 10)
    assert host.api.results[ID].state == "refused"


async def test_a_result_that_another_key_signed_is_no_last_word(host: Host) -> None:
    genuine, host.api.refuse_results = host.launcher.sign_result, True
    host.launcher.sign_result = lambda *given: genuine(*given)[:-4] + b'A"]}'  # type: ignore[method-assign]
    reserve(host)
    async with host.agent():
        with Supervisor(host.tasks).launch() as asker:
            await asker.hear()
            await asker.say("start")
            assert (await asker.to_the_end())[2]["state"] == "lost"


async def test_a_stop_before_the_start_ends_the_conversation_without_a_word(host: Host) -> None:
    reserve(host)
    async with host.agent() as place:
        with Supervisor(host.tasks).launch() as asker:
            await asker.hear()
            place.stopping.set()
            with pytest.raises(EOFError):
                await asker.hear()
    assert "claim" not in host.api.calls and host.api.refusals == {}


async def test_a_stop_lets_a_supervised_task_end(host: Host) -> None:
    host.launcher.hold = asyncio.Event()
    reserve(host)
    async with host.agent() as place:
        with Supervisor(host.tasks).launch() as asker:
            await asker.hear()
            await asker.say("start")
            await asyncio.wait_for(host.api.running.wait(), 10)
            place.stopping.set()
            host.launcher.hold.set()
            assert (await asker.to_the_end())[2]["state"] == "success"


@pytest.mark.parametrize("kind", ["start", "launch", "nonsense"])
async def test_a_word_out_of_turn_ends_the_task(host: Host, kind: str) -> None:
    host.launcher.hold = asyncio.Event()
    reserve(host)
    async with host.agent():
        with Supervisor(host.tasks).launch() as asker:
            await asker.hear()
            await asker.say("start")
            await asyncio.wait_for(host.api.running.wait(), 10)
            await asker.say(kind)
            await asyncio.wait_for(host.api.ended[ID].wait(), 10)
    assert host.api.results[ID].state == "cancelled"

"""A task through the coordinator: Airflow's real `supervise_task`, client and protocol around ours."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.api.client import ServerResponseError
from airflow.sdk.execution_time import comms, supervisor

from dagseal.airflow.supervising import SealedActivity
from integrity.errors import FetchError
from tests.supervised import (
    COORDINATOR,
    Api,
    Conversation,
    Gone,
    agent,
    configured,
    lines,
    supervise,
    task_instance,
)

Run = Callable[..., int]


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with configured(COORDINATOR, tmp_path, monkeypatch):
        yield


@pytest.fixture
def sock(tmp_path: Path) -> Path:
    return tmp_path / "tasks.sock"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "task.log"


def succeed() -> comms.SucceedTask:
    return comms.SucceedTask(end_date="2026-01-31T00:00:01Z", task_outlets=[], outlet_events=[])


def test_a_task_from_the_offer_to_its_success(sock: Path, logs: Path) -> None:
    api, ti = Api(), task_instance(map_index=4)
    asked: dict[str, Any] = {}

    def script(talk: Conversation) -> None:
        asked.update(talk.question())
        assert api.calls == [], "Airflow was told before the ticket was there"
        talk.offer()
        assert talk.receive().kind == "start"
        assert [path.rsplit("/")[-1] for _, path, _ in api.calls] == ["run"], (
            "the launcher was asked before Airflow agreed"
        )
        task: Any = comms.CommsDecoder(socket=talk.requests)
        startup = task._get_response()
        assert (startup.ti.id, startup.ti.map_index, startup.dag_rel_path) == (ti.id, 4, "etl.py")
        talk.log("stdout", "hello ")
        talk.log("stderr", "careful\n")
        talk.log("stdout", "world\nhalf")
        talk.log("log", '{"timestamp": "2026-01-31T00:00:00Z", "level": "warning", "event": "seen", "logger": "x"}\n')
        task.send(comms.SetXCom(key="k", value=1, dag_id="etl", run_id="r1", task_id="load", map_index=4))
        task.send(succeed())
        talk.end("success")

    with agent(sock, script):
        began = time.monotonic()
        assert supervise(api, logs, ti=ti) == 0
    assert time.monotonic() - began < 4, "the supervisor waited for nothing"
    assert asked["task_instance"] == str(ti.id) and asked["map_index"] == 4 and asked["try_number"] == 1
    assert api.states() == ["success"]
    assert api.calls[0][2]["pid"] == os.getpid()
    said = [(line.get("logger"), line["level"], line["event"]) for line in lines(logs)]
    assert ("task.stdout", "info", "hello world") in said
    assert ("task.stdout", "info", "half") in said
    assert ("task.stderr", "error", "careful") in said
    assert ("x", "warning", "seen") in said


ENDS: dict[str, tuple[dict[str, Any], Any, bool, list[str]]] = {
    # what the agent says, what the task had said, retries left -> what Airflow hears
    "success, told": ({"state": "success"}, succeed(), False, ["success"]),
    "success, not told": ({"state": "success"}, None, False, ["failed"]),
    "failed for good, retries left": (
        {"state": "failed", "exit_code": 1},
        comms.TaskState(state="failed", end_date="2026-01-31T00:00:01Z"),
        True,
        ["failed"],
    ),
    "skipped": (
        {"state": "skipped"},
        comms.TaskState(state="skipped", end_date="2026-01-31T00:00:01Z"),
        False,
        ["skipped"],
    ),
    "retry, told": (
        {"state": "up_for_retry", "exit_code": 1},
        comms.RetryTask(end_date="2026-01-31T00:00:01Z"),
        True,
        ["up_for_retry"],
    ),
    "deferred": (
        {"state": "deferred"},
        comms.DeferTask(classpath="a.B", trigger_kwargs={}, next_method="n", next_kwargs={}),
        True,
        ["deferred"],
    ),
    "rescheduled": (
        {"state": "up_for_reschedule"},
        comms.RescheduleTask(reschedule_date="2026-02-01T00:00:00Z", end_date="2026-01-31T00:00:01Z"),
        False,
        ["up_for_reschedule"],
    ),
    "refused": ({"state": "refused", "error": "digest-mismatch", "exit_code": 77}, None, True, ["failed"]),
    "refused with code 0": ({"state": "refused", "error": "digest-mismatch", "exit_code": 0}, None, True, ["failed"]),
    "cancelled": ({"state": "cancelled", "error": "cancelled", "exit_code": 137}, None, False, ["failed"]),
    "cancelled with code 0": ({"state": "cancelled", "error": "cancelled", "exit_code": 0}, None, False, ["failed"]),
    "lost": ({"state": "lost", "error": "lost", "exit_code": 0}, None, False, ["failed"]),
    "died": ({"state": "failed", "error": "task-died", "exit_code": 137}, None, False, ["failed"]),
    # Airflow's API learns of a death with retries left from the executor, whose task is not what it says
    "died, retries left": ({"state": "failed", "error": "task-died", "exit_code": 137}, None, True, []),
    "success by the launcher, killed after all": (
        {"state": "success", "error": "task-died", "exit_code": 0},
        None,
        False,
        ["failed"],
    ),
}


@pytest.mark.parametrize("case", ENDS)
def test_every_end_is_what_airflow_hears(case: str, sock: Path, logs: Path) -> None:
    says, told, retries, heard = ENDS[case]
    api = Api(should_retry=retries)

    def script(talk: Conversation) -> None:
        task = talk.begin()
        if told is not None:
            task.send(told)
        talk.end(says["state"], error=says.get("error", ""), exit_code=says.get("exit_code", 0))

    with agent(sock, script):
        code = supervise(api, logs)
    assert api.states() == heard
    assert (code == 0) == (not says.get("error") and told is not None)


def test_a_success_that_airflow_did_not_take_is_told_again_but_not_for_a_killed_task(sock: Path, logs: Path) -> None:
    api = Api()
    api.refuses["state"] = (409, "not now")

    def script(talk: Conversation) -> None:
        task = talk.begin()
        with pytest.raises(Exception, match=r"."):
            task.send(succeed())
        api.calls.clear()
        api.refuses.clear()
        talk.end("cancelled", error="cancelled", exit_code=137)

    with agent(sock, script):
        assert supervise(api, logs) != 0
    assert api.states() == ["failed"]


def test_an_agent_that_dies_is_a_killed_task(sock: Path, logs: Path) -> None:
    api = Api()

    def script(talk: Conversation) -> None:
        talk.begin()

    with agent(sock, script):
        assert supervise(api, logs) != 0
    assert api.states() == ["failed"]
    assert any("closed the connection before the task ended" in line["event"] for line in lines(logs))


def test_an_agent_that_speaks_nonsense_is_a_killed_task(sock: Path, logs: Path) -> None:
    api = Api()

    def script(talk: Conversation) -> None:
        talk.begin()
        talk.peer.sendall(b"\x00\x00\x00\x02{}")

    with agent(sock, script):
        assert supervise(api, logs) != 0
    assert api.states() == ["failed"]


@pytest.mark.parametrize("after_offer", [False, True])
def test_a_refusal_fails_for_good_and_says_why(after_offer: bool, sock: Path, logs: Path) -> None:
    api = Api(should_retry=True)

    def script(talk: Conversation) -> None:
        if after_offer:
            talk.begin()
        else:
            talk.question()
        talk.say("refused", error="digest-mismatch", detail="these are other bytes")

    with agent(sock, script):
        assert supervise(api, logs) != 0
    assert [path.rsplit("/")[-1] for _, path, _ in api.calls] == ["run", "state"]
    assert api.states() == ["failed"]
    assert any("digest-mismatch" in line["event"] and "these are other bytes" in line["event"] for line in lines(logs))


def test_airflow_says_no(sock: Path, logs: Path) -> None:
    api = Api()
    api.refuses["run"] = (409, {"reason": "invalid_state", "previous_state": "failed", "message": "no"})

    def script(talk: Conversation) -> None:
        talk.question()
        talk.offer()
        with pytest.raises(Gone):
            talk.receive()

    with agent(sock, script), pytest.raises(ServerResponseError):
        supervise(api, logs)


def test_what_the_filter_refuses_never_reaches_airflow(sock: Path, logs: Path) -> None:
    api = Api()
    answers: list[Any] = []

    def script(talk: Conversation) -> None:
        task = talk.begin("upstream")
        other = {"run_id": "r1", "task_id": "t", "key": "k"}
        for message in (
            comms.GetConnection(conn_id="warehouse"),
            comms.GetVariable(key="v"),
            comms.PutVariable(key="v", value="1", description=None),
            comms.GetXCom(dag_id="others", **other),
            comms.SetXCom(dag_id="etl", value=1, **other),
        ):
            with pytest.raises(Exception, match="PERMISSION_DENIED") as denied:
                task.send(message)
            answers.append(denied.value)
        task.send(comms.GetXCom(dag_id="upstream", **other))
        task.send(comms.GetXCom(dag_id="etl", **other))
        task.send(succeed())
        talk.end("success")

    with agent(sock, script):
        assert supervise(api, logs) == 0
    assert len(answers) == 5
    asked = [path for _, path, _ in api.calls]
    assert [path for path in asked if path.startswith("xcoms/")] == ["xcoms/upstream/r1/t/k", "xcoms/etl/r1/t/k"]
    assert not any(path.startswith(("connections", "variables")) for path in asked)


def test_a_signal_to_the_worker_cancels_with_grace(sock: Path, logs: Path) -> None:
    api = Api()

    def script(talk: Conversation) -> None:
        talk.begin()
        os.kill(os.getpid(), signal.SIGTERM)
        message = talk.receive()
        assert (message.kind, message.fields.integer("grace_seconds")) == ("cancel", 60)
        talk.end("cancelled", error="cancelled", exit_code=137)

    before = signal.getsignal(signal.SIGTERM)
    with agent(sock, script):
        # A signal that comes before the supervisor waits would end pytest: the window is the test's, not Airflow's.
        signal.signal(
            signal.SIGTERM, lambda number, frame: threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
        )
        try:
            assert supervise(api, logs) != 0
        finally:
            signal.signal(signal.SIGTERM, before)
    assert api.states() == ["failed"]


def test_airflow_no_longer_wants_the_task(sock: Path, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "MIN_HEARTBEAT_INTERVAL", 0.05)
    api = Api()
    api.refuses["heartbeat"] = (410, {"reason": "not_found", "message": "gone"})

    def script(talk: Conversation) -> None:
        talk.begin()
        assert talk.receive().kind == "cancel"
        talk.end("cancelled", error="cancelled", exit_code=137)

    with agent(sock, script):
        assert supervise(api, logs) != 0
    assert api.states() == []
    assert any(
        body == {"hostname": body["hostname"], "pid": os.getpid()}
        for _, p, body in api.calls
        if p.endswith("heartbeat")
    )


def test_an_agent_that_ignores_a_cancel_is_hung_up_on(sock: Path, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "MIN_HEARTBEAT_INTERVAL", 0.05)
    soon = functools.partialmethod(SealedActivity.kill, escalation_delay=0.05)
    monkeypatch.setattr(SealedActivity, "kill", soon)
    api = Api()
    api.refuses["heartbeat"] = (410, {"reason": "not_found", "message": "gone"})
    graces: list[int] = []

    def script(talk: Conversation) -> None:
        talk.begin()
        with pytest.raises(Gone):
            while True:
                graces.append(talk.receive().fields.integer("grace_seconds"))

    with agent(sock, script):
        assert supervise(api, logs) != 0
    assert graces == [60, 0]
    assert api.states() == []


def test_startup_details_that_do_not_fit_into_the_socket(sock: Path, logs: Path) -> None:
    api = Api(conf={"much": "x" * 2_000_000})

    def script(talk: Conversation) -> None:
        task = talk.begin()
        assert len(talk.startup.ti_context.dag_run.conf["much"]) == 2_000_000
        task.send(succeed())
        talk.end("success")

    with agent(sock, script):
        assert supervise(api, logs) == 0


@pytest.mark.parametrize(
    "line", ["[]", "{}", "no json", '{"level": "info", "timestamp": 7}', '{"level": {}, "event": 1}']
)
def test_a_structured_line_that_airflow_cannot_read_ends_nothing(line: str, sock: Path, logs: Path) -> None:
    api = Api()

    def script(talk: Conversation) -> None:
        task = talk.begin()
        talk.log("log", line + "\n")
        talk.log("stdout", "after it\n")
        task.send(succeed())
        talk.end("success")

    with agent(sock, script):
        assert supervise(api, logs) == 0
    assert "after it" in [line["event"] for line in lines(logs)]


def test_an_agent_that_is_restarted_is_asked_again(sock: Path, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dagseal.airflow.coordinator.ASK_AGAIN_SECONDS", 0.01)
    api = Api()

    def dies(talk: Conversation) -> None:
        talk.question()

    def works(talk: Conversation) -> None:
        task = talk.begin()
        task.send(succeed())
        talk.end("success")

    with agent(sock, dies, works):
        assert supervise(api, logs) == 0
    assert api.states() == ["success"]


def test_no_agent_means_that_airflow_is_told_nothing(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT", "0.1")
    api = Api()
    with pytest.raises(FetchError):
        supervise(api, logs)
    assert api.calls == []
    assert any("does not answer" in line["event"] for line in lines(logs))

"""The executors, which are Airflow's own below ours: what is reserved, what is sent, what stays queued."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from tests.scheduled import ARCHIVE, ENTRY, SCHEDULER, VERSION, Api, Celery, Local, callback, connected, queue, task

from airflow.executors.executor_loader import ExecutorLoader  # isort: skip
from airflow.executors.executor_utils import ExecutorName  # isort: skip
from airflow.executors.workloads import ExecuteTask  # isort: skip
from airflow.utils.state import CallbackState, TaskInstanceState  # isort: skip

from dagseal.airflow import executors
from dagseal.airflow.celery_executor import SealedCeleryExecutor
from dagseal.airflow.executors import SealedLocalExecutor
from vocabulary import taskdigest


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    for name, value in SCHEDULER.items():
        monkeypatch.setenv(name, value)
    return Api()


@pytest.fixture(params=[Local, Celery])
def executor(request: pytest.FixtureRequest, api: Api) -> Any:
    return connected(request.param(), api)


def test_what_is_queued_is_reserved_in_one_call_and_then_sent(executor: Any, api: Api) -> None:
    workloads = [task(executor, run_id=f"r{number}") for number in range(3)]
    queue(executor, *workloads)
    executor.trigger_tasks(10)
    (batch,) = api.batches
    assert {one["run_id"] for one in batch} == {"r0", "r1", "r2"}
    assert {one["run_id"] for one in batch} == {one.ti.run_id for one in executor.sent}
    first = next(one for one in batch if one["run_id"] == "r0")
    assert first == {
        "task_instance": str(workloads[0].ti.id), "queueing": executors.queueing(workloads[0].token), "dag_id": "etl",
        "task_id": "load", "run_id": "r0", "map_index": -1, "try_number": 1, "queue": "default", "set": VERSION,
        "task_digest": str(taskdigest.task_digest(ARCHIVE, "etl", "load", ENTRY, root="/none")), "valid_seconds": 300,
    }  # fmt: skip
    assert executor.queued_tasks == {}
    assert "the-token" not in str(executor.sent)


def test_each_queueing_of_a_task_instance_has_a_name_of_its_own(executor: Any) -> None:
    ti = str(uuid.uuid4())
    tokens = [ExecuteTask.generate_token(ti, executor.jwt_generator) for _ in range(50)]
    assert len({executors.queueing(token) for token in tokens}) == 50


def test_while_the_api_is_away_everything_stays_queued(
    executor: Any, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(executors.time, "monotonic", lambda: clock[0])
    queue(executor, task(executor))
    api.down = True
    clock[0] = 100.0
    executor.trigger_tasks(10)
    assert executor.sent == [] and len(executor.queued_tasks) == 1 and executor.event_buffer == {}
    api.down = False
    executor.trigger_tasks(10)
    assert executor.sent == [], "it is not asked again at once: Airflow's loop would hang in its timeouts"
    clock[0] += executors.AGAIN_SECONDS
    executor.trigger_tasks(10)
    assert len(executor.sent) == 1 and executor.queued_tasks == {}


BENDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "one is left out": lambda answer: {"reservations": answer["reservations"][1:]},
    "in another order": lambda answer: {"reservations": answer["reservations"][::-1]},
    "another queueing": lambda answer: {"reservations": [one | {"queueing": "x"} for one in answer["reservations"]]},
    "a field too many": lambda answer: {"reservations": [one | {"more": 1} for one in answer["reservations"]]},
    "no launch": lambda answer: {"reservations": [one | {"launch_id": ""} for one in answer["reservations"]]},
    "nothing": lambda answer: {},
}


@pytest.mark.parametrize("bend", BENDS)
def test_an_answer_that_is_not_one_sends_nothing(bend: str, executor: Any, api: Api) -> None:
    api.bend = BENDS[bend]
    queue(executor, task(executor, run_id="r1"), task(executor, run_id="r2"))
    executor.trigger_tasks(10)
    assert executor.sent == [] and len(executor.queued_tasks) == 2


def test_what_the_api_refuses_goes_to_the_worker_who_says_so_in_the_tasks_log(executor: Any, api: Api) -> None:
    api.refuses = "digest-mismatch"
    queue(executor, task(executor))
    executor.trigger_tasks(10)
    assert len(executor.sent) == 1


def test_what_has_no_launch_on_record_is_not_sent(executor: Any, api: Api) -> None:
    api.refuses = "out-of-scope"
    api.bend = lambda answer: {"reservations": [one | {"launch_id": None} for one in answer["reservations"]]}
    queue(executor, task(executor))
    executor.trigger_tasks(10)
    assert executor.sent == [] and executor.queued_tasks == {}
    ((state, why),) = executor.event_buffer.values()
    assert state == TaskInstanceState.FAILED and why.startswith("out-of-scope")


@pytest.mark.parametrize("named", [{"run_id": "a b"}, {"dag_id": "d/g"}, {"task_id": ""}])
def test_one_bad_name_holds_no_other_up(named: dict[str, str], executor: Any, api: Api) -> None:
    queue(executor, task(executor, **named), task(executor, run_id="good"))
    executor.trigger_tasks(10)
    assert [one.ti.run_id for one in executor.sent] == ["good"] == [one["run_id"] for one in api.batches[0]]


@pytest.mark.parametrize("version", [None, "", "1", "ab" * 32, VERSION.upper()])
def test_a_run_without_a_version_is_not_sent(version: str | None, executor: Any, api: Api) -> None:
    unversioned, good = task(executor, version=version, run_id="bad"), task(executor, run_id="good")
    queue(executor, unversioned, good)
    executor.trigger_tasks(10)
    assert [one.ti.run_id for one in executor.sent] == ["good"]
    state, why = executor.event_buffer[unversioned.ti.key]
    assert state == TaskInstanceState.FAILED and "SealedBundle" in why
    assert executor.queued_tasks == {} and unversioned.ti.key not in executor.running
    assert [one["run_id"] for one in api.batches[0]] == ["good"]


def test_a_queue_that_no_coordinator_serves_is_not_sent(executor: Any, api: Api) -> None:
    queue(executor, task(executor, queue="elsewhere"))
    executor.trigger_tasks(10)
    assert executor.sent == [] and api.batches == []
    ((state, why),) = executor.event_buffer.values()
    assert state == TaskInstanceState.FAILED and '"elsewhere": "dagseal"' in why


def test_a_callback_is_not_sent(executor: Any, api: Api) -> None:
    queue(executor, callback())
    executor.trigger_tasks(10)
    assert executor.sent == [] and api.batches == [] and executor.queued_callbacks == {}
    ((state, why),) = executor.event_buffer.values()
    assert state == CallbackState.FAILED and "worker's own user" in why


def test_no_connection_is_tested(executor: Any) -> None:
    assert executor.supports_connection_test is False


def test_not_enforced_everything_is_sent_and_told(
    executor: Any, api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIRFLOW__DAGSEAL__ENFORCE", "false")
    executor._log = logging.getLogger("tests.executor")
    queue(executor, task(executor, version=None, run_id="bad"), task(executor, run_id="good"))
    api.down = True
    executor.trigger_tasks(10)
    assert {one.ti.run_id for one in executor.sent} == {"bad", "good"}
    assert all(state != TaskInstanceState.FAILED for state, _ in executor.event_buffer.values())
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert any("(not enforced)" in line and "SealedBundle" in line for line in told)
    assert any("sent without a reservation (not enforced)" in line for line in told)


def test_an_unknown_set_or_task_has_no_digest(executor: Any, api: Api) -> None:
    queue(executor, task(executor, version="cd" * 64, run_id="r1"), task(executor, task_id="another", run_id="r2"))
    executor.trigger_tasks(10)
    assert [one["task_digest"] for one in api.batches[0]] == [None, None]


def test_airflow_finds_the_executors_by_their_short_paths() -> None:
    for name, found in {
        "SealedLocalExecutor": SealedLocalExecutor,
        "SealedCeleryExecutor": SealedCeleryExecutor,
    }.items():
        cls, _ = ExecutorLoader.import_executor_cls(ExecutorName(module_path=f"dagseal.airflow.{name}"))
        assert cls is found
    assert [one.name for one in SealedCeleryExecutor.get_cli_commands()] == ["celery"]

"""T33 fail-open: a message in the broker that Airflow's executor never sent, at Airflow's own Celery task.

Seen to fail when weakened: without the annotation each message below runs; with a `before_start` in its place what Celery's own
tasks call runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scheduled import SCHEDULER, Celery, callback, task
from tests.supervised import forget_coordinators

from airflow.executors.base_executor import BaseExecutor  # isort: skip
from airflow.executors.base_executor import ExecutorConf  # isort: skip
from airflow.providers.celery.executors import celery_executor_utils  # isort: skip

from dagseal.airflow import celery_worker  # isort: skip
from integrity.errors import SettingsError, UnauthorizedError


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Airflow's Celery application, made as a worker makes it."""
    for name, value in SCHEDULER.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AIRFLOW__CELERY__CELERY_CONFIG_OPTIONS", "dagseal.airflow.celery_worker.CONFIG")
    forget_coordinators()
    made = celery_executor_utils.create_celery_app(ExecutorConf(None))
    made.finalize()
    yield made
    forget_coordinators()


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Airflow would have run."""
    found: list[Any] = []
    monkeypatch.setattr(BaseExecutor, "run_workload", staticmethod(lambda workload, **_: found.append(workload)))
    return found


def foreign() -> dict[str, str]:
    executor = Celery()
    return {
        "a callback": callback().model_dump_json(),
        "a queue that no coordinator serves": task(executor, queue="elsewhere").model_dump_json(),
        "a run without a version": task(executor, version=None).model_dump_json(),
        "a name that is none": task(executor, dag_id="../etc").model_dump_json(),
    }


@pytest.mark.parametrize("way", foreign())
@pytest.mark.parametrize("through", ["the task", "by its name", "celery.map", "celery.starmap"])
def test_a_workload_that_was_never_sent_is_not_run(way: str, through: str, app: Any, ran: list[Any]) -> None:
    text = foreign()[way]
    tasks, name = app.tasks, {"task": celery_worker.TASK}
    ways = {
        "the task": lambda: tasks[celery_worker.TASK].run(text),
        "by its name": lambda: tasks[celery_worker.TASK].run(input=text),
        "celery.map": lambda: tasks["celery.map"].run(name, [text]),
        "celery.starmap": lambda: tasks["celery.starmap"].run(name, [[text]]),
    }
    with pytest.raises(UnauthorizedError, match="dagseal: not run: "):
        ways[through]()
    assert ran == []


def test_a_workers_trace_is_guarded_too(app: Any, ran: list[Any]) -> None:
    """As a message arrives: through Celery's own tracing of a task."""
    done = app.tasks[celery_worker.TASK].apply(args=[foreign()["a callback"]])
    assert done.state == "FAILURE" and isinstance(done.result, UnauthorizedError)
    assert ran == []


def test_what_was_sent_is_run(app: Any, ran: list[Any]) -> None:
    text = task(Celery()).model_dump_json()
    assert app.tasks[celery_worker.TASK].apply(args=[text]).state == "SUCCESS"
    (workload,) = ran
    assert json.loads(workload.model_dump_json()) == json.loads(text)


def test_without_enforcing_it_is_said_and_run(app: Any, ran: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__DAGSEAL__ENFORCE", "false")
    app.tasks[celery_worker.TASK].apply(args=[foreign()["a callback"]])
    assert len(ran) == 1


def test_a_scheduler_does_not_start_beside_unguarded_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.write_text("t")
    for name, value in {**SCHEDULER, "AIRFLOW__DAGSEAL__TOKEN_FILE": str(token)}.items():
        monkeypatch.setenv(name, value)
    celery_executor_utils.get_celery_configuration.cache_clear()
    with pytest.raises(SettingsError, match=r"celery_config_options = dagseal\.airflow\.celery_worker\.CONFIG"):
        Celery().start()

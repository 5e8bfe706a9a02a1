"""Runs one task with Airflow's own task runner: `RuntimeTaskInstance`, `run`, `finalize`; callbacks and listeners included.

The grant's `run` gives the dag run (all text, all optional): `logical_date`, `data_interval_start`, `data_interval_end`,
`run_after`, `start_date` in ISO 8601 (empty: the run has none), `run_type`, `conf` as JSON, `partition_key`. What is absent
is derived from the run id (`manual__2026-01-31T00:00:00+00:00`), else from the clock.
"""

from __future__ import annotations

import datetime
import functools
import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import structlog
from airflow.sdk import DAG
from airflow.sdk._shared.observability.metrics import stats
from airflow.sdk.api.datamodels._generated import DagRun, DagRunState, DagRunType, TaskInstanceState, TIRunContext
from airflow.sdk.configuration import conf
from airflow.sdk.execution_time import comms, task_runner
from airflow.sdk.observability.metrics import stats_utils
from pydantic import JsonValue

from integrity.errors import MalformedError
from launcher.task import bridge, logs, refusals, required
from launcher.task.comms import TaskComms
from launcher.task.xcoms import XComs
from vocabulary.grants import Secrets

_NAMESPACE = uuid.UUID("6f0b9c5e-2f0a-5c39-9a5e-3b5a2c4de7a1")
# Airflow builds this validator, which has no state, for every rendered field of every task: most of a small task's time.
task_runner.TypeAdapter = functools.cache(task_runner.TypeAdapter)
task_runner.TypeAdapter(JsonValue)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskName:
    """Which task of which run, and which attempt at it."""

    task_id: str
    run_id: str
    map_index: int
    try_number: int
    queue: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`state` is one of `vocabulary.claims.STATES`."""

    state: str
    exit_code: int
    detail: str
    xcoms: list[dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveBundle:
    """What Airflow's task instance wants to know of the bundle it came from."""

    name: str
    version: str
    path: str


def run(
    dag: DAG,
    name: TaskName,
    secrets: Secrets,
    *,
    dags: Iterable[DAG],
    bundle: ArchiveBundle,
) -> Outcome:
    """Run the task of `dag`, one of the archive's `dags`, to its end.

    Raises `MalformedError` when the grant's `run` cannot be read.
    """
    now = datetime.datetime.now(datetime.UTC)
    dag_run = _dag_run(dag.dag_id, name.run_id, secrets.run, now)
    task = dag.task_dict[name.task_id]
    log = begin()
    max_tries = max(int(task.retries or 0), 0)
    ti = task_runner.RuntimeTaskInstance.model_construct(
        id=uuid.uuid5(_NAMESPACE, json.dumps([dag.dag_id, name.task_id, name.run_id, name.map_index, name.try_number])),
        dag_version_id=uuid.uuid5(_NAMESPACE, bundle.version),
        task_id=name.task_id,
        dag_id=dag.dag_id,
        run_id=name.run_id,
        try_number=name.try_number,
        map_index=name.map_index,
        queue=name.queue,
        hostname=None,
        context_carrier=None,
        task=task,
        bundle_instance=bundle,
        _ti_context_from_server=TIRunContext(
            dag_run=dag_run,
            task_reschedule_count=0,
            max_tries=max_tries,
            should_retry=name.try_number <= max_tries,
        ),
        max_tries=max_tries,
        start_date=now,
        state=TaskInstanceState.RUNNING,
        sentry_integration="",
    )
    xcoms = XComs(secrets.xcoms, task_id=name.task_id, map_index=name.map_index)
    ours = TaskComms(
        dag=dag,
        dags=dags,
        dag_run=dag_run,
        xcoms=xcoms,
        xcom_dags=required.declared(dag, task, bundle.name).xcom_dags,
        task_id=name.task_id,
        map_index=name.map_index,
    )
    try:
        state, error = execute(ti, ours, log)
    except Exception as failure:  # before or after the task itself: wrong params, a listener, an extra link
        log.exception("Task could not be run")
        return Outcome(
            state="failed", exit_code=1, detail=logs.masked(refusals.describe(failure)), xcoms=xcoms.pushed()
        )
    return outcome(state, refusals.describe(error) if error else _explain(ours), xcoms.pushed())


def begin() -> Any:
    """What Airflow does before it knows the task; the task's logger."""
    stats.initialize(
        factory=stats_utils.get_stats_factory(), export_legacy_names=conf.getboolean("metrics", "legacy_names_on")
    )
    log = structlog.get_logger(logger_name="task")
    log.info("::group::Pre Execute")  # printed by the part of Airflow's runner that is not run here; it prints the end
    return log


def execute(
    ti: task_runner.RuntimeTaskInstance, answers: bridge.Answers, log: Any
) -> tuple[TaskInstanceState, BaseException | None]:
    """Airflow's own run and finalize, with `answers` for what the task asks. Raises whatever goes wrong around the task."""
    task_runner.SUPERVISOR_COMMS = answers
    if bridge.is_wanted(ti.task):
        bridge.start(answers)
    task_runner._register_deserialization_allowed_classes(ti.task.dag, log)
    context = ti.get_template_context()
    state, _, error = task_runner.run(ti, context, log)
    context["exception"] = error
    task_runner.finalize(ti, state, context, log, error)
    return state, error


def outcome(state: TaskInstanceState | None, detail: str, xcoms: list[dict[str, str]]) -> Outcome:
    """As the launcher is told it."""
    word = state.value if state else "failed"
    if word not in ("success", "failed", "skipped", "up_for_retry", "up_for_reschedule", "deferred"):
        word, detail = "failed", detail or f"Airflow's state {word} does not exist here"
    return Outcome(
        state=word,
        exit_code=1 if word in ("failed", "up_for_retry") else 0,
        detail=refusals.shorten(logs.masked(detail)),
        xcoms=xcoms,
    )


def _explain(ours: TaskComms) -> str:
    """What there is to say of a task that did not fail."""
    match ours.outcome:
        case comms.RescheduleTask(reschedule_date=date):
            return f"again at {date.isoformat()}"
        case comms.DeferTask(classpath=classpath):
            return f"waits for the trigger {classpath}, which nothing here runs"
        case comms.AwaitInputTask():
            return "waits for a human"
        case _:
            return f"skips {', '.join(ours.skipped)}" if ours.skipped else ""


def _dag_run(dag_id: str, run_id: str, given: dict[str, str], now: datetime.datetime) -> DagRun:
    kind, _, moment = run_id.partition("__")
    logical_date = _moment(given, "logical_date", _moment_or(moment, now))
    try:
        conf_value = json.loads(given["conf"]) if given.get("conf") else {}
    except ValueError:
        raise MalformedError("the grant's run conf is not JSON") from None
    run_type = given.get("run_type") or kind
    return DagRun(
        dag_id=dag_id,
        run_id=run_id,
        logical_date=logical_date,
        data_interval_start=_moment(given, "data_interval_start", logical_date),
        data_interval_end=_moment(given, "data_interval_end", logical_date),
        run_after=_moment(given, "run_after", logical_date) or now,
        start_date=_moment(given, "start_date", now),
        end_date=None,
        run_type=DagRunType(run_type) if run_type in {one.value for one in DagRunType} else DagRunType.MANUAL,
        state=DagRunState.RUNNING,
        conf=conf_value,
        consumed_asset_events=[],
        partition_key=given.get("partition_key") or None,
    )


def _moment(given: dict[str, str], key: str, otherwise: datetime.datetime | None) -> datetime.datetime | None:
    if key not in given:
        return otherwise
    if not given[key]:
        return None
    try:
        return _aware(given[key])
    except ValueError:
        raise MalformedError(f"the grant's run {key} is not an ISO 8601 time: {given[key]!r:.80}") from None


def _moment_or(text: str, otherwise: datetime.datetime) -> datetime.datetime:
    try:
        return _aware(text)
    except ValueError:
        return otherwise


def _aware(text: str) -> datetime.datetime:
    moment = datetime.datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)

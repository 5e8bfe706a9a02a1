"""Runs one task at the side of Airflow's own supervisor, which it asks over a socket in Airflow's own protocol (ADR-0025).

Promise: the socket is not here before the launch was granted, is read after the secrets came, and is not inherited by what the
task starts. The supervisor's first word is to be the startup of the very task of the job. Connections, variables and masked
values are answered from the grant (`launcher.task.granted`): of those nothing is asked and nothing is told. Everything else
(XComs, states, deferral, assets, the history of runs) is the supervisor's, and what its API holds.

What Airflow does between a process's start and a task's end is done here in its order, but for what the launcher did before:
finding and importing the dag file, becoming the user. A bundle's version is not locked, as the archive is in memory, and the
process keeps its title.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from airflow.sdk import DAG
from airflow.sdk.api.datamodels._generated import TaskInstanceState
from airflow.sdk.execution_time import comms, task_runner
from airflow.sdk.listener import get_listener_manager
from opentelemetry.trace import Status, StatusCode
from pydantic import TypeAdapter
from structlog.contextvars import bind_contextvars

from integrity.errors import MalformedError, SecurityError
from launcher.task import frames, logs, refusals, runner
from launcher.task.granted import FROM_GRANT
from launcher.task.runner import ArchiveBundle, Outcome, TaskName

SUPERVISOR_FD = logs.LOG_FD + 1
# Airflow builds this validator, which has no state, twice for each task.
_ANSWERS: TypeAdapter[comms.ToTask] = TypeAdapter(comms.ToTask)


class SupervisorComms(comms.CommsDecoder[comms.ToTask, comms.ToSupervisor]):  # type: ignore[misc]
    """Airflow's, but for what the grant answers. Safe for threads, as Airflow's is."""

    def send(self, msg: Any) -> Any:
        answer = FROM_GRANT.get(type(msg))
        return answer(msg) if answer else super().send(msg)

    async def asend(self, msg: Any) -> Any:
        answer = FROM_GRANT.get(type(msg))
        return answer(msg) if answer else await super().asend(msg)


def reserve() -> None:
    """Keep the socket's number free while the archive is imported."""
    os.dup2(0, SUPERVISOR_FD, inheritable=False)


def receive(control: socket.socket) -> None:
    """Wait for the socket: it comes with the grant. Raises `EOFError` when there is none."""
    message, (fd,) = frames.receive(control, fds=1)
    if message.kind != "supervisor":
        raise MalformedError(f"the supervisor's socket is expected, not {message.kind!r}")
    message.fields.done()
    os.dup2(fd, SUPERVISOR_FD, inheritable=False)
    os.close(fd)


def run(dag: DAG, name: TaskName, *, bundle: ArchiveBundle) -> Outcome:
    """Run the task of `dag` to its end. Raises `SecurityError` when the supervisor is not that of this task."""
    with socket.socket(fileno=SUPERVISOR_FD) as sock:
        supervisor = SupervisorComms(socket=sock, body_decoder=_ANSWERS, err_decoder=_ANSWERS)
        task_runner.SUPERVISOR_COMMS = supervisor
        log = runner.begin()
        details = _startup_details(supervisor, dag.dag_id, name)
        with task_runner.flush_spans(), task_runner._make_task_span(msg=details) as span:
            try:
                return _run(dag, details, supervisor, log, bundle)
            except BaseException as failure:  # around the task itself: a listener, wrong params, an exit in a callback
                log.exception("Top level error")
                span.record_exception(failure)
                span.set_status(Status(StatusCode.ERROR, description=f"Exception: {type(failure).__name__}"))
                return runner.outcome(TaskInstanceState.FAILED, refusals.describe(failure), [])


def _startup_details(supervisor: SupervisorComms, dag_id: str, name: TaskName) -> comms.StartupDetails:
    try:
        details = supervisor._get_response()
    except Exception as error:
        raise SecurityError(f"the supervisor's first word cannot be used: {refusals.describe(error)}") from error
    if not isinstance(details, comms.StartupDetails):
        raise SecurityError(f"the supervisor's first word is {type(details).__name__}, not StartupDetails")
    ti = details.ti
    theirs = (ti.dag_id, ti.task_id, ti.run_id, -1 if ti.map_index is None else ti.map_index, ti.try_number)
    ours = (dag_id, name.task_id, name.run_id, name.map_index, name.try_number)
    if theirs != ours:
        raise SecurityError(f"the supervisor is that of task {theirs!r:.1000}, this launch is for {ours!r:.1000}")
    return details


def _run(
    dag: DAG, details: comms.StartupDetails, supervisor: SupervisorComms, log: Any, bundle: ArchiveBundle
) -> Outcome:
    bind_contextvars(
        ti_id=str(details.ti.id),
        dag_id=details.ti.dag_id,
        task_id=details.ti.task_id,
        run_id=details.ti.run_id,
        try_number=details.ti.try_number,
        map_index=details.ti.map_index,
    )
    try:
        get_listener_manager().hook.on_starting(component=task_runner.TaskRunnerMarker())
    except Exception:
        log.exception("error calling listener")
    ti = task_runner.RuntimeTaskInstance.model_construct(
        **details.ti.model_dump(exclude_unset=True),
        task=dag.task_dict[details.ti.task_id],
        bundle_instance=bundle,
        _ti_context_from_server=details.ti_context,
        max_tries=details.ti_context.max_tries,
        start_date=details.start_date,
        state=TaskInstanceState.RUNNING,
        sentry_integration=details.sentry_integration,
    )
    state, error = runner.execute(ti, supervisor, log)
    if getattr(ti, "_terminal_state_send_failed", False):
        return runner.outcome(TaskInstanceState.FAILED, f"the supervisor did not take the state {state.value}", [])
    if state == TaskInstanceState.AWAITING_INPUT:  # which is Airflow's to remember; here it is one that goes on later
        state = TaskInstanceState.DEFERRED
    return runner.outcome(state, refusals.describe(error) if error else "", [])

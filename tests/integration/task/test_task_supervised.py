"""Supervised tasks: real warm process, real Airflow on both ends of the socket; only Airflow's API server is a dict."""

from __future__ import annotations

import socket

import pytest
from supervisor_rig import RUN_ID, Supervisor
from task_rig import Grant, Warm

SHOP = "postgresql://u:hunter2secret@db.example/shop"
GRANT = Grant(connections={"shop": SHOP}, variables={"greeting": "good morning"})
DAG = b"""
import os, sys, datetime
from airflow.sdk import DAG, Asset, BaseHook, Variable, task
from airflow.sdk.exceptions import AirflowSkipException
from airflow.providers.standard.operators.python import ShortCircuitOperator
from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync

def fds():
    found = {}
    for fd in range(256):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}").partition(":")[0]
        except OSError:
            pass
    return found
AT_IMPORT = fds()

def note(word):
    return lambda context: print("callback", word, context["ti"].task_id, type(context.get("exception")).__name__)

with DAG("s", schedule=None, start_date=datetime.datetime(2026, 1, 1)):
    @task
    def push(ti=None, dag_run=None):
        ti.xcom_push("more", {"a": [1, None]})
        return [ti.try_number, str(ti.id), dag_run.conf["size"], dag_run.run_type, ti.get_template_context()["ds"]]
    @task
    def pull(value, ti=None):
        return [value, ti.xcom_pull(task_ids="push", key="more"), ti.xcom_pull(task_ids="nobody")]
    @task
    def secrets():
        import airflow.sdk.execution_time.task_runner as runner
        from airflow.sdk.execution_time.comms import GetConnection
        asked = runner.SUPERVISOR_COMMS.send(GetConnection(conn_id="shop"))
        found = [BaseHook.get_connection("shop").password, asked.password, Variable.get("greeting")]
        found += [Variable.get("absent", default="x"), list(Variable.keys(prefix="g"))]
        for ask in (lambda: BaseHook.get_connection("other"), lambda: Variable.get("other")):
            try:
                ask()
            except Exception as error:
                found.append(type(error).__name__)
        print("the password is", found[0])
        return [found[1] == found[0] == "hunter2" + "secret", *found[2:]]
    @task
    def write():
        Variable.set("greeting", "evil")
    @task(retries=1, on_retry_callback=note("retry"), on_failure_callback=note("failure"))
    def fails():
        raise ValueError("no hunter2secret here")
    @task
    def skips():
        raise AirflowSkipException("not today")
    @task.sensor(mode="reschedule", poke_interval=60)
    def waits():
        return False
    @task(outlets=[Asset("s3://bucket/one")], on_success_callback=note("success"))
    def makes():
        return 1
    @task
    def mapped(x):
        return x * 2
    @task
    def exits():
        sys.exit(3)
    @task(on_success_callback=lambda context: sys.exit(5))
    def exits_late():
        pass
    @task
    def look():
        return {"at_import": AT_IMPORT, "in_task": fds(), "inherited": os.popen("ls /proc/self/fd").read().split()}
    @task.external_python(python=sys.executable)
    def elsewhere():
        from airflow.sdk import BaseHook, Variable
        found = [BaseHook.get_connection("shop").password, Variable.get("greeting")]
        try:
            Variable.set("greeting", "evil")
        except Exception as error:
            found.append(type(error).__name__)
        import os
        return found + [[os.readlink(f"/proc/self/fd/{fd}")[:6] for fd in (7,) if os.path.exists(f"/proc/self/fd/{fd}")]]
    pull(push()); secrets(); write(); fails(); skips(); waits(); makes(); exits(); exits_late(); look(); elsewhere()
    mapped.expand(x=[1, 2, 3])
    DateTimeSensorAsync(task_id="defers", target_time="2030-01-01T00:00:00+00:00")
    ShortCircuitOperator(task_id="short", python_callable=lambda: False) >> makes.override(task_id="after")()
"""


def test_xcoms_and_the_run_are_the_supervisors(runner: Warm, supervisor: Supervisor) -> None:
    pushed = supervisor.run(runner, DAG, "s", "push")
    assert (pushed.answer.state, pushed.state, pushed.answer.fields["exit_code"]) == ("success", "success", 0), pushed
    value = [1, "01938e5c-7a5e-7b4c-9e0d-7f1f3c2b1a00", 7, "scheduled", "2026-01-31"]
    assert (pushed.pushed(), pushed.pushed("more")) == (value, {"a": [1, None]})
    assert pushed.answer.fields["xcoms"] == []
    pulled = supervisor.run(runner, DAG, "s", "pull")
    assert pulled.pushed() == [value, {"a": [1, None]}, None]
    assert pulled.told("/rtif")["op_args"] == [value]


def test_secrets_are_the_grants_and_none_is_told_to_the_supervisor(runner: Warm, supervisor: Supervisor) -> None:
    ran = supervisor.run(runner, DAG, "s", "secrets", grant=GRANT)
    assert ran.state == "success", ran.answer.log
    refused = ["AirflowSecretsBackendAccessDenied", "VariableNotGrantedError"]
    assert ran.pushed() == [True, "good morning", "x", ["greeting"], *refused], ran
    assert set(ran.asked) <= {"SetRenderedFields", "SetXCom", "SucceedTask"}
    assert "hunter2secret" not in str(ran.calls) + ran.answer.log
    assert "the password is ***" in ran.answer.log


def test_writing_a_variable_is_the_supervisors_to_refuse(runner: Warm, supervisor: Supervisor) -> None:
    ran = supervisor.run(runner, DAG, "s", "write", grant=GRANT)
    assert "PutVariable" in ran.asked
    assert (ran.answer.state, ran.state) == ("up_for_retry", "up_for_retry")


@pytest.mark.parametrize(
    ("task_id", "ours", "airflows", "asked"),
    [
        ("skips", "skipped", "skipped", "TaskState"),
        ("waits", "up_for_reschedule", "up_for_reschedule", "RescheduleTask"),
        ("defers", "deferred", "deferred", "DeferTask"),
        ("short", "success", "success", "SkipDownstreamTasks"),
        ("exits", "up_for_retry", "up_for_retry", "RetryTask"),
    ],
)
def test_ways_to_end(runner: Warm, supervisor: Supervisor, task_id: str, ours: str, airflows: str, asked: str) -> None:
    ran = supervisor.run(runner, DAG, "s", task_id)
    assert (ran.answer.state, ran.state) == (ours, airflows), ran
    assert asked in ran.asked


def test_a_deferred_task_goes_on_where_airflow_says(runner: Warm, supervisor: Supervisor) -> None:
    context = {"next_method": "execute_complete", "next_kwargs": {}, "start_date": "2026-01-31T01:02:03Z"}
    ran = supervisor.run(runner, DAG, "s", "defers", context=context)
    assert (ran.answer.state, ran.state) == ("success", "success"), ran.answer.log
    assert "DeferTask" not in ran.asked


def test_a_retry_is_airflows_to_decide(runner: Warm, supervisor: Supervisor) -> None:
    first = supervisor.run(runner, DAG, "s", "fails", grant=GRANT)
    assert (first.answer.state, first.state, first.answer.fields["exit_code"]) == ("up_for_retry", "up_for_retry", 1)
    assert "callback retry fails ValueError" in first.answer.log
    assert first.answer.fields["detail"] == "ValueError: no *** here"
    last = supervisor.run(runner, DAG, "s", "fails", context={"should_retry": False}, try_number=2)
    assert (last.answer.state, last.state) == ("failed", "failed")
    assert "callback failure fails ValueError" in last.answer.log


def test_assets_and_callbacks(runner: Warm, supervisor: Supervisor) -> None:
    ran = supervisor.run(runner, DAG, "s", "makes")
    assert ran.state == "success", ran.answer.log
    assert ran.told("/state")["task_outlets"][0]["uri"] == "s3://bucket/one"
    assert "ValidateInletsAndOutlets" in ran.asked
    assert "callback success makes NoneType" in ran.answer.log


def test_one_of_a_mapped_task(runner: Warm, supervisor: Supervisor) -> None:
    ran = supervisor.run(runner, DAG, "s", "mapped", map_index=2)
    assert (ran.state, ran.pushed()) == ("success", 6), ran.answer.log


def test_keys_that_the_server_wants_cleared_are(runner: Warm, supervisor: Supervisor) -> None:
    ran = supervisor.run(runner, DAG, "s", "push", context={"xcom_keys_to_clear": ["more"]})
    assert ran.asked.index("DeleteXCom") < ran.asked.index("SetXCom")


def test_what_exits_after_the_end_is_a_failure_here_and_told_already(runner: Warm, supervisor: Supervisor) -> None:
    ran = supervisor.run(runner, DAG, "s", "exits_late")
    assert (ran.answer.kind, ran.answer.state, ran.state) == ("finished", "failed", "success"), ran


def test_the_socket_is_not_there_at_import_and_is_not_inherited(runner: Warm, supervisor: Supervisor) -> None:
    found = supervisor.run(runner, DAG, "s", "look").pushed()
    kinds = {"0": "/dev/null", "1": "pipe", "2": "pipe", "3": "socket", "4": "/memfd", "5": "pipe", "6": "pipe"}
    assert found["at_import"] == {**kinds, "7": "/dev/null"}
    assert found["in_task"] == {**{fd: kind for fd, kind in kinds.items() if fd != "5"}, "7": "socket"}
    assert found["inherited"] == ["0", "1", "2", "3"]  # 3 is the folder that ls reads


def test_a_python_in_another_environment_asks_through_its_task(runner: Warm, supervisor: Supervisor) -> None:
    ran = supervisor.run(runner, DAG, "s", "elsewhere", grant=GRANT)
    assert ran.state == "success", ran.answer.log
    assert ran.pushed() == ["hunter2secret", "good morning", "AirflowRuntimeError", []], ran.answer.log
    assert not {"GetConnection", "GetVariable", "MaskSecret", "ResendLoggingFD"} & set(ran.asked)


@pytest.mark.parametrize(
    "changes",
    [
        {"dag_id": "other"},
        {"task_id": "pull"},
        {"run_id": "manual__1"},
        {"map_index": 0},
        {"try_number": 2},
    ],
)
def test_the_startup_of_another_task_is_refused(
    runner: Warm, supervisor: Supervisor, changes: dict[str, object]
) -> None:
    named = {"dag_id": "s", "task_id": "push", "run_id": RUN_ID, "map_index": -1, "try_number": 1, **changes}
    sock = supervisor.watch(**named)  # type: ignore[arg-type]
    ran = supervisor.report(runner.run("s.py", DAG, "s", "push", supervisor=sock, run_id=RUN_ID))
    assert (ran.answer.kind, ran.answer.fields["error"]) == ("refused", "security"), ran.answer
    assert "the supervisor is that of task" in ran.answer.fields["detail"]
    assert ran.asked == []


@pytest.mark.parametrize("first", [b"", b"\x00\x00\x00\x01\xc0", b"\x00\x00\x00\x03\x93\x00\xc0", b"junk"])
def test_a_first_word_that_is_no_startup_is_refused(runner: Warm, first: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(first)
        ours.shutdown(socket.SHUT_WR)
        ran = runner.run("s.py", DAG, "s", "push", supervisor=theirs, run_id=RUN_ID)
    assert (ran.kind, ran.fields["error"]) == ("refused", "security"), ran


def test_a_supervisor_that_goes_away_fails_the_task(runner: Warm, supervisor: Supervisor) -> None:
    """Whatever the task did: nobody was told, so nobody may believe that it succeeded."""
    sock = supervisor.watch("s", "push", leaves=True)
    ran = supervisor.report(runner.run("s.py", DAG, "s", "push", supervisor=sock, run_id=RUN_ID))
    assert (ran.answer.kind, ran.answer.state, ran.answer.fields["exit_code"]) == ("finished", "failed", 1), ran

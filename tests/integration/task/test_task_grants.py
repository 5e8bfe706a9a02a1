"""Connections, variables and XComs arrive by the pipe, are masked in the log, and nothing else is answered."""

from __future__ import annotations

import json

from task_rig import Grant, Warm

DAG = b"""
import sys
from airflow.sdk import BaseHook, Connection, DAG, Variable, task
from airflow.providers.standard.operators.bash import BashOperator

with DAG("d", schedule=None):
    @task
    def connect(conn_id):
        found = BaseHook.get_connection(conn_id)
        print("password is", found.password)
        print("extra is", found.extra, file=sys.stderr)
        return [found.host, found.password, found.extra_dejson]

    @task
    def early():
        print("seen: hunter2secret before it was asked for")

    @task
    def rehearsed():
        print("shown: not-a-secret")
        BaseHook.get_connection("dagseal_rehearsal")

    @task
    def variables():
        return [Variable.get("greeting"), Variable.get("sizes", deserialize_json=True), Variable.get("none", default="x")]

    @task
    def legacy():
        return [BaseHook.get_connection("legacy_db").login, Variable.get("region")]

    @task
    def names():
        return list(Variable.keys(prefix="g"))

    @task
    def missing():
        Variable.get("absent")

    @task
    def write():
        Variable.set("greeting", "changed")

    @task(retries=1)
    def retried():
        raise ValueError("leaks hunter2secret")

    connect.override(task_id="granted")("shop")
    connect.override(task_id="ungranted")("other")
    early(); rehearsed(); variables(); legacy(); names(); missing(); write(); retried()
    BashOperator(task_id="template", bash_command="echo {{ var.value.greeting }} {{ conn.shop.host }}; echo hunter2secret")
"""
GRANT = Grant(
    connections={
        "shop": json.dumps(
            {
                "conn_type": "http",
                "host": "shop.example",
                "password": "hunter2secret",
                "extra": {"token": "tok-4711-tok"},
            }
        )
    },
    variables={"greeting": "good morning", "sizes": "[1, 2.5]"},
)


def test_a_connection_arrives_and_is_masked(runner: Warm) -> None:
    ran = runner.run("d.py", DAG, "d", "granted", GRANT)
    assert ran.xcom() == ["shop.example", "hunter2secret", {"token": "tok-4711-tok"}]
    assert "password is ***" in ran.log and "extra is ***" in ran.log
    assert "hunter2secret" not in ran.log and "tok-4711-tok" not in ran.log


def test_masking_begins_with_the_delivery(runner: Warm) -> None:
    ran = runner.run("d.py", DAG, "d", "early", GRANT)
    assert "seen: *** before" in ran.log


def test_nothing_is_left_of_what_the_rehearsal_was_granted(runner: Warm) -> None:
    ran = runner.run("d.py", DAG, "d", "rehearsed", GRANT)
    assert "shown: not-a-secret" in ran.log
    assert ran.state == "failed" and "connection 'dagseal_rehearsal' was not granted" in ran.fields["detail"]


def test_what_was_not_granted_fails_with_the_command_that_grants_it(runner: Warm) -> None:
    ran = runner.run("d.py", DAG, "d", "ungranted", GRANT)
    assert (ran.state, ran.fields["exit_code"]) == ("failed", 1)
    assert "connection 'other' was not granted to this task" in ran.fields["detail"]
    assert "dagseal connection grant" in ran.fields["detail"]


def test_variables(runner: Warm) -> None:
    assert runner.run("d.py", DAG, "d", "variables", GRANT).xcom() == ["good morning", [1, 2.5], "x"]
    assert runner.run("d.py", DAG, "d", "names", GRANT).xcom() == ["greeting"]
    missing = runner.run("d.py", DAG, "d", "missing", GRANT)
    assert missing.state == "failed" and "variable 'absent' was not granted" in missing.fields["detail"]
    written = runner.run("d.py", DAG, "d", "write", GRANT)
    assert written.state == "failed" and "may not change variables" in written.fields["detail"]


def test_allow_listed_environment_is_answered_for_backward_compatibility(runner: Warm) -> None:
    assert runner.run("d.py", DAG, "d", "legacy").xcom() == ["u", "eu-west"]


def test_the_grant_comes_before_the_environment(runner: Warm) -> None:
    grant = Grant(connections={"legacy_db": "postgres://granted@h/db"}, variables={"region": "granted"})
    assert runner.run("d.py", DAG, "d", "legacy", grant).xcom() == ["granted", "granted"]


def test_templates_and_subprocess_output(runner: Warm) -> None:
    ran = runner.run("d.py", DAG, "d", "template", GRANT)
    assert ran.state == "success", ran
    # A variable's value is a secret like any other, so the log shows neither.
    assert "*** shop.example" in ran.log
    assert "hunter2secret" not in ran.log


def test_a_retry_and_its_masked_reason(runner: Warm) -> None:
    first = runner.run("d.py", DAG, "d", "retried", GRANT)
    assert (first.state, first.fields["detail"]) == ("up_for_retry", "ValueError: leaks ***")
    last = runner.run("d.py", DAG, "d", "retried", GRANT, try_number=2)
    assert (last.state, last.fields["exit_code"]) == ("failed", 1)


XCOM_DAG = b"""
from airflow.sdk import DAG, task
with DAG("x", schedule=None):
    @task
    def push(ti=None):
        ti.xcom_push(key="extra", value={"f": 0.5})
        return [1, 2]

    @task
    def pull(values, ti=None):
        return {
            "arg": values,
            "by_key": ti.xcom_pull(task_ids="push", key="extra"),
            "several": list(ti.xcom_pull(task_ids=["push", "double"])),
            "none": ti.xcom_pull(task_ids="push", key="nothing"),
            "own": ti.xcom_pull(task_ids="pull"),
        }

    @task
    def double(value):
        return value * 2

    @task
    def total(values):
        return [sum(values), len(values), values[-1], list(values[:1])]

    @task
    def forge():
        from airflow.sdk.execution_time.xcom import XCom
        XCom.set(key="return_value", value=1, dag_id="x", task_id="push", run_id="manual__2026-01-31T00:00:00+00:00")

    @task
    def flood(ti=None):
        ti.xcom_push(key="big", value="x" * 2_000_000)

    pushed = push()
    pull(pushed)
    total(double.expand(value=pushed))
    forge(); flood()
"""


def test_xcoms_flow_through_a_run(runner: Warm) -> None:
    xcoms: list[dict[str, object]] = []

    def run(task_id: str, map_index: int = -1) -> object:
        ran = runner.run("x.py", XCOM_DAG, "x", task_id, Grant(xcoms=tuple(xcoms)), map_index=map_index)
        assert ran.state == "success", ran
        xcoms.extend({"task_id": task_id, "map_index": map_index, **xcom} for xcom in ran.fields["xcoms"])
        return ran.xcom()

    assert run("push") == [1, 2]
    assert [run("double", 0), run("double", 1)] == [2, 4]
    assert run("pull") == {
        "arg": [1, 2],
        "by_key": {"f": 0.5},
        "several": [[1, 2], 2, 4],
        "none": None,
        "own": None,
    }
    assert run("total") == [6, 2, 4, [2]]


OTHERS_DAG = b"""
from airflow.sdk import DAG, task
with DAG("y", schedule=None):
    @task
    def reads(ti=None):
        return [ti.xcom_pull(dag_id="x", task_ids="push", key=key) for key in ("extra", "nothing")]

    @task
    def elsewhere(ti=None):
        return ti.xcom_pull(dag_id="elsewhere", task_ids="push")

    @task
    def late(ti=None):
        return ti.xcom_pull(task_ids="push", run_id="manual__2020-01-31T00:00:00+00:00")

    declared = {"dagseal": {"xcom_dags": ["x"]}}
    reads.override(executor_config=declared)()
    reads.override(task_id="undeclared")()
    elsewhere.override(executor_config=declared)()
    late.override(executor_config=declared)()
"""


def test_xcoms_of_another_dag_are_those_that_were_granted(runner: Warm) -> None:
    xcom = {"dag_id": "x", "task_id": "push", "map_index": -1, "key": "extra", "value": '{"f":0.5}'}
    granted = Grant(xcoms=(xcom, {**xcom, "dag_id": "elsewhere", "key": "return_value"}))
    assert runner.run("y.py", OTHERS_DAG, "y", "reads", granted).xcom() == [{"f": 0.5}, None]
    for task_id, says in (
        (
            "undeclared",
            "XComs of dag 'x' were not granted to this task: declare that it reads them by executor_config=",
        ),
        ("elsewhere", "XComs of dag 'elsewhere' were not granted to this task"),
        ("late", "XComs of run 'manual__2020-01-31T00:00:00+00:00': a task is given those of its own run only"),
    ):
        ran = runner.run("y.py", OTHERS_DAG, "y", task_id, granted)
        assert (ran.state, ran.fields["xcoms"]) == ("failed", []), (task_id, ran)
        assert says in ran.fields["detail"], ran.fields


def test_a_task_pushes_only_its_own_and_not_too_much(runner: Warm) -> None:
    forged = runner.run("x.py", XCOM_DAG, "x", "forge")
    assert forged.state == "failed" and "XComs of its own" in forged.fields["detail"] and forged.fields["xcoms"] == []
    flooded = runner.run("x.py", XCOM_DAG, "x", "flood")
    assert flooded.state == "failed" and "push a reference instead" in flooded.fields["detail"]


def test_the_dag_run_of_the_grant_is_the_context(runner: Warm) -> None:
    dag = b"""
from airflow.sdk import DAG, task
with DAG("c", schedule=None, params={"size": 1}):
    @task
    def show(dag_run=None, ds=None, params=None, data_interval_end=None):
        return [ds, params["size"], dag_run.run_type, dag_run.conf, data_interval_end.isoformat()]
    show()
"""
    run = {
        "logical_date": "2025-12-24T00:00:00+00:00",
        "data_interval_end": "2025-12-25T00:00:00+00:00",
        "run_type": "scheduled",
        "conf": '{"size": 7}',
    }
    assert runner.run("c.py", dag, "c", "show", Grant(run=run)).xcom() == [
        "2025-12-24", 7, "scheduled", {"size": 7}, "2025-12-25T00:00:00+00:00",
    ]  # fmt: skip
    broken = runner.run("c.py", dag, "c", "show", Grant(run={"logical_date": "yesterday"}))
    assert (broken.kind, broken.fields["error"]) == ("refused", "malformed")


def test_a_python_in_another_environment_asks_its_task(runner: Warm) -> None:
    dag = b"""
import sys
from airflow.sdk import DAG, task
with DAG("e", schedule=None):
    @task.external_python(python=sys.executable)
    def ask():
        import logging
        from airflow.sdk import BaseHook, Variable
        logging.getLogger("elsewhere").warning("logged from another Python")
        found = [BaseHook.get_connection("shop").password, Variable.get("greeting"), Variable.get("none", default="x")]
        try:
            BaseHook.get_connection("other")
        except Exception as error:
            found.append(type(error).__name__)
        return found
    ask()
"""
    ran = runner.run("e.py", dag, "e", "ask", GRANT)
    assert ran.state == "success", ran
    assert ran.xcom() == ["hunter2secret", "good morning", "x", "AirflowSecretsBackendAccessDenied"]
    assert "logged from another Python" in ran.log
    assert "hunter2secret" not in ran.log

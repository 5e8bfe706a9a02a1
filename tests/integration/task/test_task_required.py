"""Which connections a description says that a task needs, with real operators; and what only the running task finds out."""

from __future__ import annotations

import pytest
from task_rig import Grant, Warm

HEAD = """
from airflow.sdk import BaseHook, DAG, BaseOperator, Param, task
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator as Sql, BranchSQLOperator
from airflow.providers.common.sql.operators.generic_transfer import GenericTransfer
from airflow.providers.common.sql.sensors.sql import SqlSensor
from airflow.providers.smtp.operators.smtp import EmailOperator
from airflow.providers.standard.operators.python import PythonOperator

class Mine(BaseOperator):
    template_fields = ("lake_conn_id", "side_conn_id")
    archive_conn_id = "of_the_class"
    def __init__(self, lake_conn_id=None, side_conn_id=None, plain_conn_id=None, **kwargs):
        super().__init__(**kwargs)
        self.lake_conn_id, self.side_conn_id, self.plain_conn_id = lake_conn_id, side_conn_id, plain_conn_id

class Own(Mine):
    archive_conn_id = None
    @property
    def hidden_conn_id(self):
        raise SystemExit("nobody asks a property")

def needs(*names):
    return {"dagseal": {"connections": list(names)}}

PARAMS = {"c": Param("from_params", type="string"), "n": 7, "no_default": Param(type="string")}
"""
CASES = {
    "sql": ("Sql(task_id=T, conn_id='warehouse', sql='1')", ["warehouse"]),
    "branch": ("BranchSQLOperator(task_id=T, conn_id='w', sql='1', follow_task_ids_if_true='sql',"
               " follow_task_ids_if_false='sql')", ["w"]),
    "transfer": ("GenericTransfer(task_id=T, sql='1', destination_table='t', source_conn_id='from/here',"
                 " destination_conn_id='to:there')", ["from/here", "to:there"]),
    "sensor": ("SqlSensor(task_id=T, conn_id='watched', sql='1')", ["watched"]),
    "email": ("EmailOperator(task_id=T, to='a@b', subject='s', html_content='h')", ["smtp_default"]),
    "own": ("Mine(task_id=T, lake_conn_id='lake', side_conn_id=['a', 'b'])", ["a", "b", "lake", "of_the_class"]),
    "subclass": ("Own(task_id=T, lake_conn_id={'one', 'two'})", ["one", "two"]),
    "param": ("Sql(task_id=T, conn_id='{{ params.c }}', sql='1')", ["from_params"]),
    "param of the task": ("Sql(task_id=T, conn_id=\"{{ params['c'] }}_{{ params.n }}\", sql='1', params={'c': 'x'})", ["x_7"]),
    "ids": ("Sql(task_id=T, conn_id='{{ dag.dag_id }}-{{ task.task_id }}', sql='1')", ["d-ids"]),
    "constant": ("Sql(task_id=T, conn_id=\"{% if true %}{{ 'ware' ~ 'house' | lower }}{% endif %}\", sql='1')", ["warehouse"]),
    "in a list": ("Own(task_id=T, side_conn_id=('{{ params.c }}', 'b', '{{ ds }}'))", ["b", "from_params"]),
    "no template field": ("Own(task_id=T, plain_conn_id='{{ params.c }}')", []),
    "no default": ("Sql(task_id=T, conn_id='{{ params.no_default }}', sql='1')", []),
    "of the run": ("Sql(task_id=T, conn_id='{{ ds }}', sql='1')", []),
    "of a variable": ("Sql(task_id=T, conn_id='{{ var.value.c }}', sql='1')", []),
    "of an XCom": ("Sql(task_id=T, conn_id=\"{{ ti.xcom_pull('sql') }}\", sql='1')", []),
    "not a name": ("Sql(task_id=T, conn_id='{{ params.c }} {{ params.n }}', sql='1')", []),
    "broken": ("Sql(task_id=T, conn_id='{{ params.c', sql='1')", []),
    "out of the sandbox": ("Sql(task_id=T, conn_id=\"{{ params.__class__.__mro__ }}\", sql='1')", []),
    "division": ("Sql(task_id=T, conn_id='{{ 1 / 0 }}', sql='1')", []),
    "argument": ("PythonOperator(task_id=T, python_callable=print, op_args=['c'], op_kwargs={'conn_id': 'c'})", []),
    "mapped": ("Sql.partial(task_id=T, conn_id='lake').expand(sql=['1', '2'])", ["lake"]),
    "mapped over": ("Sql.partial(task_id=T, sql='1').expand(conn_id=['b', '{{ params.c }}'])", ["b", "from_params"]),
    "mapped kwargs": ("Sql.partial(task_id=T).expand_kwargs([{'sql': '1', 'conn_id': 'k1'}, {'sql': '2', 'conn_id': 'k2'}])",
                      ["k1", "k2"]),
    "mapped class": ("Mine.partial(task_id=T).expand(lake_conn_id=['x'])", ["of_the_class", "x"]),
    "declared": ("PythonOperator(task_id=T, python_callable=print, executor_config=needs('api', 'queue'))", ["api", "queue"]),
    "declared besides": ("Sql(task_id=T, conn_id='w', sql='1', executor_config=needs('z'))", ["w", "z"]),
    "declared of a mapped": ("Sql.partial(task_id=T, conn_id='w', executor_config=needs('z')).expand(sql=['1'])", ["w", "z"]),
    "another's config": ("PythonOperator(task_id=T, python_callable=print, executor_config={'pod_override': 1})", []),
}  # fmt: skip


def task_id(case: str) -> str:
    return case.replace(" ", "_").replace("'", "")


@pytest.fixture(scope="module")
def said(describer: Warm) -> dict[str, list[str]]:
    lines = [f"    T = {task_id(case)!r}; {code}" for case, (code, _) in CASES.items()]
    more = (
        "\nwith DAG('all', schedule=None, default_args={'executor_config': needs('for_all')}):\n    Own(task_id='t')\n"
    )
    own = "\nwith DAG('own', schedule=None, params=PARAMS, user_defined_macros={'params': 1 / 1}):\n"
    own += "    Sql(task_id='t', conn_id='{{ params.c }}', sql='1')\n"
    source = HEAD + "with DAG('d', schedule=None, params=PARAMS):\n" + "\n".join(lines) + more + own
    answer = describer.describe("d.py", source.encode())
    assert answer.kind == "described", answer.fields
    return {f"{dag}.{task}": found["connections"] for (dag, task), found in answer.tasks.items()}


@pytest.mark.parametrize("case", CASES)
def test_what_a_task_is_known_to_need(said: dict[str, list[str]], case: str) -> None:
    assert said[f"d.{task_id(case)}"] == CASES[case][1]


def test_a_dag_declares_for_all_its_tasks(said: dict[str, list[str]]) -> None:
    assert said["all.t"] == ["for_all"]


def test_the_dags_whose_xcoms_a_task_reads_are_declared(describer: Warm) -> None:
    source = (
        HEAD
        + "with DAG('d', schedule=None):\n    Own(task_id='t', executor_config={'dagseal': {'xcom_dags': ['b', 'a']}})\n"
    )
    task = describer.describe("d.py", source.encode()).tasks["d", "t"]
    assert (task["xcom_dags"], task["connections"]) == (["a", "b"], [])


def test_templates_in_a_language_of_the_dags_own_are_not_known(said: dict[str, list[str]]) -> None:
    assert said["own.t"] == []


@pytest.mark.parametrize(
    "config",
    [
        "needs('a b')",
        "{'dagseal': {'connections': 'w'}}",
        "{'dagseal': ['w']}",
        "{'dagseal': {'conections': []}}",
        "{'dagseal': {'xcom_dags': ['a b']}}",
    ],
)
def test_a_declaration_that_cannot_be_read_is_refused(describer: Warm, config: str) -> None:
    source = HEAD + f"with DAG('d', schedule=None):\n    Own(task_id='t', executor_config={config})\n"
    refused = describer.describe("d.py", source.encode())
    assert (refused.kind, refused.fields["rule"], refused.fields["entry"]) == (
        "refused",
        "declared-needs",
        "d.py",
    )
    assert "task 't' of dag 'd'" in refused.fields["detail"] and "{'connections': [" in refused.fields["detail"]


def test_more_connections_than_a_manifest_holds_are_refused_not_cut(describer: Warm) -> None:
    source = HEAD + "with DAG('d', schedule=None):\n    Own(task_id='t', side_conn_id=[f'c{n}' for n in range(%d)])\n"
    assert len(describer.describe("d.py", (source % 100).encode()).tasks["d", "t"]["connections"]) == 100
    refused = describer.describe("d.py", (source % 101).encode())
    assert (refused.kind, refused.fields["rule"]) == ("refused", "too-many-connections")


def test_what_only_the_run_knows_is_asked_for_then_and_refused_then(runner: Warm) -> None:
    source = HEAD + "with DAG('d', schedule=None):\n    Sql(task_id='t', conn_id='{{ run_id[:6] }}', sql='select 1')\n"
    ran = runner.run("d.py", source.encode(), "d", "t", Grant(connections={"other": "sqlite:///:memory:"}))
    assert ran.state == "failed"
    assert "connection 'manual' was not granted to this task" in ran.fields["detail"] + ran.log
    assert "dagseal connection grant" in ran.fields["detail"] + ran.log

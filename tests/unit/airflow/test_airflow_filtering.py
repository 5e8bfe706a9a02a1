"""The filter's table: every message that Airflow's tasks can send has a rule, and each rule does what its words say."""

from __future__ import annotations

import typing
import uuid

import pytest
from airflow.sdk.execution_time import comms

from dagseal.airflow import filtering
from dagseal.airflow.filtering import RULES, Asker, Rule, refusal

OWN = uuid.uuid4()
ASKER = Asker(id=str(OWN), dag_id="etl", run_id="r1", task_id="load", map_index=2, xcom_dags=frozenset({"upstream"}))
KINDS = {kind.__name__: kind for kind in typing.get_args(typing.get_args(comms.ToSupervisor)[0])}


def test_every_message_of_airflow_has_a_rule_and_no_other_has() -> None:
    assert set(RULES) == set(KINDS)


def test_a_message_of_a_newer_airflow_is_refused() -> None:
    class ReadAnything:
        pass

    assert "not part of what a task" in refusal(ReadAnything(), ASKER)


@pytest.mark.parametrize("kind", sorted(name for name, rule in RULES.items() if rule is Rule.ANSWERED))
def test_what_plain_airflow_answers(kind: str) -> None:
    assert refusal(KINDS[kind].model_construct(), ASKER) == ""


@pytest.mark.parametrize(
    "kind",
    sorted(
        name
        for name, rule in RULES.items()
        if rule in (Rule.CONNECTION, Rule.VARIABLE, Rule.LOG_CHANNEL, Rule.NOT_A_TASKS)
    ),
)
def test_what_is_never_answered(kind: str) -> None:
    assert refusal(KINDS[kind].model_construct(), ASKER)


def test_the_secrets_are_among_what_is_never_answered() -> None:
    assert {"GetConnection", "GetVariable", "GetVariableKeys", "PutVariable", "DeleteVariable", "ResendLoggingFD"} <= {
        name
        for name, rule in RULES.items()
        if rule not in (Rule.ANSWERED, Rule.READS_XCOM, Rule.WRITES_XCOM, Rule.OWN_INSTANCE)
    }
    assert "dagseal connection grant" in refusal(comms.GetConnection(conn_id="warehouse"), ASKER)


@pytest.mark.parametrize("kind", sorted(name for name, rule in RULES.items() if rule is Rule.READS_XCOM))
@pytest.mark.parametrize(("dag_id", "answered"), [("etl", True), ("upstream", True), ("others", False), ("", False)])
def test_xcoms_are_read_of_the_own_dag_and_of_declared_ones(kind: str, dag_id: str, answered: bool) -> None:
    message = KINDS[kind].model_construct(dag_id=dag_id, run_id="another", task_id="t", key="k")
    assert (refusal(message, ASKER) == "") is answered


@pytest.mark.parametrize("kind", sorted(name for name, rule in RULES.items() if rule is Rule.WRITES_XCOM))
@pytest.mark.parametrize(
    ("changed", "answered"),
    [
        ({}, True),
        ({"dag_id": "upstream"}, False),
        ({"run_id": "r2"}, False),
        ({"task_id": "extract"}, False),
        ({"map_index": 1}, False),
        ({"map_index": None}, False),
        ({"map_index": -1}, False),
    ],
)
def test_xcoms_are_written_by_the_task_they_belong_to(kind: str, changed: dict[str, object], answered: bool) -> None:
    named = {"dag_id": "etl", "run_id": "r1", "task_id": "load", "map_index": 2, "key": "k"} | changed
    assert (refusal(KINDS[kind].model_construct(**named), ASKER) == "") is answered


def test_no_map_index_is_the_task_that_is_not_mapped() -> None:
    whole = Asker(id="", dag_id="etl", run_id="r1", task_id="load", map_index=-1, xcom_dags=frozenset())
    assert refusal(comms.SetXCom(dag_id="etl", run_id="r1", task_id="load", key="k", value=1), whole) == ""


@pytest.mark.parametrize("kind", sorted(name for name, rule in RULES.items() if rule is Rule.OWN_INSTANCE))
def test_what_names_a_task_instance_names_the_own(kind: str) -> None:
    assert refusal(KINDS[kind].model_construct(ti_id=OWN), ASKER) == ""
    assert refusal(KINDS[kind].model_construct(ti_id=uuid.uuid4()), ASKER)


def test_everything_that_names_a_task_instance_is_judged_by_it() -> None:
    named = {name for name, kind in KINDS.items() if "ti_id" in kind.model_fields}
    assert {name for name in named if RULES[name] not in (Rule.OWN_INSTANCE, Rule.NOT_A_TASKS)} == set()
    assert filtering.RULES["SetXCom"] is Rule.WRITES_XCOM

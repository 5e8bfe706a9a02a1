"""Airflow's own example DAGs on plain Airflow: what ours is compared with."""

from __future__ import annotations

import pytest

from tests.whole_airflow.comparing import Outcome
from tests.whole_airflow.examples import EXAMPLES
from tests.whole_airflow.public import RunEnd

pytestmark = pytest.mark.root

# The others end in success.
FAILED = {"example_failed_dag", "example_task_state_store_async"}


def test_at_least_thirty_run_to_their_end(plain_outcomes: dict[str, Outcome]) -> None:
    assert len(EXAMPLES) >= 30
    assert {dag_id for dag_id, outcome in plain_outcomes.items() if outcome.end.state == "failed"} == FAILED
    assert all(state == "success" for outcome in plain_outcomes.values() for _, state in outcome.woken)


def test_they_show_retries_skips_mapping_and_xcoms(plain_outcomes: dict[str, Outcome]) -> None:
    tasks = [task for outcome in plain_outcomes.values() for task in outcome.end.tasks]
    assert {task.state for task in tasks} >= {"success", "failed", "skipped"}
    assert max(task.tries for task in tasks) > 1
    assert max(task.map_index for task in tasks) > 1
    assert sum(len(outcome.end.xcoms) for outcome in plain_outcomes.values()) > 100


def test_our_own_show_what_no_example_does(plain_own: dict[str, RunEnd]) -> None:
    states = {dag_id: end.state for dag_id, end in plain_own.items() if end.state}
    assert states == {
        "own_retries": "success",
        "own_reschedules": "success",
        "own_defers": "success",
        "own_time_limit": "failed",
        "own_rules": "failed",
        "own_callbacks": "success",
        "own_templates": "success",
    }
    assert plain_own["own_retries"].tasks[0].tries == 3
    assert plain_own["notes"].xcoms == {
        ("", -1, "on-kill"): "called",
        ("", -1, "told"): "tells",
        ("", -1, "looks"): "xx",
    }

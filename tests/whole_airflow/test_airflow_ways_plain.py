"""Plain Airflow 3.3.2: each of the nine ways is open. Should one be closed by a later Airflow, its test here says so."""

from __future__ import annotations

import pytest

from tests.whole_airflow import ways
from tests.whole_airflow.plain import Plain

pytestmark = pytest.mark.root


def test_the_dag_is_imported_as_the_worker_before_impersonation(plain_airflow: Plain) -> None:
    assert ways.imported_as_worker(plain_airflow)


def test_a_tampered_bundle_runs(plain_airflow: Plain) -> None:
    assert ways.tampered_tree_runs(plain_airflow) == "ran "


def test_a_git_bundle_and_run_as_user_end_in_permission_error(plain_airflow: Plain) -> None:
    assert ways.versioned_bundle_denied(plain_airflow) == "PermissionError"


def test_an_impersonated_task_of_a_worker_that_is_not_root_cannot_be_killed(plain_airflow: Plain) -> None:
    assert ways.outlives_its_kill(plain_airflow)


def test_airflows_secrets_are_in_the_tasks_environment(plain_airflow: Plain) -> None:
    assert ways.secrets_in_environment(plain_airflow) == "FERNET_KEY JWT_SECRET SECRET_KEY"


def test_any_task_reads_any_connection(plain_airflow: Plain) -> None:
    assert ways.any_connection(plain_airflow) == "read"


def test_a_changed_function_is_the_same_version(plain_airflow: Plain) -> None:
    assert ways.changed_body_same_version(plain_airflow)


def test_a_task_of_the_same_user_reaches_its_neighbours_secrets_and_supervisor(plain_airflow: Plain) -> None:
    found = ways.neighbour_within_reach(plain_airflow)
    assert "JWT secret" in found
    assert "supervisor's socket" in found


def test_a_stale_bundle_is_cleaned_away_below_a_running_task(plain_airflow: Plain) -> None:
    with plain_airflow.open_locks():
        assert ways.cleaned_away_below_task(plain_airflow)

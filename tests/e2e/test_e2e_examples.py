"""Airflow's own example DAGs through the whole pipeline: submitted over HTTP, run by `dagseal launch` as another user.

`RUN` is what this test runs; `NOT_RUN` says for every other dag of the corpus why not. Together they are all 112.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.live import Live

_spec = importlib.util.find_spec("airflow")
assert _spec is not None and _spec.origin is not None
AIRFLOW = Path(_spec.origin).parent
FOLDERS = ("example_dags", "providers/standard/example_dags", "providers/common/sql/example_dags")

# dag -> its tasks in an order in which their XComs are there; "task[i]" is one instance of a mapped task
RUN = {
    "tutorial": ["print_date", "sleep", "templated"],
    "tutorial_dag": ["extract", "transform", "load"],
    "tutorial_taskflow_api": ["extract", "transform", "load"],
    "example_bash_operator": ["run_after_loop", "also_run_this", "runme_0", "run_this_last"],
    "example_xcom": ["bash_push", "bash_pull", "pull_value_from_bash_push", "push_by_returning", "push", "puller"],
    "example_xcom_args": ["generate_value", "print_value"],
    "example_xcom_args_with_operators": ["c", "print_value", "print_value__1", "d"],
    "example_simplest_dag": ["my_task"],
    "example_python_operator": ["print_the_context", "sleep_for_0", "sleep_for_1"],
    "example_python_decorator": ["print_the_context"],
    "example_branch_operator": ["branching", "branch_a", "branch_b"],
    "example_branch_labels": ["ingest", "analyze", "check_integrity"],
    "example_nested_branch_dag": ["branch_1", "true_1"],
    "example_short_circuit_decorator": ["condition_is_true", "condition_is_false", "true_1"],
    "example_setup_teardown": ["root_setup", "normal", "root_teardown", "section_1.normal"],
    "example_task_group": ["start", "section_1.task_1", "section_1.task_2"],
    "example_weekday_branch_operator": ["make_choice", "branch_true"],
    "example_display_name": ["sample_task_1", "sample_task_2"],
    "example_measurement_correction_decorator": ["read_measurement", "validate_measurement", "apply_correction"],
    "example_dynamic_task_mapping": ["add_one[0]", "add_one[1]", "add_one[2]", "sum_it"],
    "asset_produces_1": ["producing_task_1"],
}

ALIKE = "the same operators as in RUN; all its tasks succeeded too when all 416 were tried"
ASSET = "assets as in asset_produces_1; all its tasks succeeded too when all 416 were tried"
SERVER = "asks for other runs, task states or a human: that needs Airflow's API server, and is refused in words"
STORE = "keeps state between tries in Airflow's API server"
NETWORK = "reads from the internet"
PACKAGE = "needs a package that is not installed"
VENV = "builds a virtual environment from a package index"
FILES_OF_FOLDER = "its SQL template lies beside it: push the folder as a zip (test_e2e_zip)"

NOT_RUN = {
    **dict.fromkeys(
        (
            "aggregate_regional_sales", "asset1_producer", "asset2_producer", "asset_alias_example_alias_consumer",
            "asset_alias_example_alias_consumer_with_no_taskflow", "asset_alias_example_alias_producer",
            "asset_alias_example_alias_producer_with_no_taskflow", "asset_consumes_1", "asset_consumes_1_and_2",
            "asset_consumes_1_never_scheduled", "asset_consumes_unknown_never_scheduled", "asset_produces_2",
            "asset_s3_bucket_consumer", "asset_s3_bucket_consumer_with_no_taskflow", "asset_s3_bucket_producer",
            "asset_s3_bucket_producer_with_no_taskflow", "asset_with_extra_by_context", "asset_with_extra_by_yield",
            "asset_with_extra_from_classic_operator", "clean_and_combine_player_stats", "compute_player_odds",
            "conditional_asset_and_time_based_timetable", "consume_1_and_2_with_asset_expressions",
            "consume_1_or_2_with_asset_expressions", "consume_1_or_both_2_and_3_with_asset_expressions",
            "consumes_asset_decorator", "daily_inference", "daily_team_a_rollup", "example_asset_state_store_consumer",
            "example_asset_with_watchers", "ingest_region_stats", "ingest_regional_sales", "ingest_team_a_player_stats",
            "live_region_player_stats", "monthly_team_a_rollup", "multi_region_player_stats",
            "player_odds_quality_check_wont_ever_to_trigger", "read_asset_event", "regional_stats_breakdown",
            "scatter_live_region_to_segments", "segment_region_stats_early_rollup", "segment_region_stats_rollup",
            "summarize_live_region_stats", "team_analytics_producer", "team_b_player_stats", "team_c_player_stats",
            "team_ml_consumer", "trailing_week_inference", "train_weekly_model",
        ),
        ASSET,
    ),
    **dict.fromkeys(
        (
            "child_dag", "example_bash_decorator", "example_branch_datetime_operator",
            "example_branch_datetime_operator_2", "example_branch_datetime_operator_3", "example_branch_dop_operator_v3",
            "example_complex", "example_external_task_marker_parent", "example_measurement_correction_operator",
            "example_params_trigger_ui", "example_passing_params_via_test_command", "example_sensor_decorator",
            "example_setup_teardown_taskflow", "example_short_circuit_operator", "example_skip_dag",
            "example_task_group_decorator", "example_task_group_mapping", "example_task_mapping_second_order",
            "example_dynamic_task_mapping_with_no_taskflow_operators", "example_time_delta_sensor_async",
            "example_trigger_target_dag", "latest_only", "latest_only_with_trigger",
        ),
        ALIKE,
    ),
    "example_analytics": PACKAGE,
    "tutorial_objectstorage": PACKAGE,
    "example_asset_state_store_producer": STORE,
    "example_task_state_store": STORE,
    "example_task_state_store_async": STORE,
    "example_task_state_store_mapped": STORE,
    "example_branch_python_operator_decorator": VENV,
    "tutorial_taskflow_api_virtualenv": VENV,
    "example_dag_decorator": NETWORK,
    "example_retry_policy": NETWORK,
    "example_external_task": SERVER,
    "example_external_task_marker_child": SERVER,
    "example_hitl_operator": SERVER,
    "example_trigger_controller_dag": SERVER,
    "read_asset_event_from_classic": "its template wants an asset event, and there is none without a scheduler",
    "example_failed_dag": "fails on purpose",
    "example_params_ui_tutorial": "a required param has no default: it is filled in by whoever triggers it",
    "example_sensors": "waits for times and files, some on purpose in vain",
    "tutorial_taskflow_templates": FILES_OF_FOLDER,
}  # fmt: skip


@pytest.fixture(scope="module")
def submitted(live: Live) -> dict[str, tuple[int, dict[str, object]]]:
    """Every file of the corpus, pushed: status and answer by path."""
    answers = {}
    for folder in FOLDERS:
        for path in sorted((AIRFLOW / folder).rglob("*.py")):
            answer = live.push(path.name, path.read_bytes())
            answers[str(path.relative_to(AIRFLOW))] = (answer.status, answer.json)
    return answers


def test_64_of_82_files_are_accepted_and_18_refused_with_the_reason(submitted: dict[str, tuple[int, dict]]) -> None:
    accepted = {name: answer for name, (status, answer) in submitted.items() if status in (200, 201)}
    refused = {name: answer for name, (status, answer) in submitted.items() if status == 422}
    assert (len(accepted), len(refused), len(submitted)) == (64, 18, 82)
    rules = Counter(answer["errors"][0]["rule"] for answer in refused.values())
    assert rules == {"no-dag-found": 16, "not-serialisable": 2}
    dags = [dag for answer in accepted.values() for dag in answer["dags"]]
    assert (len(dags), sum(len(dag["tasks"]) for dag in dags)) == (112, 416)
    assert {dag["dag_id"] for dag in dags} == set(RUN) | set(NOT_RUN)
    for name, answer in accepted.items():
        assert answer["digest"] == f"sha512:{hashlib.sha512((AIRFLOW / name).read_bytes()).hexdigest()}"


def test_tasks_of_the_examples_run_through_dagseal_launch(live: Live, submitted: dict[str, object]) -> None:
    assert submitted
    assert sum(len(tasks) for tasks in RUN.values()) >= 40

    def run(dag: str) -> list[str]:
        """What failed, in words."""
        wrong = []
        for task in RUN[dag]:
            task_id, _, index = task.rstrip("]").partition("[")
            mapped = ["--map-index", index] if index else []
            command = ["launch", dag, task_id, "--run-id", "manual__2026-01-05T00:00:00+00:00", "--follow"]
            done = live.cli(*command, "--as-user", live.user, *mapped)
            if done.returncode != 0:
                wrong.append(f"{dag}.{task}: exit code {done.returncode}\n{done.stdout[-3000:]}{done.stderr}")
        return wrong

    with ThreadPoolExecutor(3) as pool:
        wrong = [text for texts in pool.map(run, RUN) for text in texts]
    assert not wrong, "\n".join(wrong)
    ended = {(one["dag_id"], one["task_id"], one["map_index"]): one for one in _launches(live)}
    assert all(one["state"] == "success" for key, one in ended.items() if key[0] in RUN), ended


def _launches(live: Live) -> list[dict]:
    found: list[dict] = live.http("GET", "/v1/launches?limit=1000").json["launches"]
    return [one for one in found if one["run_id"] == "manual__2026-01-05T00:00:00+00:00"]

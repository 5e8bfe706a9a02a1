"""Airflow's example tasks that need no outside service run to success, each dag in order, with the XComs of what ran before."""

from __future__ import annotations

import pytest
from task_corpus import FILES, run_in_order
from task_rig import Warm

# file, dag, tasks in an order that their dependencies allow; `name[0]` is the first instance of a mapped task.
RUNS = [
    ("tutorial.py", "tutorial", "print_date sleep templated"),
    ("tutorial_dag.py", "tutorial_dag", "extract transform load"),
    ("tutorial_taskflow_api.py", "tutorial_taskflow_api", "extract transform load"),
    ("example_xcom.py", "example_xcom", "push push_by_returning puller bash_push bash_pull pull_value_from_bash_push"),
    ("example_xcomargs.py", "example_xcom_args", "generate_value print_value"),
    ("example_xcomargs.py", "example_xcom_args_with_operators", "c d print_value"),
    (
        "example_dynamic_task_mapping.py",
        "example_dynamic_task_mapping",
        "add_one[0] add_one[1] add_one[2] sum_it",
    ),
    (
        "example_dynamic_task_mapping.py",
        "example_task_mapping_second_order",
        "get_nums times_2[0] times_2[1] times_2[2] add_10[0] add_10[2]",
    ),
    (
        "example_dynamic_task_mapping.py",
        "example_task_group_mapping",
        "op.add_1[0] op.mul_2[0] op.add_1[2] op.mul_2[2]",
    ),
    (
        "example_dynamic_task_mapping_with_no_taskflow_operators.py",
        "example_dynamic_task_mapping_with_no_taskflow_operators",
        "add_one[0] add_one[2] sum_it",
    ),
    ("example_simplest_dag.py", "example_simplest_dag", "my_task"),
    (
        "example_task_group_decorator.py",
        "example_task_group_decorator",
        "task_start task_group_function.task_1 task_group_function.task_2 task_group_function.task_3 task_end",
    ),
    (
        "example_task_group.py",
        "example_task_group",
        "start section_1.task_1 section_1.task_2 section_2.inner_section_2.task_2 end",
    ),
    (
        "example_setup_teardown_taskflow.py",
        "example_setup_teardown_taskflow",
        "my_first_task my_second_task my_third_task",
    ),
    ("example_params_trigger_ui.py", "example_params_trigger_ui", "get_names select_languages[0]"),
    (
        "example_branch_labels.py",
        "example_branch_labels",
        "ingest analyze check_integrity describe_integrity email_error report save",
    ),
    (
        "example_python_operator.py",
        "example_python_operator",
        "print_the_context sleep_for_0 sleep_for_1 external_python",
    ),
    (
        "example_python_decorator.py",
        "example_python_decorator",
        "print_the_context sleep_for_0 sleep_for_2 external_python",
    ),
    ("example_bash_operator.py", "example_bash_operator", "runme_0 runme_1 runme_2 also_run_this run_this_last"),
    ("example_bash_decorator.py", "example_bash_decorator", "runme_0 run_after_loop also_run_this make_dynamic_dirs"),
    (
        "example_branch_operator.py",
        "example_branch_operator",
        "run_this_first branching branch_a branch_b branching_ext_python ext_py_a join",
    ),
    ("example_short_circuit_operator.py", "example_short_circuit_operator", "condition_is_True condition_is_False"),
    ("example_short_circuit_decorator.py", "example_short_circuit_decorator", "condition_is_true condition_is_false"),
    ("example_latest_only.py", "latest_only", "latest_only task1"),
    ("example_measurement_correction_decorator.py", "example_measurement_correction_decorator", "read_measurement"),
    ("example_branch_datetime_operator.py", "example_branch_datetime_operator", "datetime_branch date_in_range"),
    ("example_asset_decorator.py", "asset1_producer", "asset1_producer"),
    ("example_asset_decorator.py", "asset2_producer", "asset2_producer"),
    ("example_assets.py", "asset_produces_1", "producing_task_1"),
]

# Every other task of these files that was tried and does not succeed alone on one host, with the reason.
NOT_RUN = {
    "an outside service or the network": [
        "example_dag_decorator.get_ip", "example_retry_policy.call_external_api", "tutorial_objectstorage.*",
        "*.virtualenv_python", "*.branching_venv", "*.venv_[abcd]", "tutorial_taskflow_api_virtualenv.*",
    ],
    "a package that is not installed (datafusion, duckdb, pandas)": ["example_analytics.*", "tutorial_objectstorage.*"],
    "the state of other dags, or a dag run started in Airflow": [
        "example_external_task_marker_child.*", "example_trigger_controller_dag.*", "example_external_task.trigger_child_task",
    ],
    "a human (human-in-the-loop needs the API server)": ["example_hitl_operator.*"],
    "a trigger process": ["example_sensors.*_async", "example_external_task.parent_task_sensor"],
    "state that outlives the launch": ["example_asset_state_store_producer.load", "example_task_state_store.run_job"],
    "a file beside the .py, so it has to be a zip": ["*.log_sql_query", "tutorial_taskflow_templates.template_test"],
    "conf given with the run": ["example_params_ui_tutorial.*", "example_passing_params_via_test_command.also_run_this"],
    "it fails or is skipped by design": [
        "example_failed_dag.fail_task", "example_skip_dag.*", "*.this_will_skip", "example_sensors.*fails*",
    ],
    "a connection": ["example_sensors.wait_for_file"],
}  # fmt: skip


@pytest.mark.parametrize(("file", "dag_id", "tasks"), RUNS, ids=[f"{dag}" for _, dag, _ in RUNS])
def test_the_tasks_of_an_example_succeed_in_order(runner: Warm, file: str, dag_id: str, tasks: str) -> None:
    run_in_order(runner, file, dag_id, tasks)


def test_at_least_forty_tasks_of_the_corpus_run() -> None:
    ran = {(dag_id, word.partition("[")[0]) for _, dag_id, tasks in RUNS for word in tasks.split()}
    assert len(ran) >= 40
    assert len(FILES) == 82

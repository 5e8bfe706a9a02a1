"""Which of Airflow's own example DAGs run here, and what of their end is the same each time.

Not here: those that ask a network, a cluster, a provider that is not installed or a person (`example_hitl_operator`), that
build virtual environments, that choose at random which branch they take, whose classes need a plugin (`example_custom_weight`,
`example_workday_timetable`), or whose sensors wait for hours or for their own time-out, or that read
a file beside the DAG file (`tutorial_taskflow_templates`).

One differs, on purpose: `example_bash_decorator` writes into $AIRFLOW_HOME, and a sealed task has none.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import airflow.example_dags
import airflow.providers.standard.example_dags

# The same for each run, and on each installation: templates and XComs hold it.
LOGICAL_DATE = "2026-01-02T03:04:00Z"
_CORE = Path(airflow.example_dags.__file__).parent
_STANDARD = Path(airflow.providers.standard.example_dags.__file__).parent
OWN = Path(__file__).with_name("dags")


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One run to trigger. `wakes` are DAGs that an asset of it starts. XComs whose value differs from run to
    run are compared by key alone (`by_key`)."""

    dag_id: str
    file: str
    conf: dict[str, Any] = field(default_factory=dict)
    wakes: tuple[str, ...] = ()
    by_key: bool = False


EXAMPLES = (
    Example(dag_id="asset_s3_bucket_producer", file="example_asset_alias.py", wakes=("asset_s3_bucket_consumer",)),
    Example(dag_id="asset_alias_example_alias_producer", file="example_asset_alias.py"),
    Example(dag_id="asset1_producer", file="example_asset_decorator.py", wakes=("consumes_asset_decorator",)),
    Example(dag_id="asset_produces_1", file="example_assets.py", wakes=("asset_consumes_1",)),
    Example(dag_id="example_branch_labels", file="example_branch_labels.py"),
    Example(dag_id="example_branch_dop_operator_v3", file="example_branch_python_dop_operator_3.py"),
    Example(dag_id="example_complex", file="example_complex.py"),
    Example(dag_id="example_display_name", file="example_display_name.py"),
    Example(dag_id="example_dynamic_task_mapping", file="example_dynamic_task_mapping.py"),
    Example(dag_id="example_task_mapping_second_order", file="example_dynamic_task_mapping.py"),
    Example(
        dag_id="example_dynamic_task_mapping_with_no_taskflow_operators",
        file="example_dynamic_task_mapping_with_no_taskflow_operators.py",
    ),
    Example(dag_id="example_failed_dag", file="example_failed_dag.py"),
    Example(dag_id="asset_with_extra_by_yield", file="example_outlet_event_extra.py"),
    Example(dag_id="asset_with_extra_by_context", file="example_outlet_event_extra.py"),
    Example(dag_id="latest_only_with_trigger", file="example_latest_only_with_trigger.py"),
    Example(dag_id="example_nested_branch_dag", file="example_nested_branch_dag.py"),
    Example(
        dag_id="example_params_trigger_ui",
        file="example_params_trigger_ui.py",
        conf={"names": ["A", "B"], "german": False},
    ),
    Example(
        dag_id="example_params_ui_tutorial",
        file="example_params_ui_tutorial.py",
        conf={"required_field": "given here"},
        by_key=True,
    ),
    Example(dag_id="example_setup_teardown", file="example_setup_teardown.py"),
    Example(dag_id="example_setup_teardown_taskflow", file="example_setup_teardown_taskflow.py"),
    Example(dag_id="example_simplest_dag", file="example_simplest_dag.py"),
    Example(dag_id="example_skip_dag", file="example_skip_dag.py"),
    Example(dag_id="example_task_group", file="example_task_group.py"),
    Example(dag_id="example_task_group_decorator", file="example_task_group_decorator.py"),
    Example(dag_id="example_task_state_store", file="example_task_state_store.py", by_key=True),
    Example(dag_id="example_task_state_store_async", file="example_task_state_store_async.py", by_key=True),
    Example(dag_id="example_task_state_store_mapped", file="example_task_state_store_mapped.py", by_key=True),
    Example(dag_id="example_time_delta_sensor_async", file="example_time_delta_sensor_async.py"),
    Example(dag_id="example_trigger_target_dag", file="example_trigger_target_dag.py", conf={"message": "Hello"}),
    Example(dag_id="example_xcom", file="example_xcom.py"),
    Example(dag_id="example_xcom_args", file="example_xcomargs.py"),
    Example(dag_id="example_xcom_args_with_operators", file="example_xcomargs.py"),
    Example(dag_id="tutorial", file="tutorial.py", by_key=True),
    Example(dag_id="tutorial_dag", file="tutorial_dag.py"),
    Example(dag_id="tutorial_taskflow_api", file="tutorial_taskflow_api.py"),
    Example(dag_id="example_bash_operator", file="standard/example_bash_operator.py", by_key=True),
    Example(dag_id="example_branch_datetime_operator", file="standard/example_branch_datetime_operator.py"),
    Example(dag_id="example_branch_datetime_operator_2", file="standard/example_branch_datetime_operator.py"),
    Example(dag_id="example_branch_datetime_operator_3", file="standard/example_branch_datetime_operator.py"),
    Example(dag_id="example_weekday_branch_operator", file="standard/example_branch_day_of_week_operator.py"),
    Example(dag_id="latest_only", file="standard/example_latest_only.py"),
    Example(dag_id="example_sensor_decorator", file="standard/example_sensor_decorator.py"),
    Example(dag_id="example_short_circuit_decorator", file="standard/example_short_circuit_decorator.py"),
    Example(dag_id="example_short_circuit_operator", file="standard/example_short_circuit_operator.py"),
    Example(dag_id="example_trigger_controller_dag", file="standard/example_trigger_controller_dag.py", by_key=True),
    Example(dag_id="example_external_task_marker_parent", file="standard/example_external_task_marker_dag.py"),
)


def path_of(file: str) -> Path:
    """Where Airflow keeps this one."""
    folder, name = (_STANDARD, file.removeprefix("standard/")) if file.startswith("standard/") else (_CORE, file)
    return folder / name


def files() -> list[Path]:
    return sorted({path_of(example.file) for example in EXAMPLES}, key=lambda path: path.name)


def copy(folder: Path) -> None:
    """All of them, as a DAGs folder."""
    for path in files():
        shutil.copy(path, folder / path.name)

"""Airflow's installed example DAGs, and what is known of them."""

from __future__ import annotations

import airflow_installed
from task_rig import Grant, Warm

AIRFLOW = airflow_installed.FOLDER
FOLDERS = ("example_dags", "providers/standard/example_dags", "providers/common/sql/example_dags")
FILES = {
    str(path.relative_to(AIRFLOW)): path for folder in FOLDERS for path in sorted((AIRFLOW / folder).rglob("*.py"))
}

# Every file that is not accepted, with the rule and the words that say why. No package of it has a DAG, but for the
# four named: two of those import kubernetes, which is not installed, inside try/except and then define nothing; two use
# classes that only a plugin can register.
NO_DAG = "defines no dag"
REFUSED = {
    "example_dags/__init__.py": ("no-dag-found", NO_DAG),
    "example_dags/example_custom_weight.py": ("not-serialisable", "Unknown priority strategy"),
    "example_dags/example_kubernetes_executor.py": ("no-dag-found", NO_DAG),
    "example_dags/example_local_kubernetes_executor.py": ("no-dag-found", NO_DAG),
    "example_dags/example_workday_timetable.py": ("not-serialisable", "is not registered"),
    "example_dags/libs/__init__.py": ("no-dag-found", NO_DAG),
    "example_dags/libs/helper.py": ("no-dag-found", NO_DAG),
    "example_dags/plugins/__init__.py": ("no-dag-found", NO_DAG),
    "example_dags/plugins/business_day_window.py": ("no-dag-found", NO_DAG),
    "example_dags/plugins/custom_partition_mapper.py": ("no-dag-found", NO_DAG),
    "example_dags/plugins/custom_partition_timetable.py": ("no-dag-found", NO_DAG),
    "example_dags/plugins/decreasing_priority_weight_strategy.py": ("no-dag-found", NO_DAG),
    "example_dags/plugins/event_listener.py": ("no-dag-found", NO_DAG),
    "example_dags/plugins/listener_plugin.py": ("no-dag-found", NO_DAG),
    "example_dags/plugins/workday.py": ("no-dag-found", NO_DAG),
    "providers/standard/example_dags/__init__.py": ("no-dag-found", NO_DAG),
    "providers/standard/example_dags/sql/__init__.py": ("no-dag-found", NO_DAG),
    "providers/common/sql/example_dags/__init__.py": ("no-dag-found", NO_DAG),
}
DAGS, TASKS = 112, 416


def source(name: str) -> tuple[str, bytes]:
    """Archive name and bytes of `name`, a file of the corpus by the end of its path."""
    (path,) = [path for relative, path in FILES.items() if relative.endswith(f"/{name}")]
    return path.name, path.read_bytes()


def run_in_order(warm: Warm, file: str, dag_id: str, tasks: str) -> None:
    """Each succeeds, with the XComs of those before it."""
    name, data = source(file)
    xcoms: list[dict[str, object]] = []
    for word in tasks.split():
        task_id, _, index = word.rstrip("]").partition("[")
        map_index = int(index) if index else -1
        ran = warm.run(name, data, dag_id, task_id, Grant(xcoms=tuple(xcoms)), map_index=map_index)
        assert ran.state == "success", (word, ran.fields, ran.log[-3000:])
        xcoms.extend({"task_id": task_id, "map_index": map_index, **xcom} for xcom in ran.fields["xcoms"])

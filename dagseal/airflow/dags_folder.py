"""Which files of a dags folder Airflow takes for DAG files: by its own rules, `.airflowignore` included. It imports none."""

from __future__ import annotations

import os


def dag_files(folder: str) -> list[str]:
    """Paths below the folder, sorted, as `[core] dag_discovery_safe_mode` and `dag_ignore_file_syntax` have it."""
    from airflow.utils.file import list_py_file_paths

    return sorted(os.path.relpath(path, folder) for path in list_py_file_paths(folder))

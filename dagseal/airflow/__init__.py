"""What plugs dagseal into Airflow, and Airflow's classes into dagseal.

airflow.cfg names the classes by this package; each is imported when it is asked for, since a scheduler needs no bundle and a
worker no executor.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "GrantBackend": "dagseal.airflow.secrets_backend",
    "SealedBundle": "dagseal.airflow.bundle",
    "SealedCeleryExecutor": "dagseal.airflow.celery_executor",
    "SealedCoordinator": "dagseal.airflow.coordinator",
    "SealedLocalExecutor": "dagseal.airflow.executors",
}
__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"dagseal.airflow has no {name!r}, but {', '.join(sorted(_WHERE))}")
    return getattr(importlib.import_module(_WHERE[name]), name)

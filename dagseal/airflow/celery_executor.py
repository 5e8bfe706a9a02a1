"""`SealedCeleryExecutor`: many machines. In a module of its own, since importing the provider builds its Celery application."""

from __future__ import annotations

from typing import Any

from airflow.providers.celery.executors.celery_executor import CeleryExecutor
from airflow.providers.celery.executors.celery_executor_utils import get_celery_configuration

from dagseal.airflow import celery_worker
from dagseal.airflow.executors import Sealing


class SealedCeleryExecutor(Sealing, CeleryExecutor):  # type: ignore[misc]
    """What its broker holds is Airflow's message; a ticket is minted when a worker of the queue takes what was reserved."""

    def start(self: Any) -> None:
        """Raises `SettingsError`."""
        if self._settings.enforce:
            celery_worker.require_guard(get_celery_configuration())
        super().start()

"""`SealedCeleryExecutor`: many machines. In a module of its own, since importing the provider builds its Celery application."""

from __future__ import annotations

from airflow.providers.celery.executors.celery_executor import CeleryExecutor

from dagseal.airflow.executors import Sealing


class SealedCeleryExecutor(Sealing, CeleryExecutor):  # type: ignore[misc]
    """What its broker holds is Airflow's message; a ticket is minted when a worker of the queue takes what was reserved."""

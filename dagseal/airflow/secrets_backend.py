"""`[workers] secrets_backend = dagseal.airflow.GrantBackend`: a worker's own processes hold no secrets of tasks.

A task's connections and variables are in its grant, which only the task reads (`launcher.task.secrets.GrantBackend`), and its
supervisor answers no request for one (`dagseal.airflow.filtering`). This class says that in a worker's configuration, where a
backend with a key to all secrets would stand otherwise.
"""

from __future__ import annotations

from airflow.sdk.bases.secrets_backend import BaseSecretsBackend


class GrantBackend(BaseSecretsBackend):  # type: ignore[misc]
    """Has nothing."""

    def get_conn_value(self, conn_id: str, team_name: str | None = None) -> str | None:
        return None

    def get_variable(self, key: str, team_name: str | None = None) -> str | None:
        return None

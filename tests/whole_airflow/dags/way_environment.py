"""Looks for Airflow's own secrets in its environment, as it is and as it began."""

import os

from airflow.sdk import DAG, task

with DAG("way_environment", schedule=None):

    @task(run_as_user="@OWNER@")
    def look():
        try:
            with open("/proc/self/environ", "rb") as file:
                begun = file.read().decode()
        except PermissionError:
            begun = ""
        words = ("FERNET_KEY", "JWT_SECRET", "SECRET_KEY")
        return [word for word in words if word in begun or any(word in name for name in os.environ)]

    look()

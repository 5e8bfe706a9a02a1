"""Asks for a connection that is somebody else's."""

from airflow.sdk import DAG, BaseHook, task

with DAG("way_connection", schedule=None):

    @task(run_as_user="@OWNER@")
    def ask():
        return BaseHook.get_connection("payroll").password

    ask()

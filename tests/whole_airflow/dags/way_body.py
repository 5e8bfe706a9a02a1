"""A function whose body is changed later."""

from airflow.sdk import DAG, task

with DAG("way_body", schedule=None):

    @task
    def say():
        return "as it was read"

    say()

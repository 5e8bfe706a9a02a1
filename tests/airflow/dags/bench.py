"""A task that does nothing, as another user and as whom this Airflow runs tasks; and two hundred of them."""

from airflow.sdk import DAG, task

with DAG("bench_impersonated", schedule=None):

    @task(run_as_user="@OWNER@")
    def other():
        pass

    other()

with DAG("bench_own", schedule=None):

    @task
    def own():
        pass

    own()

with DAG("bench_mapped", schedule=None, max_active_tasks=64):

    @task
    def many(number):
        pass

    many.expand(number=list(range(200)))

"""A task that does nothing, as another user and as whom this Airflow runs tasks; and many of each at once."""

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

with DAG("bench_mapped_impersonated", schedule=None, max_active_tasks=64):

    @task(run_as_user="@OWNER@")
    def many_as_other(number):
        pass

    many_as_other.expand(number=list(range(20)))

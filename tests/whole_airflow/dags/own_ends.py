"""What no example shows: a retry that succeeds, a sensor that is rescheduled, a task that ends by its own time limit, a
callback of its end, a deferral that comes back with an event, and trigger rules after a failure."""

from datetime import timedelta
from pathlib import Path

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import DAG, BaseOperator, PokeReturnValue, task
from airflow.sdk.exceptions import AirflowFailException


class Deferring(BaseOperator):
    def execute(self, context):
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=1)), method_name="come_back")

    def come_back(self, context, event=None):
        return f"back with {type(event).__name__}"


class Killed(BaseOperator):
    """Its `on_kill` leaves a note."""

    def execute(self, context):
        import time

        time.sleep(120)

    def on_kill(self):
        Path("@SHARED@/on-kill").write_text("called")


with DAG("own_retries", schedule=None):

    @task(retries=2, retry_delay=timedelta(seconds=1))
    def third_time(ti=None):
        if ti.try_number < 3:
            raise ValueError(f"try {ti.try_number}")
        return ti.try_number

    third_time()

with DAG("own_reschedules", schedule=None):

    @task.sensor(poke_interval=1, timeout=60, mode="reschedule")
    def second_look():
        with open("@SHARED@/looks", "r+") as looks:
            seen = len(looks.read())
            looks.write("x")
        return PokeReturnValue(is_done=seen > 0, xcom_value="seen")

    second_look()

with DAG("own_defers", schedule=None):
    Deferring(task_id="defers")

with DAG("own_time_limit", schedule=None):
    Killed(task_id="too_long", execution_timeout=timedelta(seconds=2))

with DAG("own_rules", schedule=None):

    @task
    def fails():
        raise AirflowFailException("at once")

    @task(trigger_rule="one_failed")
    def tidies():
        return "tidied"

    @task(trigger_rule="all_success")
    def never():
        return "never"

    failing = fails()
    failing >> [tidies(), never()]

with DAG("own_callbacks", schedule=None):

    def told(context):
        Path("@SHARED@/told").write_text(context["ti"].task_id)

    @task(on_success_callback=told)
    def tells():
        return "told"

    tells()

with DAG("own_templates", schedule=None, params={"word": "given"}):
    BashOperator(task_id="says", bash_command="echo {{ dag.dag_id }} {{ ts }} {{ params.word }} {{ ti.map_index }}")

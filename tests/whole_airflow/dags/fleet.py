"""A hundred tasks that each note their begin and their end, by one write that is appended."""

import os
import time

from airflow.sdk import DAG, task

NOTES = "@SHARED@/noted"


def note(word, ti):
    line = f"{word} {ti.dag_id} {ti.run_id} {ti.map_index} {ti.try_number} {os.getuid()}\n"
    fd = os.open(NOTES, os.O_WRONLY | os.O_APPEND)
    os.write(fd, line.encode())
    os.close(fd)


with DAG("fleet_hundred", schedule=None, max_active_tasks=64):

    @task(run_as_user="@OWNER@", retries=1, retry_delay=1)
    def work(number, ti=None):
        note("begin", ti)
        time.sleep(0.3)
        note("end", ti)

    work.expand(number=list(range(100)))

with DAG("fleet_one", schedule=None):

    @task(run_as_user="@OWNER@")
    def one(ti=None):
        note("begin", ti)

    one()

with DAG("fleet_never", schedule=None):

    @task(run_as_user="@OWNER@")
    def never(ti=None):
        note("begin", ti)

    never()

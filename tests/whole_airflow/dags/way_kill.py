"""Holds a lock for as long as it lives."""

import fcntl
import time

from airflow.sdk import DAG, task

with DAG("way_kill", schedule=None):

    @task(run_as_user="@OWNER@")
    def hold():
        with open("@SHARED@/held", "r+") as held, open("@SHARED@/holding", "w") as holding:
            fcntl.flock(held, fcntl.LOCK_EX)
            holding.write("yes")
            holding.flush()
            time.sleep(300)

    hold()

"""Two tasks of a versioned bundle: one of the worker's own user, one of another."""

import os
import time
from pathlib import Path

from airflow.sdk import DAG, task

with DAG("way_git", schedule=None):

    @task
    def run():
        pass

    run()

with DAG("way_git_user", schedule=None):

    @task(run_as_user="@OWNER@")
    def run_as():
        return os.getuid()

    run_as()

with DAG("way_git_long", schedule=None):

    @task(run_as_user="@OWNER@")
    def wait():
        here = Path(__file__)
        before = here.exists()
        Path("@SHARED@/long-started").write_text("yes")
        while not Path("@SHARED@/long-go-on").read_text():
            time.sleep(0.05)
        return [before, here.exists()]

    wait()

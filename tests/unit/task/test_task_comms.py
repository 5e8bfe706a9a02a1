"""Every message of the Task SDK has an answer, and pure parts of the task keep their promises."""

from __future__ import annotations

import os
import subprocess
import sys

# Importing Airflow reads the developer's settings and takes seconds, so what is asked of it is asked in one subprocess.
TABLE = """
from launcher.task import environment
environment.prepare()
from typing import get_args
from airflow.sdk.execution_time import comms
from launcher.task.comms import ANSWERS
known = set(get_args(get_args(comms.ToSupervisor)[0]))
print(len(known), sorted(one.__name__ for one in known - set(ANSWERS)), sorted(one.__name__ for one in set(ANSWERS) - known))
"""


def test_the_table_answers_every_message_of_the_task_sdk_and_no_other() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TABLE],
        env={"PATH": os.environ["PATH"], "AIRFLOW_HOME": "/nonexistent", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=True,
    )
    count, *missing = done.stdout.split(maxsplit=1)
    assert int(count) >= 50
    assert missing == ["[] []\n"]

"""Airflow's own task runner in a fork confined as a task is: Landlock and the filter after the import, before the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from confining import DEVICES, NOBODY, ROOT, SYSTEM, owned_folder

from launcher.task.seccomp import LEVELS

SCRIPT = """
import json, os, subprocess, sys
from launcher.task import warm
warm.warm_up()
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG
from integrity.digests import Digest
from vocabulary.grants import Secrets
from launcher import privileges
from launcher.task import landlock, runner, seccomp

read, write, outside = json.loads(sys.argv[1])

def work():
    import concurrent.futures, socket, sqlite3, threading
    assert subprocess.check_output(["/bin/bash", "-c", "echo hi"]) == b"hi\\n"
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert list(pool.map(abs, (-1, -2))) == [1, 2]
    assert socket.getaddrinfo("localhost", 80)
    with sqlite3.connect("work.db") as db:
        db.execute("create table t (a)")
    return "worked"

def escape():
    open(outside).close()

def unshare():
    import ctypes
    return ctypes.CDLL(None).unshare(0)

with DAG("d", schedule=None) as dag:
    PythonOperator(task_id="python", python_callable=work)
    BashOperator(task_id="bash", bash_command="echo {{ task.task_id }} | cat", env={"A": "b"}, append_env=True)
    PythonOperator(task_id="escape", python_callable=escape)
    BashOperator(task_id="bash_escape", bash_command=f"cat {outside}")
    PythonOperator(task_id="unshare", python_callable=unshare)

def run(task_id, level):
    os.chdir(write[0])
    privileges.harden(parent=os.getppid())
    landlock.restrict(
        landlock.Access(read=tuple(read), write=tuple(write), connect_ports=(), scope=True), least_abi=6
    )
    seccomp.install(level)
    name = runner.TaskName(task_id=task_id, run_id="r", map_index=-1, try_number=1, queue="default")
    secrets = Secrets(connections={}, variables={}, xcoms=(), run={})
    bundle = runner.ArchiveBundle(name="d.py", version=str(Digest.of(b"")), path=write[0])
    outcome = runner.run(dag, name, secrets, dags=[dag], bundle=bundle)
    return [outcome.state, [json.loads(one["value"]) for one in outcome.xcoms if one["key"] == "return_value"]]

found = {}
for level in sys.argv[2].split(","):
    for task_id in dag.task_ids:
        out, into = os.pipe()
        if (pid := os.fork()) == 0:
            code = 1
            try:
                os.write(into, json.dumps(run(task_id, level)).encode())
                code = 0
            finally:
                sys.stdout.flush()
                os._exit(code)
        os.close(into)
        assert os.waitpid(pid, 0)[1] == 0
        found[f"{level} {task_id}"] = json.loads(os.read(out, 65536))
        os.close(out)
        if os.path.exists(f"{write[0]}/work.db"):
            os.unlink(f"{write[0]}/work.db")
print("FOUND " + json.dumps(found))
"""


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[str, list[object]]]:
    """State and returned value of each task at each level."""
    with owned_folder() as folder, owned_folder() as elsewhere:
        (elsewhere / "file").write_text("open to all")
        reach = [SYSTEM, [str(folder), *DEVICES], str(elsewhere / "file")]
        ids = {"user": NOBODY.uid, "group": NOBODY.gid, "extra_groups": []} if os.geteuid() == 0 else {}
        done = subprocess.run(
            [sys.executable, "-s", "-P", "-c", SCRIPT, json.dumps(reach), ",".join(LEVELS)],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env={
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": str(ROOT),
                "HOME": str(folder),
                "AIRFLOW_HOME": f"{folder}/not-there",
                "TMPDIR": str(folder),
            },
            **ids,
        )
        marked = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
        assert done.returncode == 0 and marked, done.stdout[-4000:] + done.stderr[-4000:]
        yield json.loads(marked[0].removeprefix("FOUND "))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("task_id", "value"), [("python", "worked"), ("bash", "bash"), ("unshare", -1)])
def test_a_task_does_its_work(outcomes: dict[str, list[object]], level: str, task_id: str, value: object) -> None:
    assert outcomes[f"{level} {task_id}"] == ["success", [value]]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("task_id", ["escape", "bash_escape"])
def test_a_task_reads_nothing_that_is_not_listed(outcomes: dict[str, list[object]], level: str, task_id: str) -> None:
    assert outcomes[f"{level} {task_id}"] == ["failed", []]

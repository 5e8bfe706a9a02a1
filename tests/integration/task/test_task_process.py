"""The warm process and its forks as the kernel sees them."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
from task_rig import ENVIRONMENT, NOBODY, SEALS, Grant, Task, Warm, gone, receive, run_job, send, wait_until, zipped

from launcher.task.environment import SETTINGS

DAG = b"""
import gc, os, signal
def fds():
    found = {}
    for fd in range(256):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}").partition(":")[0]
        except OSError:
            pass
    return found
AT_IMPORT = fds()
UID_AT_IMPORT = os.getuid()
from airflow.sdk import DAG, task
with DAG("d", schedule=None):
    @task(run_as_user="root")
    def look():
        status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
        in_task = fds()
        inherited = os.popen("ls /proc/self/fd").read().split()
        return {
            "at_import": AT_IMPORT, "in_task": in_task, "inherited": inherited, "environ": dict(os.environ),
            "collects": gc.isenabled(), "frozen": gc.get_freeze_count(),
            "sid": os.getsid(0) == os.getpid(), "ids": [UID_AT_IMPORT, os.getuid(), os.getgid()],
            "cwd": os.getcwd(), "sigchld": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
        }
    @task
    def quick():
        pass
    @task
    def child_left_behind():
        import subprocess
        null = subprocess.DEVNULL
        return subprocess.Popen(["sleep", "300"], start_new_session=True, stdin=null, stdout=null, stderr=null).pid
    look(); quick(); child_left_behind()
"""


def test_exactly_seven_descriptors_before_the_archives_code_and_six_in_the_task(runner: Warm) -> None:
    found = runner.run("d.py", DAG, "d", "look").xcom()
    kinds = {"0": "/dev/null", "1": "pipe", "2": "pipe", "3": "socket", "4": "/memfd", "5": "pipe", "6": "pipe"}
    assert found["at_import"] == kinds
    assert found["in_task"] == {fd: kind for fd, kind in kinds.items() if fd != "5"}
    assert found["inherited"] == ["0", "1", "2", "3"]  # 3 is the folder that ls reads
    assert found["sid"] and found["sigchld"]


def test_the_environment_is_the_launchers_and_the_table(runner: Warm) -> None:
    found = runner.run("d.py", DAG, "d", "look").xcom()
    context = {name for name in found["environ"] if name.startswith("AIRFLOW_CTX_")}
    known = set(runner.environment) | set(SETTINGS) | {"LOGNAME", "USER"} | context
    by_airflow = {
        "AIRFLOW__CORE__SQL_ALCHEMY_CONN",
        "_AIRFLOW_PARSING_CONTEXT_DAG_ID",
        "_AIRFLOW_PARSING_CONTEXT_TASK_ID",
    }
    assert set(found["environ"]) <= known | by_airflow | {"LC_CTYPE"}
    assert set(ENVIRONMENT) <= set(found["environ"])


def test_a_task_collects_its_own_garbage_and_leaves_what_was_warm(runner: Warm) -> None:
    found = runner.run("d.py", DAG, "d", "look").xcom()
    assert found["collects"] and found["frozen"] > 100_000


def test_a_task_whose_run_as_user_is_another_does_not_reach_for_sudo(runner: Warm) -> None:
    ran = runner.run("d.py", DAG, "d", "look")
    assert ran.state == "success"
    assert "sudo" not in ran.log


def test_nothing_is_written_to_the_home_nor_to_airflow_home() -> None:
    fresh = Warm("run")
    assert fresh.run("d.py", DAG, "d", "quick").state == "success"
    assert os.listdir(fresh.home) == []
    assert fresh.close() == 0


def test_tasks_and_their_orphans_are_reaped(runner: Warm) -> None:
    wait_gone(runner.run("d.py", DAG, "d", "quick").pid)
    ran = runner.run("d.py", DAG, "d", "child_left_behind")
    wait_gone(ran.pid)
    orphan = ran.xcom()
    assert f"PPid:\t{runner.pid}\n" in Path(f"/proc/{orphan}/status").read_text()
    os.kill(orphan, signal.SIGKILL)
    wait_gone(orphan)


def wait_gone(pid: int) -> None:
    wait_until(lambda: gone(pid), f"{pid} was not reaped")


def test_an_archive_that_is_not_sealed_is_refused(runner: Warm) -> None:
    task = Task(runner)
    task.ask(DAG, seals=SEALS & ~0x0008, **run_job("d.py", DAG, "d", "quick"))
    kind, fields = receive(task.control)
    task.close()
    assert (kind, fields["error"]) == ("refused", "security") and "not sealed" in fields["detail"]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"digest": "sha512:" + "0" * 128}, "digest-mismatch", "the archive is sha512:"),
        ({"dag_id": "other"}, "not-found", "does not define dag 'other'"),
        ({"task_id": "other"}, "not-found", "has no task 'other'"),
        ({"unix_user": "somebody"}, "security", "the job is for somebody"),
        ({"name": "d.zip"}, "invalid-archive", "not a zip"),
    ],
)
def test_a_job_that_does_not_fit_is_refused(runner: Warm, changes: dict[str, str], error: str, words: str) -> None:
    task = Task(runner)
    task.ask(DAG, **(run_job("d.py", DAG, "d", "quick") | changes))
    kind, fields = receive(task.control)
    task.close()
    assert (kind, fields["error"]) == ("refused", error)
    assert words in fields["detail"]


def test_a_job_of_another_purpose_ends_the_task(runner: Warm) -> None:
    assert runner.describe("d.py", DAG).kind == "eof"


def test_no_grant_means_no_run(runner: Warm) -> None:
    ran = runner.run("d.py", DAG.replace(b"def quick():", b"def quick():\n        print('RAN')"), "d", "quick", None)
    assert ran.kind == "eof" and "RAN" not in ran.log


def test_a_task_ends_when_the_launcher_goes_away(runner: Warm) -> None:
    task = Task(runner)
    task.control.shutdown(socket.SHUT_RDWR)
    wait_gone(task.pid)
    task.close()


KILLED = b"""
import time
from airflow.sdk import DAG, BaseOperator
ended = []
class Stays(BaseOperator):
    def execute(self, context):
        print("it stays", flush=True)
        while not ended:
            time.sleep(0.01)
        return ended
    def on_kill(self):
        ended.append("on_kill")
with DAG("k", schedule=None):
    Stays(task_id="t")
"""


def test_a_task_that_is_to_end_is_told_as_airflow_tells_it(runner: Warm) -> None:
    task = Task(runner)
    task.ask(KILLED, **run_job("k.py", KILLED, "k", "t"))
    assert receive(task.control)[0] == "ready"
    task.send_secrets(Grant().to_bytes())
    wait_until(lambda: b"it stays" in task.said("stdout"), "the task began")
    send(task.control, "terminate")
    kind, fields = receive(task.control)
    assert (kind, fields["state"], fields["xcoms"]) == (
        "finished", "success", [{"key": "return_value", "value": '["on_kill"]'}],
    )  # fmt: skip
    task.close()


def test_the_task_waits_to_be_killed_after_its_last_word(runner: Warm) -> None:
    task = Task(runner)
    task.ask(DAG, **run_job("d.py", DAG, "d", "quick"))
    assert receive(task.control)[0] == "ready"
    task.send_secrets(Grant().to_bytes())
    kind, fields = receive(task.control)
    assert kind == "finished" and set(fields["timings_us"]) == {
        "import",
        "digest",
        "secrets",
        "run",
        "compile",
        "unmarshal",
    }
    os.kill(task.pid, 0)
    task.close()


@pytest.mark.root
def test_another_user_runs_with_its_own_name_and_ids(runner: Warm) -> None:
    found = runner.run("d.py", DAG, "d", "look").xcom()
    assert found["ids"] == [NOBODY, NOBODY, NOBODY]
    assert (found["environ"]["USER"], found["environ"]["LOGNAME"]) == ("nobody", "nobody")


PEEK = b"""
from airflow.sdk import DAG, task
with DAG("d", schedule=None):
    @task
    def peek(pids):
        denied = []
        for pid in pids:
            for what in ("environ", "mem", "maps"):
                try:
                    open(f"/proc/{pid}/{what}", "rb").read(1)
                except PermissionError:
                    denied.append([pid, what])
        return denied
    peek(PIDS)
"""


def test_a_neighbour_and_the_warm_process_cannot_be_read(runner: Warm) -> None:
    neighbour = Task(runner)
    pids = [runner.pid, neighbour.pid]
    ran = runner.run("d.py", PEEK.replace(b"PIDS", str(pids).encode()), "d", "peek")
    neighbour.close()
    assert ran.xcom() == [[pid, what] for pid in pids for what in ("environ", "mem", "maps")]


def test_no_file_of_a_zip_is_left(open_folder: Path) -> None:
    warm = Warm("run", environment={"TMPDIR": str(open_folder)})
    ran = warm.run("d.zip", zipped({"d.py": DAG, "a.txt": "x"}), "d", "quick")
    assert ran.state == "success", ran
    assert os.listdir(open_folder) == []
    assert warm.close() == 0

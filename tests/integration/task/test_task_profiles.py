"""The same tasks do the same in every isolation profile, started by root and by an account without privileges."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from task_corpus import run_in_order, source
from task_rig import ROOT, Task, Warm, gone, run_job, wait_until, zipped

# As in `test_task_examples`, without what takes seconds.
SAMPLE = [
    ("tutorial_taskflow_api.py", "tutorial_taskflow_api", "extract transform load"),
    ("example_xcom.py", "example_xcom", "push push_by_returning puller bash_push bash_pull"),
    ("example_dynamic_task_mapping.py", "example_dynamic_task_mapping", "add_one[0] add_one[1] add_one[2] sum_it"),
    (
        "example_task_group_decorator.py",
        "example_task_group_decorator",
        "task_start task_group_function.task_1 task_end",
    ),
    ("example_python_operator.py", "example_python_operator", "print_the_context sleep_for_0 external_python"),
    ("example_bash_operator.py", "example_bash_operator", "also_run_this run_this_last"),
    ("example_bash_decorator.py", "example_bash_decorator", "run_after_loop also_run_this make_dynamic_dirs"),
    ("example_branch_operator.py", "example_branch_operator", "run_this_first branching branch_a join"),
]
WAYS = [
    pytest.param(("standard", False), id="standard", marks=pytest.mark.root),
    pytest.param(("strict", False), id="strict", marks=pytest.mark.root),
    pytest.param(("standard", True), id="standard, unprivileged"),
    pytest.param(("strict", True), id="strict, unprivileged"),
]
# What is in the folders for temporary files: nothing, but the way to this project and its interpreter if they are below.
EMPTY = {
    folder: sorted(
        {path.relative_to(folder).parts[0] for path in (ROOT, Path(sys.prefix)) if path.is_relative_to(folder)}
    )
    for folder in ("/tmp", "/var/tmp", "/dev/shm")
}
DAG = b"""
import os
AT_IMPORT = sorted(fd for fd in range(64) if os.path.islink(f"/proc/self/fd/{fd}"))
from airflow.sdk import DAG, task
with DAG("d", schedule=None):
    @task
    def look():
        import socket, subprocess, threading
        thread = threading.Thread(target=print, args=("from a thread",))
        thread.start()
        thread.join()
        status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
        before = {folder: os.listdir(folder) for folder in ("/tmp", "/var/tmp", "/dev/shm")}
        for folder in before:
            open(f"{folder}/mine", "w").close()
        denied = []
        for path in ("/etc/mine", os.path.dirname(os.__file__) + "/mine", "/mine"):
            try:
                open(path, "w")
            except (PermissionError, OSError) as error:
                denied.append(error.errno in (1, 13, 30))
        return {
            "fds": AT_IMPORT, "before": before, "denied": denied, "pid": os.getpid(), "tmp": status["Uid"],
            "pids": [name for name in os.listdir("/proc") if name.isdigit()], "sys": os.path.exists("/proc/sys"),
            "caps": [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
            "uid_map": open("/proc/self/uid_map").read().split(), "gid_map": open("/proc/self/gid_map").read().split(),
            "shell": subprocess.check_output(["sh", "-c", "id -u; echo $PPID"], text=True).split(),
            "umask": os.umask(0), "loopback": [name for _, name in socket.if_nameindex()],
        }
    @task
    def leave_children():
        import signal, subprocess
        null = subprocess.DEVNULL
        for _ in range(3):
            subprocess.Popen(["sleep", "300"], start_new_session=True, stdin=null, stdout=null, stderr=null)
        if os.fork() == 0:
            os.setsid()
            if os.fork():
                os._exit(0)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.pause()
    look(); leave_children()
"""


@pytest.fixture(scope="module", params=WAYS)
def confined(request: pytest.FixtureRequest) -> Iterator[Warm]:
    profile, unprivileged = request.param
    warm = Warm("run", profile, unprivileged=unprivileged)
    yield warm
    assert warm.close() == 0


@pytest.mark.parametrize(("file", "dag_id", "tasks"), SAMPLE, ids=[dag for _, dag, _ in SAMPLE])
def test_the_tasks_of_an_example_succeed_in_order(confined: Warm, file: str, dag_id: str, tasks: str) -> None:
    run_in_order(confined, file, dag_id, tasks)


def test_what_a_task_finds_around_it(confined: Warm) -> None:
    ran = confined.run("d.py", DAG, "d", "look")
    assert ran.state == "success", ran
    found = ran.xcom()
    uid = str(65534 if os.geteuid() == 0 else os.geteuid())
    gid = str(65534 if os.geteuid() == 0 else os.getegid())
    assert found["fds"] == [0, 1, 2, 3, 4, 5, 6]
    assert found["before"] == EMPTY
    assert found["denied"] == [True] * 3
    assert found["pid"] == 1 and found["pids"] == ["1"]
    assert found["caps"] == ["0" * 16] * 5
    assert found["uid_map"] == [uid, uid, "1"] and found["gid_map"] == [gid, gid, "1"]
    assert found["shell"] == [uid, "1"]
    assert found["umask"] == 0o077
    assert found["sys"] == (confined.profile == "standard")
    assert found["loopback"] == [name for _, name in socket.if_nameindex()]
    assert "from a thread" in ran.log


def test_nothing_of_one_task_is_seen_by_the_next(confined: Warm) -> None:
    first, second = (confined.run("d.py", DAG, "d", "look").xcom() for _ in range(2))
    assert first["before"] == second["before"] == EMPTY


def test_what_a_task_left_dies_with_it(confined: Warm) -> None:
    ran = confined.run("d.py", DAG, "d", "leave_children")
    assert ran.state == "success", ran
    wait_until(lambda: gone(ran.pid), "the task was not reaped")
    assert [pid for pid in tree_of(confined.pid) if command_of(pid) == "sleep"] == []


def tree_of(pid: int) -> set[int]:
    try:
        found = {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return found.union(*(tree_of(child) for child in found))


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_a_zip_runs_and_its_files_are_the_tasks_alone(confined: Warm) -> None:
    source = """
import os
from pathlib import Path
from airflow.sdk import DAG, task
import prices
HERE = Path(__file__).parent
with DAG("z", schedule=None):
    @task
    def read():
        return [prices.PRICE, (HERE / "a.txt").read_text(), str(HERE)]
    read()
"""
    ran = confined.run("z.zip", zipped({"z.py": source, "prices.py": "PRICE = 3\n", "a.txt": "x"}), "z", "read")
    assert ran.state == "success", (ran.fields, ran.log)
    price, text, folder = ran.xcom()
    assert (price, text) == (3, "x")
    assert not os.path.exists(folder)


def test_a_task_waits_confined_for_its_job(confined: Warm) -> None:
    """What the launcher attests is true of a spare as well."""
    task = Task(confined)
    kind, said = task.hello
    assert kind == "hello" and said["landlock_abi"] >= 1 and said["seccomp_denied"] >= 60
    for name in ("pid", "mnt", "ipc", "uts", "user"):
        if os.geteuid() == 0:
            assert os.readlink(f"/proc/{task.pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
    status = dict(line.split(":\t") for line in Path(f"/proc/{task.pid}/status").read_text().splitlines())
    assert (status["NoNewPrivs"], status["Seccomp"], status["CapBnd"]) == ("1", "2", "0" * 16)
    ours = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("NSpid:"))
    assert len(status["NSpid"].split()) == len(ours.split()) - 1 + 2  # the warm process's namespace and its own
    task.ask(DAG, **run_job("d.py", DAG, "d", "look"))
    task.close()
    wait_until(lambda: gone(task.pid), "the task was not reaped")


@pytest.fixture(scope="module", params=WAYS)
def describing(request: pytest.FixtureRequest) -> Iterator[Warm]:
    profile, unprivileged = request.param
    warm = Warm("describe", profile, unprivileged=unprivileged, network=False, environment={"PYTHONHASHSEED": "7"})
    yield warm
    assert warm.close() == 0


@pytest.mark.parametrize("file", [file for file, _, _ in SAMPLE])
def test_an_example_has_the_same_digests_as_without_isolation(describer: Warm, describing: Warm, file: str) -> None:
    assert describing.describe(*source(file)).tasks == describer.describe(*source(file)).tasks


def test_a_description_has_no_network(describing: Warm) -> None:
    archive = b"""
import socket
from airflow.sdk import DAG
print("INTERFACES", [name for _, name in socket.if_nameindex()])
try:
    socket.create_connection(("127.0.0.1", PORT), timeout=5)
    print("CONNECTED")
except OSError as error:
    print("REFUSED", type(error).__name__)
with DAG("n", schedule=None):
    pass
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        answer = describing.describe("n.py", archive.replace(b"PORT", str(server.getsockname()[1]).encode()))
    assert answer.kind == "described", answer
    assert "INTERFACES ['lo']" in answer.log
    assert "REFUSED" in answer.log and "CONNECTED" not in answer.log

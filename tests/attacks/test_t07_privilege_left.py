"""T07 privilege-left: something of the launcher reaches a task, or the task finds a way back up or sideways.

A real task says what the kernel says of it, which is compared with the whole expected set, and then tries everything that
`probes.py` has: to become somebody, to read the others' files, to look into the launcher, the warm process and a neighbour
task of its own user.

Seen to fail when weakened: `drop` that keeps the bounding set, or does not call `setgroups`; `harden` without
NoNewPrivs, or with dumpable processes; `child.arrange` without `closerange`; `clean_environment` that begins with
`os.environ`. (Each with the line of `prove_dropped` or `attest` that refuses such a task taken out too.)
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.attacker import PROBES, Traces, children_of, dag, depth, spares_of, status_of, until, warm_pids
from tests.live import Live

PROFILES = ("standard", "minimal", "strict")
# How a way to what is not there, or not permitted, ends: in namespaces there is no such process and no such id.
STOPPED = {"PermissionError", "FileNotFoundError", "ProcessLookupError", "OSError"}

ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
    "SHELL": "/bin/sh",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "AIRFLOW_HOME": "/nonexistent/dagseal",
}
# Set after the start by `launcher.task.environment` and by Airflow itself.
OF_AIRFLOW = {
    "AIRFLOW__CORE__LOAD_EXAMPLES",
    "AIRFLOW__CORE__UNIT_TEST_MODE",
    "AIRFLOW__CORE__SQL_ALCHEMY_CONN",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
    "AIRFLOW__LOGGING__BASE_LOG_FOLDER",
    "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG",
    "AIRFLOW__LOGGING__REMOTE_LOGGING",
    "AIRFLOW__SECRETS__BACKEND",
    "_AIRFLOW_PARSING_CONTEXT_DAG_ID",
    "_AIRFLOW_PARSING_CONTEXT_TASK_ID",
    "AIRFLOW_CTX_DAG_OWNER",
    "AIRFLOW_CTX_DAG_ID",
    "AIRFLOW_CTX_TASK_ID",
    "AIRFLOW_CTX_LOGICAL_DATE",
    "AIRFLOW_CTX_TRY_NUMBER",
    "AIRFLOW_CTX_DAG_RUN_ID",
}


def run(live: Live, traces: Traces, dag_id: str, body: str, **launch: Any) -> dict[str, Any]:
    """Push a DAG with the probes, launch its task, which is to succeed; the launch."""
    pushed = live.push(f"{dag_id}.py", dag(dag_id, body, top=PROBES + traces.source()))
    assert pushed.status == 201, pushed.body
    ended = live.launch(dag_id, "t", "r", **launch)
    assert ended["state"] == "success", ended["detail"] + live.log(ended["id"])
    return ended


def task_account(live: Live) -> tuple[int, int]:
    entry = pwd.getpwnam(live.user)
    return entry.pw_uid, entry.pw_gid


def test_what_the_kernel_says_of_a_task(live: Live, traces: Traces, profile: str) -> None:
    body = """
        import json, resource, sys
        limits = {"core": resource.getrlimit(resource.RLIMIT_CORE)}
        more = {"environ": dict(os.environ), "path": sys.path, "limits": limits}
        more |= {"groups": os.getgroups(), "ids": [os.getresuid(), os.getresgid()], "umask": os.umask(0o077)}
        with open("/proc/self/cmdline", "rb") as file:
            more |= {"cmdline": file.read().decode().split("\\0")}
        trace("me", json.dumps(me() | more))
    """
    launch = run(live, traces, "t07me", body)
    found, (uid, gid) = traces.json("me"), task_account(live)

    status = found["status"]
    assert status["NoNewPrivs"] == "1"
    assert status["TracerPid"] == "0"
    assert found["dumpable"] == 0
    assert found["limits"] == {"core": [0, 0]}
    assert found["cwd"] == "/"
    assert found["umask"] == 0o077
    assert found["ids"] == [[uid] * 3, [gid] * 3]
    assert status["Uid"].split() == [str(uid)] * 4, "the fourth is the file system's"
    assert status["Gid"].split() == [str(gid)] * 4
    assert status["SigBlk"] == "0" * 16
    assert status["Seccomp"] == ("0" if profile == "minimal" else "2")
    assert profile == "minimal" or status["NSpid"] == "1", "it is process 1 of its own"
    if live.stack.privileged:
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert sorted(found["groups"]) == sorted(set(os.getgrouplist(live.user, gid)))

    fds = {int(number): target for number, target in found["fds"].items()}
    assert sorted(fds) == [0, 1, 2, 3, 4, 6], fds
    assert fds[0] == "/dev/null"
    assert len({fds[number] for number in (1, 2, 6)}) == 3
    assert all(fds[number].startswith("pipe:") for number in (1, 2, 6))
    assert fds[3].startswith("socket:")
    assert fds[4].startswith("/memfd:")

    home = pwd.getpwnam(live.user).pw_dir
    expected = ENVIRONMENT | {"HOME": home, "USER": live.user, "LOGNAME": live.user}
    assert {name: found["environ"][name] for name in expected} == expected
    assert set(found["environ"]) == set(expected) | OF_AIRFLOW
    assert found["environ"]["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == "airflow-db-not-allowed:///"
    assert str(live.stack.folder) not in " ".join([*found["cmdline"], *found["environ"].values()])

    assert not {"", ".", "/", "/tmp", home, str(live.stack.folder)} & set(found["path"])
    for entry in found["path"]:
        for path in (Path(entry), *Path(entry).parents):
            if path.exists() and live.stack.privileged:
                owned = path.stat()
                assert owned.st_uid not in (uid,), f"{path} belongs to the task's user"
                assert not owned.st_mode & 0o002 or owned.st_mode & 0o1000, f"{path} may be written by the task's user"

    attested = launch["attestation"]
    assert attested["profile"] == profile
    assert bool(attested["landlock_abi"]) == attested["seccomp"] == (profile != "minimal")
    assert (attested["seccomp_denied"] > 50) == (profile != "minimal")
    if live.stack.privileged:
        assert attested["namespaces"] == ([] if profile == "minimal" else ["ipc", "mnt", "pid", "user", "uts"])
    assert attested["uid"] == [uid] * 4
    assert attested["gid"] == [gid] * 4
    assert attested["no_new_privs"] is True
    if live.stack.privileged:
        assert attested["dumpable"] is False
        assert {attested[name] for name in ("capinh", "capprm", "capeff", "capbnd", "capamb")} == {"0" * 16}


@pytest.mark.root
def test_what_a_warm_process_was_started_with(live: Live, traces: Traces) -> None:
    """And so every task: /proc keeps the first environment and the arguments of the exec."""
    run(live, traces, "t07warm", "pass")
    expected = ENVIRONMENT | {"HOME": pwd.getpwnam(live.user).pw_dir, "USER": live.user, "LOGNAME": live.user}
    (warm,) = warm_pids(live, "run")
    assert started_with(warm) == expected
    parser = live.stack.accounts.parser
    describers = [started_with(pid) for pid in warm_pids(live, "describe")]
    expected |= {"USER": parser, "LOGNAME": parser}
    del expected["HOME"]
    assert all(seen.pop("HOME").startswith("/nonexistent/") for seen in describers)
    assert sorted(seen.pop("PYTHONHASHSEED") for seen in describers) == ["1", "2"]
    assert describers == [expected, expected]


@pytest.mark.root
def test_descriptors_of_those_who_wait(live: Live, traces: Traces) -> None:
    """Input, output and the launcher's log; a warm process besides its control socket, the pipe of its loop, and the pid
    namespace that it goes back to; a spare what a task has, but for the archive."""
    run(live, traces, "t07fds", "pass")
    log = str(live.stack.folder / "launcher.log")
    for pid in (*warm_pids(live, "run"), *warm_pids(live, "describe")):
        inner = depth(pid) == 2
        assert kinds_of_fds(pid) == sorted(["/dev/null"] * 2 + [log, "pipe", "pipe", "socket"] + ["pid"] * inner)
        if inner:
            first = int(status_of(pid)["PPid"])
            for waiting in (first, int(status_of(first)["PPid"])):
                assert kinds_of_fds(waiting) == sorted(["/dev/null"] * 2 + [log])
        spares = until("its spares wait", lambda pid=pid: two if len(two := spares_of(pid)) == 2 else None)
        ready = sorted(["/dev/null"] + ["pipe"] * 4 + ["socket"])
        for spare in spares:
            until("it is made ready", lambda spare=spare, ready=ready: kinds_of_fds(spare) == ready)


def kinds_of_fds(pid: int) -> list[str]:
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            found.append(os.readlink(path).partition(":")[0])
    return sorted(found)


def started_with(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")[:-1]
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.root
def test_no_way_to_other_ids(live: Live, traces: Traces) -> None:
    accounts = live.stack.accounts
    others = [
        (0, 0),
        *((pwd.getpwnam(name).pw_uid, pwd.getpwnam(name).pw_gid) for name in (accounts.api, accounts.parser)),
    ]
    body = f"""
        import json, subprocess
        tries = [become_somebody(uid, gid) for uid, gid in {others!r}]
        commands = [["su", "-c", "id -u", "root"], ["sudo", "-n", "id", "-u"], ["pkexec", "id", "-u"], ["newgrp", "root"]]
        for command in commands:
            try:
                done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10)
                tries.append({{command[0]: "GOT" if done.returncode == 0 else "failed"}})
            except FileNotFoundError:
                tries.append({{command[0]: "failed"}})
        found = subprocess.run(["sh", "-c", "cp /bin/sh $0; chmod 6755 $0; $0 -c 'id -u'", {str(traces.path)!r} + "/sh"],
            capture_output=True, text=True)
        trace("tries", json.dumps({{"tries": tries, "ids": [os.getresuid(), os.getresgid()], "sh": found.stdout}}))
    """
    run(live, traces, "t07ids", body)
    found, (uid, gid) = traces.json("tries"), task_account(live)
    for tried in found["tries"]:
        # OSError: EINVAL for an id that the user namespace does not have.
        assert set(tried.values()) <= {"PermissionError", "OSError", "failed"}, tried
    assert found["ids"] == [[uid] * 3, [gid] * 3]
    assert found["sh"].strip() == str(uid)


@pytest.mark.root
def test_exec_gives_no_privileges(live: Live, traces: Traces) -> None:
    """A set-uid program of root's, which would be root for anybody without NoNewPrivs."""
    program = traces.path / "as-root"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o4755)
    plain = subprocess.run([program, "-u"], user=live.user, capture_output=True, text=True, check=True)
    assert plain.stdout.strip() == "0", "this file system ignores set-uid: the attack cannot be tried here"
    body = f"""
        import subprocess
        trace("id", subprocess.run([{str(program)!r}, "-u"], capture_output=True, text=True).stdout)
    """
    run(live, traces, "t07exec", body)
    assert traces.text("id").strip() == str(task_account(live)[0])


@pytest.mark.root
def test_nobody_elses_files(live: Live, traces: Traces) -> None:
    """Though the folders are seen: they are not in one that is the task's own."""
    folder = live.stack.folder
    wanted = [path for name in ("launcher", "api", "agent") for path in (folder / name).rglob("*") if path.is_file()]
    wanted += [folder / "admin.token", *(folder / name for name in ("launcher", "api", "agent"))]
    folders, policy = (
        [str(folder / name) for name in ("", "run", "launcher", "api", "agent")],
        str(folder / "launcher.toml"),
    )
    names = {path.name for path in wanted}
    assert {"signing.key", "sealing.key", "journal.000000000001.jsonl", "request.key", "admin.token"} <= names
    assert any(name.endswith(".db") or "sqlite" in name for name in names), names
    # A line each: the stack of a whole run has too many files for one line of a DAG.
    listed = (",\n" + " " * 12).join(repr(str(path)) for path in wanted)
    body = f"""
        import json
        def write(path):
            open(path, "ab").close()
        def enter(path):
            return os.listdir(path) if os.path.isdir(path) else None
        paths = [
            {listed},
        ]
        tries = {{path: [attempt(read_some, path), attempt(write, path), attempt(os.unlink, path)] for path in paths}}
        more = [attempt(open, path + "/planted", "wb") for path in {folders!r}]
        more += [attempt(os.rename, {policy!r}, {policy + ".x"!r}), attempt(write, {policy!r})]
        more += [attempt(os.unlink, {str(live.stack.launcher_socket)!r})]
        trace("files", json.dumps({{"tries": tries, "more": more}}))
    """
    run(live, traces, "t07files", body)
    found = traces.json("files")
    for path, outcomes in found["tries"].items():
        assert set(outcomes) <= {"PermissionError", "IsADirectoryError"}, (path, outcomes)
        assert outcomes[1] != "IsADirectoryError" or Path(path).is_dir()
    assert set(found["more"]) == {"PermissionError"}


@pytest.mark.root
def test_no_look_into_other_processes(live: Live, traces: Traces, profile: str) -> None:
    """Into the launcher, agent and API; into the warm process, a spare and a neighbour, which have the task's own user."""
    victim = dag("t07victim", f'trace("victim")\nwait_for("{traces.path}/go")', top=PROBES + traces.source())
    assert live.push("t07victim.py", victim).status == 201
    body = {"dag_id": "t07victim", "task_id": "t", "run_id": "r"}
    launched = live.http("POST", "/v1/launches", body).json["id"]
    until("the victim runs", lambda: traces.of("victim"))
    neighbour = traces.pid("victim")
    (warm,) = warm_pids(live, "run")
    assert neighbour in children_of(warm)
    describers = warm_pids(live, "describe")
    assert describers
    pids = {name: process.pid for name, process in live.stack.processes.items()}
    pids |= {"warm": warm, "neighbour": neighbour, "describer": describers[0]}
    source = f"""
        import json, signal
        pids = {pids!r}
        found = {{name: look_into(pid) for name, pid in pids.items()}}
        signals = {{name: attempt(os.kill, pid, 0) for name, pid in pids.items()}}
        seen = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
        trace("looked", json.dumps({{"found": found, "signals": signals, "seen": seen, "me": os.getpid()}}))
    """
    run(live, traces, "t07look", source)
    looked = traces.json("looked")
    for name, tries in looked["found"].items():
        got = {way: outcome for way, outcome in tries.items() if outcome not in STOPPED}
        assert not got, (name, got)
        assert profile != "minimal" or set(tries.values()) == {"PermissionError"}, "it is there, and closed"
    # What `minimal` does not promise, and the threat model says so: one's own user can be signalled.
    allowed = {name for name, outcome in looked["signals"].items() if outcome not in STOPPED}
    assert allowed == ({"warm", "neighbour"} if profile == "minimal" else set())
    if profile != "minimal":
        assert (looked["seen"], looked["me"]) == ([1], 1), "it sees itself only"
    traces.allow("go")
    assert live.wait(launched)["state"] == "success"


def test_the_probes_find_what_is_open(tmp_path: Path) -> None:
    """The attempts themselves work: against a process that nobody hardened, each of them gets something."""
    script = PROBES + (
        "import json, subprocess, sys\n"
        # No shell: to redirect an echo it lends its own descriptor 1 to the pipe, and who reads that then waits for ever.
        "waits = 'import os; os.write(2, b\"ready\\\\n\"); os.read(0, 1)'\n"
        "victim = subprocess.Popen([sys.executable, '-S', '-c', waits], stdin=subprocess.PIPE,"
        " stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)\n"
        "victim.stderr.readline()\n"  # before, it may be on its way through exec yet, where nothing can be seen
        "ways = look_into(victim.pid, fds=(1,))\n"
        "victim.kill(); victim.wait(); print(json.dumps(ways))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    ways = json.loads(done.stdout)
    got = {way for way, outcome in ways.items() if outcome.startswith("GOT")}
    assert {"environ", "maps", "auxv", "cwd", "root", "exe", "fd", "fd/1", "getfd 1", "attach", "seize"} <= got, ways

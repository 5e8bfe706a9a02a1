"""T12 survivors: something that a task started outlives it, however the task and its keepers end.

The task leaves four children: one daemonised by a double fork and setsid, one that ignores every signal it can, one that is
stopped, and one exec'd in a session of its own. All four and the task are dead when the launch has ended.

Seen to fail when weakened: `CgroupTree.kill` that kills the task's process only; `TaskProcess.end` that does;
`CgroupTrees.find` that leaves the folders of dead launchers alone; `die_with` that does nothing.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.attacks.attacker import PROBES, Traces, dag, is_alive, name_of, new_traces, notary_pid_of, tree_of, until
from tests.live import Live

CHILDREN = """
import signal, subprocess, time
def child(word, prepare):
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    trace(word)
    prepare()
    while True:
        time.sleep(0.05)

def stop():
    os.kill(os.getpid(), signal.SIGSTOP)

def spread():
    trace("task")
    child("daemon", lambda: None)
    child("deaf", lambda: os.closerange(0, 64))
    child("stopped", stop)
    subprocess.Popen(["sleep", "1000"], start_new_session=True, stdin=-3, stdout=-3, stderr=-3)
    while len([n for n in os.listdir(FOLDER) if n.split(".")[0] in ("daemon", "deaf", "stopped")]) < 3:
        time.sleep(0.01)
"""
PROFILES = ("standard", "minimal", "strict")
WORDS = ("task", "daemon", "deaf", "stopped")


def start(live: Live, traces: Traces, dag_id: str, then: str, **more: Any) -> tuple[str, list[int]]:
    """A launch that left its children behind; its id, and the pids of the task and them, all alive at that time, the task's
    first."""
    top = PROBES + traces.source() + f"FOLDER = {str(traces.path)!r}\n" + CHILDREN
    pushed = live.push(f"{dag_id}.py", dag(dag_id, f"spread()\n{then}", top=top))
    assert pushed.status == 201, pushed.body
    body = {"dag_id": dag_id, "task_id": "t", "run_id": "r", **more}
    made = live.http("POST", "/v1/launches", body)
    assert made.status == 201, made.body
    for word in WORDS:
        until(f"{word} is there", lambda word=word: traces.of(word))
    task = traces.pid("task")
    pids = until("all its processes are there", lambda: found if len(found := tree_of(task)) == 5 else None)
    assert {traces.pid(word) for word in WORDS} < pids
    assert {name_of(pid) for pid in pids} > {"sleep"}
    return made.json["id"], [task, *sorted(pids - {task})]


def dead(pids: list[int]) -> bool:
    return not [pid for pid in pids if is_alive(pid)]


def wait_for_go(traces: Traces) -> str:
    return f'wait_for("{traces.path}/go")'


def test_when_it_succeeds(live: Live, traces: Traces) -> None:
    launch_id, pids = start(live, traces, "t12ok", wait_for_go(traces))
    assert [is_alive(pid) for pid in pids] == [True] * 5
    traces.allow("go")
    assert live.wait(launch_id)["state"] == "success"
    assert dead(pids)


ENDINGS = {
    "raises": "raise RuntimeError('no')",
    "exits": "os._exit(3)",
    "aborts": "os.abort()",
    "segfault": "import ctypes; ctypes.string_at(0)",
    "killed": "time.sleep(1000)",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_when_it_fails(live: Live, traces: Traces, ending: str) -> None:
    launch_id, pids = start(live, traces, f"t12{ending}", f"{wait_for_go(traces)}\n{ENDINGS[ending]}")
    assert [is_alive(pid) for pid in pids] == [True] * 5
    traces.allow("go")
    if ending == "killed":  # from outside, as for want of memory: process 1 of a namespace hears no signal from within
        os.kill(pids[0], signal.SIGKILL)
    ended = live.wait(launch_id)
    assert (ended["state"], ended["error"]) == ("failed", "" if ending == "raises" else "task-died")
    assert dead(pids)


def test_when_it_is_cancelled(fragile: Live, traces: Traces) -> None:
    """Two at once, as the agent hears of it with its next heartbeat: one that sleeps, and one that is stopped."""
    with new_traces(fragile) as others:
        launches = [
            start(fragile, traces, "t12cancel", "time.sleep(1000)"),
            start(fragile, others, "t12stopped", "time.sleep(1000)"),
        ]
        os.kill(launches[1][1][0], signal.SIGSTOP)
        for launch_id, pids in launches:
            assert [is_alive(pid) for pid in pids] == [True] * 5
            assert fragile.http("POST", f"/v1/launches/{launch_id}/cancel").status == 200
        for launch_id, pids in launches:
            ended = fragile.wait(launch_id)
            assert (ended["state"], ended["exit_code"]) == ("cancelled", 137)
            assert dead(pids)


@pytest.mark.parametrize("meanwhile", ["time.sleep(1000)", "while True: pass"], ids=["sleeps", "busy"])
def test_when_its_time_is_over(live: Live, traces: Traces, meanwhile: str) -> None:
    launch_id, pids = start(live, traces, "t12time", meanwhile, run_id=meanwhile[:4], timeout_seconds=2)
    ended = live.wait(launch_id)
    assert (ended["state"], ended["error"], ended["exit_code"]) == ("failed", "timeout", 137)
    assert dead(pids)
    said = {line["event"]: line["at"] for line in live.journal() if line.get("launch_id") == launch_id}
    assert 2_000_000 <= said["result"] - said["grant"] < 4_000_000


def test_when_the_agent_is_killed(fragile: Live, traces: Traces) -> None:
    launch_id, pids = start(fragile, traces, "t12agent", "time.sleep(1000)")
    assert [is_alive(pid) for pid in pids] == [True] * 5
    fragile.stack.stop("agent", number=signal.SIGKILL)
    try:
        until("all of the task is dead", lambda: dead(pids))
        (told,) = until(
            "the journal tells the end",
            lambda: [
                line for line in fragile.journal() if (line.get("launch_id"), line["event"]) == (launch_id, "result")
            ],
        )
        assert told["state"] == "cancelled"
    finally:
        fragile.stack.start_agent()


def test_when_the_launcher_is_told_to_stop(fragile: Live, traces: Traces) -> None:
    _, pids = start(fragile, traces, "t12term", "time.sleep(1000)")
    fragile.stack.stop("launcher")
    try:
        assert dead(pids)
    finally:
        fragile.stack.start_launcher()


@pytest.mark.root
def test_when_the_notary_is_killed(fragile: Live, traces: Traces, profile: str) -> None:
    """The monitor ends all that was started, in every profile, and then itself."""
    _, pids = start(fragile, traces, "t12notary", "time.sleep(1000)")
    launcher = fragile.stack.processes.pop("launcher")
    below = tree_of(launcher.pid)
    os.kill(notary_pid_of(launcher.pid), signal.SIGKILL)
    assert launcher.wait(10) == 128 + signal.SIGKILL
    assert dead(pids) and not [pid for pid in below if is_alive(pid)]
    assert not fragile.stack.launcher_socket.exists()
    fragile.stack.start_launcher()
    assert fragile.launch("t12notary", "t", "again", timeout_seconds=1)["error"] == "timeout", "it works again"


@pytest.mark.root
def test_when_the_launcher_is_killed(fragile: Live, traces: Traces, profile: str) -> None:
    """With namespaces all of it dies at once. Else the task dies with its parent, and what it left at the next start, before
    anything else is done."""
    _, pids = start(fragile, traces, "t12kill", "time.sleep(1000)")
    launcher = fragile.stack.processes["launcher"].pid
    fragile.stack.stop("launcher", number=signal.SIGKILL)
    assert not os.path.exists(f"/proc/{launcher}")
    if profile == "minimal":
        until("the task is dead", lambda: dead(pids[:1]))
        assert not dead(pids), "what minimal does not promise"
    else:
        until("all of the task is dead", lambda: dead(pids))
    fragile.stack.start_launcher()
    assert dead(pids)
    assert fragile.launch("t12kill", "t", "again", timeout_seconds=1)["error"] == "timeout", "it works again"

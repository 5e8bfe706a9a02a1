"""T21 log-flood: a task writes without end, on all that it can write to: to keep the launcher from its neighbours, to fill
memory or disk, or so that it cannot be ended.

Seen to fail when weakened: `Allowance.spend` that is never over; `TaskLog` that counts bytes and not reads (packets); `Run`
that waits for its log before it ends the task.
"""

from __future__ import annotations

import os
import time

import pytest

from launcher.policy import Limits
from tests.attacks.attacker import LyingAgent, Traces, dag, is_alive, notary_pid, opened, result_of, tree_of, until
from tests.live import Live

LIMITS = Limits()
FLOODING_SECONDS = 6.0
BURST_SECONDS = 4
READ_COST_BYTES = 4096
PIPE_BUFFERS = 64
MIB = 1 << 20
FLOOD = """
import fcntl, os, time
def flood(fd, data, until=lambda: False, flags=0):
    # A pipe that nobody reads makes `write` wait: from time to time it is looked at the clock all the same.
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | flags)
    written = 0
    while not until():
        try:
            written += os.write(fd, data)
        except BlockingIOError:
            time.sleep(0.001)
    return written

def flood_all(data):
    for fd in (1, 2, 6):
        if os.fork() == 0:
            flood(fd, data)
"""
DATA = {
    "lines": 'b"x" * 65_535 + b"\\n"',
    "no line": 'b"x" * 65_536',
    "byte by byte": 'b"\\n"',
    "packets": 'b"\\n"',  # pipe(7): with O_DIRECT each write is a read, however small
    "escaped": "bytes(65_536)",
}


def pushed(live: Live, traces: Traces, dag_id: str, body: str) -> None:
    made = live.push(f"{dag_id}.py", dag(dag_id, body, top=traces.source() + FLOOD))
    assert made.status in (200, 201), made.body


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("how", DATA)
def test_a_flood_is_slowed_and_costs_the_neighbours_little(live: Live, traces: Traces, how: str) -> None:
    dag_id = f"t21{how.replace(' ', '')}"
    flags = os.O_DIRECT if how == "packets" else 0
    body = f"""
        end = time.monotonic() + {FLOODING_SECONDS}
        trace("begun")
        trace("written", str(flood(1, {DATA[how]}, lambda: time.monotonic() >= end, {flags})))
    """
    pushed(live, traces, dag_id, body)
    pushed(live, traces, "t21neighbour", "pass")
    launcher = notary_pid(live)
    made = live.http("POST", "/v1/launches", {"dag_id": dag_id, "task_id": "t", "run_id": str(traces.path)[-8:]})
    until("it has begun", lambda: traces.of("begun"))
    start, before = time.monotonic(), cpu_seconds(launcher)
    run_id = f"beside-{traces.path.name}"
    assert live.launch("t21neighbour", "t", run_id)["state"] == "success"
    assert not traces.of("written"), "the neighbour did not wait for the end of the flood"
    ended = live.wait(made.json["id"])
    took, used = time.monotonic() - start, cpu_seconds(launcher) - before
    assert ended["state"] == "success"
    assert used < 0.5 * took, f"the launcher was busy for {used:.1f} s of {took:.1f} s"
    allowed, written = LIMITS.log_bytes_per_second * (BURST_SECONDS + FLOODING_SECONDS), int(traces.text("written"))
    assert written <= allowed + MIB
    assert ended["log_bytes"] <= LIMITS.max_log_bytes + 1000
    if how == "packets":
        assert written <= allowed / READ_COST_BYTES + PIPE_BUFFERS
    elif how != "byte by byte":
        assert written > LIMITS.log_bytes_per_second * BURST_SECONDS
        assert ended["log_truncated"]


ENDS = ("cancel", "gone", "time")


@pytest.mark.parametrize("end", ENDS)
def test_a_flood_on_all_three_ends_within_a_second(live: Live, agent: LyingAgent, traces: Traces, end: str) -> None:
    """Also when the agent reads nothing of it, so that the launcher is full of log."""
    pushed(live, traces, f"t21{end}", 'trace("task")\nflood_all(b"y" * 4095 + b"\\n")\ntime.sleep(1000)')
    offer = agent.offer(f"t21{end}", timeout_seconds=3 if end == "time" else 600)
    with agent.connect() as peer, opened(offer.blob) as fd:
        peer.grant(agent.claim(offer.launch_id, peer.run(offer.ticket, offer.manifest, fd).envelope).body)
        until("the task is there", lambda: traces.of("task"))
        task = traces.pid("task")
        pids = until("all three flood", lambda: found if len(found := tree_of(task)) == 4 else None)
        start = time.monotonic()
        if end == "cancel":
            peer.send("cancel", grace_seconds=0)
        elif end == "gone":
            peer.__exit__()
        until("all of it is dead", lambda: not any(map(is_alive, pids)))
        took = time.monotonic() - start
        assert took < (3.5 if end == "time" else 1.0), took
        if end != "gone":
            result = result_of(live, peer.hear_end()[0])
            wanted = ("failed", "timeout") if end == "time" else ("cancelled", "cancelled")
            assert (result.state, result.error, result.exit_code) == (*wanted, 137)


def test_a_task_that_is_done_does_not_wait_for_what_its_children_write(
    live: Live, agent: LyingAgent, traces: Traces
) -> None:
    wait = f'while not os.path.exists("{traces.path}/go"): time.sleep(0.01)'
    pushed(live, traces, "t21done", f'trace("task")\nflood_all(b"z" * 4095 + b"\\n")\n{wait}')
    offer = agent.offer("t21done")
    with agent.connect() as peer, opened(offer.blob) as fd:
        peer.grant(agent.claim(offer.launch_id, peer.run(offer.ticket, offer.manifest, fd).envelope).body)
        until("the task is there", lambda: traces.of("task"))
        task = traces.pid("task")
        pids = until("all three flood", lambda: found if len(found := tree_of(task)) == 4 else None)
        traces.allow("go")
        result = result_of(live, peer.hear_end()[0])
    assert result.state == "success"
    assert not any(map(is_alive, pids))
    assert result.ended_at - result.started_at - result.timings_us["finished"] < 1_000_000

"""T10 secret-leak: the pipe that a grant comes through, while somebody else holds an end of it, and with tasks that do not read
it, close it, or keep it.

Import-time code of the archive runs before the grant, so it can put its own in the place of what reads the pipe: it harms its
own launch, and nobody else's.

Seen to fail when weakened: a warm process that keeps its copies of a fork's descriptors; `give_secrets` that takes EPIPE for
delivered; a task that reads its pipe once and not to the end; a run without its deadline.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.attacker import (
    PROBES,
    LyingAgent,
    Traces,
    dag,
    is_alive,
    notary_pid,
    opened,
    outer_pid,
    result_of,
    traced_dag,
    until,
)
from tests.live import Live

PROFILES = ("standard", "minimal", "strict")
HELD = "def held():\n try:\n  os.fstat(5)\n  return True\n except OSError:\n  return False\n"  # not so in a description


def pushed(live: Live, dag_id: str, source: str) -> None:
    answer = live.push(f"{dag_id}.py", source)
    assert answer.status in (200, 201), answer.body


def granted(live: Live, name: str, password: str) -> None:
    assert live.http("PUT", f"/v1/connections/{name}", {"value": f"http://me:{password}@host"}).status in (200, 201)
    body = {"kind": "connection", "name": name, "to_kind": "principal", "to": "admin"}
    assert live.http("POST", "/v1/grants", body).status in (201, 409)


def journal_of(live: Live, launch: dict[str, Any]) -> dict[str, int]:
    """What the launcher wrote about it, in order, and when."""
    return {line["event"]: line["at"] for line in live.journal() if line.get("launch_id") == launch["id"]}


def holders(pid: int) -> dict[int, str]:
    """Who on this host has an end of the pipe that is descriptor 5 of this process: `r` or `w`."""
    pipe, found = os.readlink(f"/proc/{pid}/fd/5"), {}
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(path) == pipe:
                flags = (path.parents[1] / "fdinfo" / path.name).read_text().partition("flags:")[2].split()[0]
                found[int(path.parts[2])] = "w" if int(flags, 8) & os.O_ACCMODE else "r"
        except OSError:
            continue
    return found


@pytest.mark.root
def test_nobody_else_has_an_end_of_it(live: Live, agent: LyingAgent, traces: Traces) -> None:
    """Of two tasks that wait for their grants: else one would not come to the end of what it reads until the other is gone. The
    second gets its own, and ends, while the first goes on waiting."""
    pushed(live, "t10ends", traced_dag("t10ends", traces))
    launcher = notary_pid(live)
    offers = [agent.offer("t10ends"), agent.offer("t10ends")]
    with agent.connect() as first, agent.connect() as second, opened(offers[0].blob) as fd:
        claims, waiting = [], []
        for peer, offer in zip((first, second), offers, strict=True):
            known = set(traces.of("import"))
            claims.append(peer.run(offer.ticket, offer.manifest, fd))
            (trace,) = set(traces.of("import")) - known
            waiting.append(outer_pid(trace))
        for pid in waiting:
            assert holders(pid) == {pid: "r", launcher: "w"}
        second.grant(agent.claim(offers[1].launch_id, claims[1].envelope).body)
        assert result_of(live, second.hear_end()[0]).state == "success"
        assert holders(waiting[0]) == {waiting[0]: "r", launcher: "w"}
    until("the first ends with its caller", lambda: not is_alive(waiting[0]))
    assert len(traces.of("ran")) == 1


def test_more_than_a_pipe_holds(live: Live, traces: Traces) -> None:
    """Six times its 64 KiB arrive whole."""
    name, password = f"t10{secrets.token_hex(4)}", secrets.token_hex(200_000)
    granted(live, name, password)
    body = f"""
        import hashlib
        from airflow.sdk import BaseHook
        trace("got", hashlib.sha512(BaseHook.get_connection({name!r}).password.encode()).hexdigest())
    """
    pushed(live, "t10large", dag("t10large", body, top=traces.source()))
    ended = live.launch("t10large", "t", secrets.token_hex(4))
    assert live.http("DELETE", f"/v1/connections/{name}").status == 204
    assert ended["state"] == "success", ended["detail"] + live.log(ended["id"])
    assert traces.text("got") == hashlib.sha512(password.encode()).hexdigest()


def test_a_task_that_never_reads_it(live: Live, traces: Traces) -> None:
    """It is killed when its time is over; others do not wait for it."""
    top = traces.source() + (
        "import time, launcher.task.child as child\n"
        "def never():\n trace('waits')\n time.sleep(1000)\n"
        "child._read_secrets = never\n"
    )
    pushed(live, "t10never", dag("t10never", 'trace("ran")', top=top))
    pushed(live, "t10other", traced_dag("t10other", traces))
    body = {"dag_id": "t10never", "task_id": "t", "run_id": secrets.token_hex(4), "timeout_seconds": 5}
    launch_id = live.http("POST", "/v1/launches", body).json["id"]
    until("it waits", lambda: traces.of("waits"))
    pid = traces.pid("waits")
    assert live.launch("t10other", "t", secrets.token_hex(4))["state"] == "success"
    assert is_alive(pid), "the other one did not wait for this"
    ended = live.wait(launch_id)
    assert (ended["state"], ended["error"], ended["exit_code"]) == ("failed", "timeout", 137)
    assert not is_alive(pid)
    said = journal_of(live, ended)
    assert list(said) == ["launch", "claim", "grant", "result"]
    assert 5_000_000 <= said["result"] - said["grant"] < 8_000_000
    assert len(traces.of("ran")) == 1, "that of the other one"


def test_tasks_that_close_it(live: Live, traces: Traces) -> None:
    """Writing to nobody is an error of that launch (EPIPE), and the launcher works on."""
    top = HELD + traces.source() + (
        "import time, launcher.task.child as child\n"
        "if held():\n os.close(5)\n"
        "child._read_secrets = lambda: time.sleep(1000)\n"
    )  # fmt: skip
    pushed(live, "t10closed", dag("t10closed", 'trace("ran")', top="import os\n" + top))
    launcher = notary_pid(live)
    for _ in range(8):
        ended = live.launch("t10closed", "t", secrets.token_hex(4))
        assert (ended["state"], ended["error"], ended["exit_code"]) == ("failed", "task-died", 137)
        assert ended["detail"].endswith("the task closed its secrets pipe without reading it")
        assert list(journal_of(live, ended)) == ["launch", "claim", "grant", "result"]
    assert not traces.of("ran")
    assert is_alive(launcher)


@pytest.mark.root
def test_a_child_that_keeps_it(live: Live, traces: Traces) -> None:
    """A process that was forked at import holds the pipe and does not read: the task gets its grant all the same, and the
    other dies with it."""
    name, password = f"t10{secrets.token_hex(4)}", secrets.token_hex(16)
    granted(live, name, password)
    top = PROBES + traces.source() + HELD + (
        "if held() and os.fork() == 0:\n os.setsid()\n trace('keeps')\n wait_for('/nonexistent')\n os._exit(0)\n"
    )  # fmt: skip
    body = f"""
        from airflow.sdk import BaseHook
        trace("got", str(BaseHook.get_connection({name!r}).password == {password[::-1]!r}[::-1]))
        wait_for({str(traces.path / "go")!r})
    """
    pushed(live, "t10keeps", dag("t10keeps", body, top=top))
    body = {"dag_id": "t10keeps", "task_id": "t", "run_id": secrets.token_hex(4)}
    launch_id = live.http("POST", "/v1/launches", body).json["id"]
    until("the task has its connection", lambda: traces.of("got"))
    child = traces.pid("keeps")
    assert traces.text("got") == "True"
    traces.allow("go")
    assert live.wait(launch_id)["state"] == "success"
    assert not is_alive(child)
    assert live.http("DELETE", f"/v1/connections/{name}").status == 204

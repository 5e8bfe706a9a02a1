"""T10 secret-leak: a connection's password is found anywhere but in the task that was granted it.

A task gets its connection and holds it while everything else is searched for the password: every command line and
environment of the host, every byte below the stack's folder, the agent's memory. Then it prints it, and it is searched again.

Seen to fail when weakened: connections put into the task's environment; a journal line with the values; rows stored
in clear; a grant that is signed and not sealed; `logs.masked` that returns its text; `child.arrange` with inheritable
descriptors.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.attacker import PROBES, LyingAgent, Traces, dag, opened, outer_pid, spares_of, until, warm_pids
from tests.live import Live

PROFILES = ("standard", "minimal", "strict")
STOPPED = {"PermissionError", "FileNotFoundError", "ProcessLookupError", "OSError"}
HOLD = 'trace("holds", str(len(password)))\nwait_for("{path}/go")\n'


@pytest.fixture
def canary(live: Live) -> Iterator[str]:
    """A password that is nowhere else, in the connection `t10`, and in the variable `t10`."""
    made = f"canary{secrets.token_hex(12)}"
    for kind, value in (("connection", f"postgres://me:{made}@db.example.com/x"), ("variable", made)):
        assert live.http("PUT", f"/v1/{kind}s/t10", {"value": value}).status in (200, 201)
        body = {"kind": kind, "name": "t10", "to_kind": "principal", "to": "admin"}
        assert live.http("POST", "/v1/grants", body).status in (201, 409)
    yield made
    for kind in ("connection", "variable"):
        assert live.http("DELETE", f"/v1/{kind}s/t10").status == 204


def forms(canary: str) -> list[bytes]:
    """As it is, in hexadecimal, in UTF-16, backwards; and in base64, and that in base64, wherever it begins."""
    raw = canary.encode()
    once = [in_base64(raw, before) for before in range(3)]
    twice = [in_base64(text, before) for text in once for before in range(3)]
    return [raw, raw.hex().encode(), canary.encode("utf-16-le"), raw[::-1], *once, *twice]


def in_base64(raw: bytes, before: int) -> bytes:
    """The characters that stand for `raw` alone, with so many bytes (modulo three) before it."""
    text = base64.b64encode(b"x" * before + raw)
    return text[4 : len(text) // 4 * 4 - 4]


def files_with(folder: Path, canary: str) -> list[str]:
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            found += [str(path) for form in forms(canary) if form in data]
    return found


def processes_with(canary: str) -> list[str]:
    """In what /proc shows to root (or to this user) of how processes were started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                data = (process / name).read_bytes()
            except OSError:
                continue
            found += [f"{process}/{name}" for form in forms(canary) if form in data]
    return found


def memory_has(pid: int, canary: str) -> bool:
    """Whether any private writable page of this process holds it."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            where, permissions = line.split()[:2]
            if permissions[:2] != "rw":
                continue
            start, end = (int(part, 16) for part in where.split("-"))
            memory.seek(start)
            try:
                data = memory.read(end - start)
            except OSError:
                continue
            if any(form in data for form in forms(canary)):
                return True
    return False


def launched(live: Live, dag_id: str, body: str, top: str) -> str:
    pushed = live.push(f"{dag_id}.py", dag(dag_id, body, top=top))
    assert pushed.status == 201, pushed.body
    made = live.http("POST", "/v1/launches", {"dag_id": dag_id, "task_id": "t", "run_id": secrets.token_hex(4)})
    assert made.status == 201, made.body
    return str(made.json["id"])


def holding(live: Live, traces: Traces, dag_id: str, more: str = "") -> str:
    """A launch whose task got the connection and waits for `go`; then it does `more`."""
    body = (
        'from airflow.sdk import BaseHook\npassword = BaseHook.get_connection("t10").password\n'
        + HOLD.format(path=traces.path)
        + more
    )
    launch_id = launched(live, dag_id, body, PROBES + traces.source())
    until("the task holds its password", lambda: traces.of("holds"))
    return launch_id


def test_while_a_task_holds_it_and_after(live: Live, traces: Traces, canary: str) -> None:
    more = (
        "import logging, sys\n"
        'print("printed", password)\n'
        'print("printed", password, file=sys.stderr)\n'
        'logging.getLogger("mine").warning("logged %s", password)\n'
        'from airflow.sdk import Variable\nprint("variable", Variable.get("t10"))\n'
        'raise RuntimeError(f"raised {password}")\n'
    )
    launch_id = holding(live, traces, "t10hold", more)
    assert traces.text("holds") == str(len(canary)), "the password did not arrive"
    assert processes_with(canary) == []
    assert files_with(live.stack.folder, canary) == []
    if live.stack.privileged:
        task = traces.pid("holds")
        assert memory_has(task, canary), "the search does not even find it where it is"
        assert not memory_has(live.stack.processes["agent"].pid, canary)
        for warm in (*warm_pids(live, "run"), *warm_pids(live, "describe")):
            assert not [pid for pid in (warm, *spares_of(warm)) if pid != task and memory_has(pid, canary)]

    traces.allow("go")
    ended = live.wait(launch_id)
    assert ended["state"] == "failed", ended
    log = live.log(launch_id)
    for word in ("printed ***", "logged ***", "variable ***", "raised ***"):
        assert word in log, log
    answers = [log, ended["detail"], str(live.audit()), str(live.journal())]
    answers += [live.http("GET", f"/v1/{kind}s/t10").body.decode() for kind in ("connection", "variable")]
    answers += [
        live.http("GET", path).body.decode()
        for path in ("/v1/connections", "/v1/variables", "/v1/launches", "/metrics")
    ]
    assert not [answer for answer in answers if canary in answer]
    assert files_with(live.stack.folder, canary) == []
    assert processes_with(canary) == []
    if live.stack.privileged:
        assert not memory_has(live.stack.processes["agent"].pid, canary)
    # What was delivered is known by name.
    delivered = [
        event["object"]
        for event in live.audit()
        if event["action"] == "secret.deliver" and launch_id in event["detail"]
    ]
    assert {"connection:t10", "variable:t10"} <= set(delivered)
    (line,) = [one for one in live.journal() if one["event"] == "grant" and one["launch_id"] == launch_id]
    assert "t10" in line["connections"]


def test_what_a_task_starts_gets_nothing(live: Live, traces: Traces, canary: str) -> None:
    """As BashOperator does it: neither pipe, memfd nor control socket, and nothing in its environment."""
    body = """
        import subprocess
        from airflow.sdk import BaseHook
        assert BaseHook.get_connection("t10").password
        done = subprocess.run("ls -l /proc/self/fd; env; cat /proc/self/cmdline", shell=True, capture_output=True, text=True)
        trace("shell", done.stdout)
        done = subprocess.run(["ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, text=True)
        trace("open", done.stdout)
        from airflow.providers.standard.operators.bash import BashOperator
        trace("bash", BashOperator(task_id="x", bash_command="env; ls -l /proc/$$/fd | tr '\\n' ';'").execute({}))
    """
    launch_id = launched(live, "t10shell", body, traces.source())
    ended = live.wait(launch_id)
    assert ended["state"] == "success", live.log(launch_id)
    for word in ("shell", "open", "bash"):
        text = traces.text(word)
        assert text, word
        assert canary not in text
        assert "socket:" not in text
        assert "memfd:" not in text
        # Besides input, output and error `ls` has the folder that it lists.
        if word == "open":
            fds = {int(line.split()[8]) for line in text.splitlines() if "->" in line}
            assert fds == {0, 1, 2, 3}, text
    assert canary not in live.log(launch_id)


@pytest.mark.root
def test_a_neighbour_of_the_same_user(live: Live, traces: Traces, canary: str) -> None:
    victim = holding(live, traces, "t10victim")
    pid = traces.pid("holds")
    body = f"import json\ntrace('looked', json.dumps(look_into({pid}, fds=range(8))))"
    launch_id = launched(live, "t10thief", body, PROBES + traces.source())
    assert live.wait(launch_id)["state"] == "success", live.log(launch_id)
    looked = traces.json("looked")
    assert not {way: got for way, got in looked.items() if got not in STOPPED}
    assert memory_has(pid, canary), "there was something to be stolen"
    traces.allow("go")
    assert live.wait(victim)["state"] == "success"


@pytest.mark.root
def test_a_neighbour_while_the_secret_is_still_in_the_pipe(live: Live, traces: Traces, canary: str) -> None:
    """A task that waits for its grant: its pipe cannot be had by a neighbour, who would then read in its place."""
    liar = LyingAgent.enrol(live)
    source = dag("t10pipe", 'trace("ran")', top=PROBES + traces.source() + 'trace("import")\n')
    assert live.push("t10pipe.py", source).status == 201
    offer = liar.offer("t10pipe")
    known = set(traces.of("import"))
    with liar.connect() as peer, opened(offer.blob) as fd:
        claim = peer.run(offer.ticket, offer.manifest, fd)
        assert claim.kind == "claim"
        (waiting,) = set(traces.of("import")) - known
        pid = outer_pid(waiting)
        assert os.readlink(f"/proc/{pid}/fd/5").startswith("pipe:")
        body = f"import json\ntrace('looked', json.dumps(look_into({pid}, fds=range(8))))"
        launch_id = launched(live, "t10waiter", body, PROBES + traces.source())
        assert live.wait(launch_id)["state"] == "success", live.log(launch_id)
        assert not {way: got for way, got in traces.json("looked").items() if got not in STOPPED}
        grant = liar.claim(offer.launch_id, claim.envelope)
        assert grant.status == 200
        payload = json.loads(base64.b64decode(json.loads(grant.body)["payload"]))
        for seen in (grant.body, base64.b64decode(payload.pop("sealed")), json.dumps(payload).encode()):
            assert not [form for form in forms(canary) if form in seen], "the agent could read it"
        peer.grant(grant.body)
        peer.hear_end()
    assert traces.of("ran")


def test_what_was_not_granted(live: Live, traces: Traces, canary: str) -> None:
    """A connection that exists and is somebody else's: not in the task, however it asks."""
    other = f"canary{secrets.token_hex(12)}"
    assert live.http("PUT", "/v1/connections/t10other", {"value": f"http://a:{other}@b"}).status in (200, 201)
    body = """
        import gc, json
        from airflow.sdk import BaseHook, Connection
        import launcher.task.secrets as ours
        tries = {
            "hook": attempt(BaseHook.get_connection, "t10other"),
            "class": attempt(Connection.get, "t10other"),
            "value": attempt(ours.connection_value, "t10other"),
            "environ": attempt(os.environ.__getitem__, "AIRFLOW_CONN_T10OTHER"),
        }
        trace("tries", json.dumps(tries))
        trace("state", repr(ours._state.secrets.connections))
    """
    launch_id = launched(live, "t10other", body, PROBES + traces.source())
    ended = live.wait(launch_id)
    assert ended["state"] == "success", live.log(launch_id)
    tries = traces.json("tries")
    assert tries.pop("value") == "GOT None"
    assert not [got for got in tries.values() if got.startswith("GOT")], tries
    assert canary in traces.text("state")
    assert other not in traces.text("state")
    events = [event for event in live.audit(object="connection:t10other") if event["action"] == "secret.deliver"]
    assert events == []

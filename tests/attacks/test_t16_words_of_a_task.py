"""T16 uninvited-caller: a task's own code at the control socket of its process, and at the launcher's, in somebody else's name.

What a task says of itself it can say by any code of it: that it succeeded, for one. What is not its word ends its launch, is
about nobody else, and costs the launcher neither memory nor descriptors.

Seen to fail when weakened: `TaskProcess.answer` that takes any word; `Run._finished` that takes the launcher's own states;
`Channel` without its limit for frames of tasks, or that takes descriptors where none are wanted; `Server._require` that permits
everybody.
"""

from __future__ import annotations

import base64
import json
import os
import pwd
import secrets
import socket
import struct
from pathlib import Path

import pytest

from integrity import messages
from tests.attacks.attacker import PROBES, LyingAgent, Peer, Traces, dag, opened, traced_dag, until, used_tickets
from tests.attacks.test_t16_uninvited_caller import settled_fds
from tests.live import Live

PROFILES = ("standard", "minimal", "strict")
LIE = {"state": "success", "exit_code": 0, "detail": "", "xcoms": [], "timings_us": {}}
DIGEST = "sha512:" + "0" * 128
WORDS = {
    "garbage": b"\xff" * 64,
    "nothing": struct.pack(">I", 0),
    "huge": struct.pack(">I", 0x7FFFFFFF) + b"x" * 4096,
    "over its limit": struct.pack(">I", (12 << 20) + 1) + b"{",
    "ready again": messages.encode("ready", task_digest=DIGEST),
    "hello again": messages.encode("hello", landlock_abi=7, seccomp_denied=70),
    "its last word under another name": messages.encode("ready", **LIE),
    "a request": messages.encode("identity"),
    "a launch more": messages.encode("finished", **LIE, launch_id="0" * 32),
    "a state of the launcher's": messages.encode("finished", **LIE | {"state": "refused"}),
    "no state": messages.encode("finished", **LIE | {"state": "done"}),
    "descriptors": messages.encode("finished", fds=1, **LIE),
}


def run(live: Live, traces: Traces, dag_id: str, body: str) -> dict[str, object]:
    top = f"{PROBES}\n{traces.source()}\nimport socket, time"
    pushed = live.push(f"{dag_id}.py", dag(dag_id, body, top=top))
    assert pushed.status in (200, 201), pushed.body
    return live.launch(dag_id, "t", secrets.token_hex(4), timeout_seconds=20)


def memory(live: Live) -> int:
    (line,) = [
        one
        for one in Path(f"/proc/{live.stack.processes['launcher'].pid}/status").read_text().splitlines()
        if one.startswith("VmHWM:")
    ]
    return int(line.split()[1])


@pytest.mark.parametrize("case", WORDS)
def test_what_is_not_its_word(live: Live, traces: Traces, case: str) -> None:
    before = memory(live)
    body = f"""
        sock = socket.socket(fileno=os.dup(3))
        trace("says it")
        socket.send_fds(sock, [{WORDS[case]!r}], [0] if {case!r} == "descriptors" else [])
        time.sleep(1000)
    """
    ended = run(live, traces, "t16words", body)
    assert (ended["state"], ended["error"], ended["exit_code"]) == ("failed", "malformed", 77), ended
    assert traces.of("says it")
    last = live.journal()[-1]
    assert (last["event"], last["launch_id"], last["state"]) == ("result", ended["id"], "failed")
    assert memory(live) - before < 4 << 10


@pytest.mark.root
def test_a_flood_of_descriptors(live: Live, traces: Traces) -> None:
    """As many as the kernel lets travel at once, beside one byte, a hundred times: none is opened at the other end."""
    run(live, traces, "t16settle", "pass")
    before = settled_fds(live) if live.stack.profile == "standard" else 0
    body = """
        sock = socket.socket(fileno=os.dup(3))
        sock.setblocking(False)
        for _ in range(100):
            socket.send_fds(sock, [b"\\0"], [0] * 253)
        time.sleep(1000)
    """
    ended = run(live, traces, "t16flood", body)
    assert (ended["state"], ended["error"]) == ("failed", "malformed"), ended
    if before:
        until("its descriptors are as before", lambda: settled_fds(live) <= before)


def test_a_lie_about_itself(live: Live, traces: Traces) -> None:
    """The word of a task is believed about that task: in the release's trust domain its code may as well return. It is dead
    before anybody hears of it."""
    word = messages.encode("finished", **LIE | {"detail": "said by the task's code"})
    ended = run(live, traces, "t16lie", f'trace("pid")\nos.write(3, {word!r})\ntime.sleep(1000)\ntrace("went on")')
    assert (ended["state"], ended["exit_code"], ended["detail"]) == ("success", 0, "said by the task's code")
    assert not traces.of("went on")


@pytest.mark.root
def test_credentials_in_a_message(live: Live, agent: LyingAgent, traces: Traces) -> None:
    """Root may attach anybody's (unix(7)); the launcher goes by who connected."""
    assert live.push("t16creds.py", traced_dag("t16creds", traces)).status in (200, 201)
    offer = agent.offer("t16creds")
    before, used = traces.all(), used_tickets(live)
    account = pwd.getpwnam(live.stack.accounts.agent)
    forged = struct.pack("3i", live.stack.processes["agent"].pid, account.pw_uid, account.pw_gid)
    fields = {"ticket": offer.ticket, "manifest": offer.manifest}
    frame = messages.encode("run", fds=1, **{name: _text(data) for name, data in fields.items()})
    with Peer(live, "root") as peer, opened(offer.blob) as fd:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))
        peer.ancillary(frame, [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, forged), rights])
        said = peer.hear()
        assert (said.kind, said.fields["error"]) == ("refused", "out-of-scope")
        assert peer.closed()
    line = live.journal()[-1]
    assert (line["event"], line["error"], line["uid"]) == ("refused", "out-of-scope", 0)
    assert (traces.all(), used_tickets(live)) == (before, used)


@pytest.mark.root
def test_a_task_at_the_launchers_socket(live: Live, traces: Traces) -> None:
    """With the credentials of the agent or of root, which the kernel does not let it attach; with its own it is refused, and
    with more descriptors than a request has."""
    account = pwd.getpwnam(live.stack.accounts.agent)
    frame = messages.encode("run", fds=1, ticket="e30=", manifest="e30=")
    body = f"""
        import json
        def ask(credentials, fds):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(10)
                sock.connect({str(live.stack.launcher_socket)!r})
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{{fds}}i", *[0] * fds))]
                if credentials:
                    ancillary.append((socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("3i", *credentials)))
                sock.sendmsg([{frame!r}], ancillary)
                return json.loads(sock.recv(65536)[4:])["error"]
        own = (os.getpid(), os.getuid(), os.getgid())
        forged = [(own[0], {account.pw_uid}, {account.pw_gid}), (own[0], 0, 0), (1 << 20, *own[1:])]
        said = [attempt(ask, credentials, 1) for credentials in forged] + [attempt(ask, own, 1), attempt(ask, own, 200)]
        trace("said", json.dumps(said))
    """
    ended = run(live, traces, "t16socket", "import struct\n" + body.replace("\n        ", "\n"))
    assert ended["state"] == "success", live.log(str(ended["id"]))
    *forged, own, many = json.loads(traces.text("said"))
    # An id that its user namespace does not have is EINVAL.
    assert set(forged) <= {"PermissionError", "OSError", "ProcessLookupError"}, forged
    assert own == "GOT 'out-of-scope'"
    assert many == "GOT 'malformed'" or many in ("ConnectionResetError", "BrokenPipeError", "JSONDecodeError"), many
    refused = [line for line in live.journal() if line["event"] == "refused"][-1]
    assert refused["uid"] == pwd.getpwnam(live.user).pw_uid
    assert os.path.exists(live.stack.launcher_socket)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()

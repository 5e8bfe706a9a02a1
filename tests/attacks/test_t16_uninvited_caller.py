"""T16 uninvited-caller: local accounts and broken peers at the launcher's socket.

After everything the launcher answers as before, has the descriptors that it had, and no more memory.

Seen to fail when weakened: `Server._require` that permits everybody; `_answer` that does not count descriptors;
`body_length` without its limit; `Channel.receive` that keeps the descriptors of a refused frame; `CallerWord.about_the_claim`
that takes any word.
"""

from __future__ import annotations

import base64
import os
import resource
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from integrity import messages
from tests.attacks.attacker import (
    LyingAgent,
    Offer,
    Peer,
    Traces,
    notary_pid,
    opened,
    result_of,
    slug_of,
    spares_of,
    status_of,
    traced_dag,
    until,
    used_tickets,
    warm_pids,
)
from tests.live import Live

SHA = "sha512:" + "0" * 128


@pytest.fixture
def offer(live: Live, agent: LyingAgent, traces: Traces) -> Offer:
    answer = live.push("t16.py", traced_dag("t16", traces))
    assert answer.status == 201, answer.body
    return agent.offer("t16")


def halves(live: Live) -> tuple[int, int]:
    return live.stack.processes["launcher"].pid, notary_pid(live)


def fds(live: Live) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in halves(live))


def watched_by(pid: int) -> set[int]:
    """The processes that it holds a pidfd of (proc_pid_fdinfo(5))."""
    watched = set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # closed since
            watched |= {int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("Pid:")}
    return watched


def connections(live: Live) -> int:
    """How many the launcher has open at its socket: all sockets of that path but the listening one (proc_net_unix(5))."""
    path = str(live.stack.launcher_socket)
    lines = Path("/proc/net/unix").read_text().splitlines()
    return sum(line.endswith(f" {path}") for line in lines) - 1


def settled_fds(live: Live) -> int:
    """When nobody is connected and every warm process has its two spares, each of which keeps some."""

    def settled() -> int:
        spares = [spares_of(warm) for purpose in ("run", "describe") for warm in warm_pids(live, purpose)]
        if any(len(two) != 2 or {status_of(pid)["Seccomp"] for pid in two} != {"2"} for two in spares):
            return 0
        waiting = {pid for two in spares for pid in two}
        if not all(waiting <= watched_by(half) for half in halves(live)):
            return 0  # its pidfd is the last of its descriptors that each half opens, after it waits
        return 0 if connections(live) else fds(live)

    return until("all spares are there", settled)


def alive(live: Live) -> bool:
    with Peer(live, live.stack.accounts.agent) as peer:
        peer.send("identity")
        return peer.hear().kind == "identity"


@pytest.fixture(autouse=True)
def unharmed(live: Live) -> Iterator[None]:
    """Around each test: it answers, and every descriptor that came was closed."""
    before = settled_fds(live)
    yield
    assert alive(live)
    until("its descriptors are as before", lambda: settled_fds(live) <= before)


@pytest.mark.root
@pytest.mark.parametrize(
    ("who", "kind", "permitted"),
    [
        ("task", "run", False),
        ("task", "describe", False),
        ("task", "identity", True),
        ("parser", "run", False),
        ("parser", "describe", False),
        ("agent", "describe", False),
        ("api", "run", False),
        ("root", "run", False),
        ("root", "describe", False),
    ],
)
def test_who_may_ask_for_what(live: Live, traces: Traces, offer: Offer, who: str, kind: str, permitted: bool) -> None:
    accounts = live.stack.accounts
    account = {"task": live.user, "parser": accounts.parser, "agent": accounts.agent, "api": accounts.api}.get(who, who)
    before, used = traces.all(), used_tickets(live)
    with Peer(live, account) as peer, opened(offer.blob) as fd:
        if kind == "run":
            said = peer.run(offer.ticket, offer.manifest, fd)
        elif kind == "describe":
            peer.send("describe", pass_fds=[fd], name="t16.py", digest=str(offer.digest), task_check="task")
            said = peer.hear()
        else:
            peer.send("identity")
            said = peer.hear()
        if permitted:
            assert said.kind == kind
            assert set(said.fields) == {"fds", "verify_key", "sealing_key", "version", "privileged", "warnings"}
        else:
            assert (said.kind, slug_of(live, said)) == ("refused", "out-of-scope")
            assert peer.closed()
            line = live.journal()[-1]
            assert (line["event"], line["request"], line["error"]) == ("refused", kind, "out-of-scope")
            assert f"unix user {account} " in line["detail"]
    assert (traces.all(), used_tickets(live)) == (before, used)


def malformed(live: Live, peer: Peer) -> None:
    """Refused as malformed, or not even answered; closed in any case."""
    try:
        assert slug_of(live, peer.hear()) == "malformed"
    except EOFError:
        return
    assert peer.closed()


@pytest.mark.parametrize(
    "kind", ["grant", "deny", "cancel", "warm", "fork", "hello", "job", "ready", "finished", "log", "", "RUN"]
)
def test_words_that_are_no_request(live: Live, agent: LyingAgent, kind: str) -> None:
    with agent.connect() as peer:
        peer.send(kind)
        malformed(live, peer)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("identity", {"more": 1}),
        ("run", {}),
        ("run", {"ticket": "e30="}),
        ("run", {"ticket": "e30=", "manifest": "e30=", "user": "root"}),
        ("run", {"ticket": 1, "manifest": []}),
        ("run", {"ticket": "e30", "manifest": "e30="}),
    ],
)
def test_fields_that_are_not_its_own(live: Live, agent: LyingAgent, kind: str, fields: dict[str, object]) -> None:
    with agent.connect() as peer, opened(b"x") as fd:
        peer.send(kind, pass_fds=[fd] if kind == "run" else [], **fields)
        malformed(live, peer)


def test_out_of_order(live: Live, agent: LyingAgent, traces: Traces, offer: Offer) -> None:
    """After the claim: only grant, deny or cancel. Anything else ends the run, also with a true grant in it, and with a
    descriptor; the task gets nothing."""
    for word in ("run", "describe", "identity", "log", "GRANT"):
        fresh = offer if word == "run" else agent.offer("t16")
        with agent.connect() as peer, opened(fresh.blob) as fd:
            claim = peer.run(fresh.ticket, fresh.manifest, fd)
            assert claim.kind == "claim"
            grant = agent.claim(fresh.launch_id, claim.envelope)
            assert grant.status == 200
            peer.send(word, pass_fds=[fd] if word == "run" else [], envelope=base64.b64encode(grant.body).decode())
            said, _ = peer.hear_end()
            assert slug_of(live, said) == "malformed", word
    assert not traces.of("ran")


def test_words_while_the_task_runs(live: Live, agent: LyingAgent, traces: Traces) -> None:
    source = traces.source() + (
        "import time\nfrom airflow.sdk import DAG, task\nwith DAG('t16runs', schedule=None):\n    @task\n    def t():\n"
        "        trace('ran')\n        time.sleep(1000)\n    t()\n"
    )
    assert live.push("t16runs.py", source).status == 201
    for word, expected in (("grant", "failed"), ("cancel", "cancelled"), ("identity", "failed")):
        offer = agent.offer("t16runs")
        known = set(traces.of("ran"))
        with agent.connect() as peer, opened(offer.blob) as fd:
            claim = peer.run(offer.ticket, offer.manifest, fd)
            grant = agent.claim(offer.launch_id, claim.envelope)
            peer.grant(grant.body)
            until("the task runs", lambda known=known: set(traces.of("ran")) - known)
            if word == "grant":
                peer.grant(grant.body)
            else:
                peer.send(word, **({"grace_seconds": 0} if word == "cancel" else {}))
            said, _ = peer.hear_end()
            result = result_of(live, said)
            error = "cancelled" if word == "cancel" else "malformed"
            assert (result.state, result.error) == (expected, error), word


def test_descriptors_of_the_wrong_kind(
    live: Live, agent: LyingAgent, traces: Traces, offer: Offer, tmp_path: Path
) -> None:
    before, used = traces.all(), used_tickets(live)
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    with ExitStack() as stack:
        read, write = os.pipe()
        pair = socket.socketpair()
        for end in pair:
            stack.callback(end.close)
        file = stack.enter_context(opened(offer.blob))
        huge = stack.enter_context(opened(b""))
        os.ftruncate(huge, 1 << 40)
        kinds = {
            "pipe": read,
            "its other end": write,
            "socket": pair[0].fileno(),
            "folder": os.open("/", os.O_RDONLY | os.O_DIRECTORY),
            "zero": os.open("/dev/zero", os.O_RDONLY),
            "fifo": os.open(fifo, os.O_RDWR),
            "path": os.open(f"/proc/self/fd/{file}", os.O_PATH),
            "write only": os.open(f"/proc/self/fd/{file}", os.O_WRONLY),
            "empty": stack.enter_context(opened(b"")),
            "huge": huge,
            "epoll": stack.enter_context(select.epoll()).fileno(),
        }
        for name, fd in kinds.items():
            with agent.connect() as peer:
                result = result_of(live, peer.run(offer.ticket, offer.manifest, fd))
            assert (result.state, result.error) in (("refused", "malformed"), ("failed", "fetch")), name
        for fd in (read, write, *(kinds[name] for name in ("folder", "zero", "fifo", "path", "write only"))):
            os.close(fd)
    assert (traces.all(), used_tickets(live)) == (before, used)


def test_the_wrong_number_of_descriptors(live: Live, agent: LyingAgent, offer: Offer) -> None:
    fields = {"ticket": base64.b64encode(offer.ticket).decode(), "manifest": base64.b64encode(offer.manifest).decode()}
    with opened(offer.blob) as fd:
        for said, brought in ((0, 0), (2, 2), (4, 4), (1, 0), (1, 2), (0, 1), (1, 5), (1, 200)):
            with agent.connect() as peer:
                peer.raw(messages.encode("run", fds=said, **fields), [fd] * brought)
                malformed(live, peer)
        with agent.connect() as peer:
            peer.raw(messages.encode("identity", fds=1), [fd])
            malformed(live, peer)
        # Descriptors beside the last bytes of a frame, not the first.
        frame = messages.encode("run", fds=1, **fields)
        with agent.connect() as peer:
            peer.raw(frame[:-1])
            peer.raw(frame[-1:], [fd])
            malformed(live, peer)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", 0),
        struct.pack(">I", 0xFFFFFFFF) + b"x" * 4096,
        struct.pack(">I", messages.MAX_FRAME_BYTES + 1) + b"{",
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">I", 2) + b"[]",
        struct.pack(">I", 2) + b"{}",
        struct.pack(">I", 30) + b'{"fds": 0, "kind": "identity"}',
        struct.pack(">I", 39) + b'{"fds":0,"fds":0,"kind":"identity"}    ',
        struct.pack(">I", 4) + b"\xff\xfe\x00\x01",
        struct.pack(">I", 200_000) + b"[" * 200_000,
        struct.pack(">I", 29) + b'{"fds":9,"kind":"identity"}  ',
        struct.pack(">I", 31) + b'{"fds":-1,"kind":"identity"}   ',
    ],
    ids=lambda data: repr(data[:24]),
)
def test_frames_that_are_none(live: Live, agent: LyingAgent, data: bytes) -> None:
    with agent.connect() as peer:
        peer.raw(data)
        malformed(live, peer)


def test_an_announced_size_is_not_allocated(live: Live, agent: LyingAgent) -> None:
    pid = notary_pid(live)
    before = _size(pid)
    with ExitStack() as stack:
        for _ in range(50):
            peer = stack.enter_context(agent.connect())
            peer.raw(struct.pack(">I", messages.MAX_FRAME_BYTES) + b"{")
        assert alive(live)
        assert _size(pid) - before < 64 << 20


def _size(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


def test_frames_that_end_too_early(live: Live, agent: LyingAgent, offer: Offer) -> None:
    frame = messages.encode("run", fds=1, ticket="e30=", manifest="e30=")
    with opened(offer.blob) as fd:
        for end in (0, 1, 3, 4, 5, len(frame) // 2, len(frame) - 1):
            with agent.connect() as peer:
                if end:
                    peer.raw(frame[:end], [fd])


def test_a_slow_peer_is_waited_for_and_nobody_waits_for_it(live: Live, agent: LyingAgent) -> None:
    frame = messages.encode("identity")
    with agent.connect() as slow:
        for at in range(len(frame)):
            slow.raw(frame[at : at + 1])
            if at % 8 == 0:
                assert alive(live)
        assert slow.hear().kind == "identity"
        slow.send("identity")
        assert slow.hear().kind == "identity", "still idle: it may ask again"


def test_two_hundred_idle_connections(live: Live, agent: LyingAgent, traces: Traces) -> None:
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(agent.connect())
        assert alive(live)
        assert live.push("t16idle.py", traced_dag("t16idle", traces)).status == 201
        assert live.launch("t16idle", "t", "r")["state"] == "success"
        result, _ = agent.run_honestly(agent.offer("t16idle"))
        assert result.state == "success"

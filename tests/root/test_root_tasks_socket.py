"""Who may ask at the agent's `tasks.sock`: the accounts that are named, by the kernel's word, and nobody else."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from integrity import messages
from tests.forked import in_fork, refusal
from tests.integration.worker_cache.agent_host import Host, now
from tests.integration.worker_cache.agent_peers import ApiSim, LauncherSim

pytestmark = pytest.mark.root
AIRFLOW, OTHER = "nobody", "daemon"
TI = "0190a7e0-0000-7000-8000-000000000001"
NAMES = {"dag_id": "etl", "task_id": "load", "run_id": "manual__1", "map_index": -1, "try_number": 1}
QUESTION = messages.encode("launch", fds=1, task_instance=TI, **NAMES)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    with tempfile.TemporaryDirectory(prefix="dagseal-tasks-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        async with ApiSim(now) as api, LauncherSim(str(folder / "l.sock"), api.ring, now) as launcher:
            host = Host(folder, api, launcher)
            host.api.reserve(TI).put_nowait(host.api.offer(launcher, supervised=True))
            async with host.agent(accounts=frozenset([pwd.getpwnam(AIRFLOW).pw_uid])):
                yield host


async def tried(account: str, body: Callable[[], object]) -> str:
    def become() -> object:
        found = pwd.getpwnam(account)
        os.setgroups([])
        os.setresgid(found.pw_gid, found.pw_gid, found.pw_gid)
        os.setresuid(found.pw_uid, found.pw_uid, found.pw_uid)
        return body()

    return await asyncio.to_thread(in_fork, become)


def answer(sock: socket.socket) -> str:
    """The kind of the first frame, and the slug of a refusal; or that there is none."""
    sock.settimeout(10)
    data = b""
    while len(data) < messages.HEADER_BYTES or len(data) < messages.HEADER_BYTES + messages.body_length(data[:4]):
        chunk = sock.recv(4096)
        if not chunk:
            return "closed"
        data += chunk
    message = messages.decode(data[messages.HEADER_BYTES :])
    return message.kind if message.kind != "refused" else f"refused {message.fields.text('error')}"


def ask(path: str, fds: list[int] | None = None, frame: bytes = QUESTION) -> str:
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(path)
        socket.send_fds(sock, [frame], [theirs.fileno()] if fds is None else fds)
        return answer(sock)


async def test_the_named_account_is_heard_and_no_other_not_even_root(host: Host) -> None:
    assert await tried(OTHER, lambda: ask(host.tasks)) == "refused unauthorized"
    assert await tried("root", lambda: ask(host.tasks)) == "refused unauthorized"
    assert host.api.reserve(TI).qsize() == 1
    assert (
        "take" not in host.api.calls or host.api.takes_waiting == 1
    )  # the slot's, which never gets a supervised launch
    assert host.launcher.seen_archives == []
    assert await tried(AIRFLOW, lambda: ask(host.tasks)) == "offered"
    assert "claim" not in host.api.calls  # it did not say start


async def test_a_word_of_who_one_is_counts_for_nothing(host: Host) -> None:
    claimed = struct.pack("3i", os.getpid(), pwd.getpwnam(AIRFLOW).pw_uid, 0)

    def body() -> str:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(host.tasks)
            denied = refusal(lambda: sock.sendmsg([QUESTION], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, claimed)]))
            return f"{denied} {answer(sock)}"

    assert await tried(OTHER, body) == "EPERM refused unauthorized"


async def test_what_is_no_question_or_brings_no_connected_stream_socket_is_refused(host: Host) -> None:
    def body() -> str:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        datagrams, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        internet = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with listening, datagrams, other, internet, open(os.devnull) as file:
            listening.bind("\0dagseal-test-tasks")
            listening.listen()
            given = [[file.fileno()], [listening.fileno()], [datagrams.fileno()], [internet.fileno()]]
            said = [ask(host.tasks, fds) for fds in given]
            said.append(ask(host.tasks, [datagrams.fileno(), other.fileno()]))
        named = {"task_instance": TI, **NAMES}
        for frame in (
            messages.encode("launch", **named),
            messages.encode("run", fds=1, ticket="", manifest=""),
            messages.encode("launch", fds=1, **{**named, "map_index": -2}),
            messages.encode("launch", fds=1, **{**named, "dag_id": "../etl"}),
            messages.encode("launch", fds=1, **named, unix_user="root"),
            b"\xff\xff\xff\xff",
            b"GET / HTTP/1.1\r\n\r\n",
        ):
            said.append(ask(host.tasks, frame=frame))
        return " ".join(sorted(set(said)))

    assert await tried(AIRFLOW, body) == "refused malformed"
    before = len(os.listdir("/proc/self/fd"))
    assert await tried(AIRFLOW, body) == "refused malformed"
    async with asyncio.timeout(10):
        while len(os.listdir("/proc/self/fd")) > before:
            await asyncio.sleep(0.001)
    assert host.api.reserve(TI).qsize() == 1

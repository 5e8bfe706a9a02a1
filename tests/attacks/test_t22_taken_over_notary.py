"""T22 taken-over-notary: whoever has the launcher's unprivileged half asks the monitor for more than its table gives.

The monitor is the real one, in this process, at the other end of a real socket pair; what it is asked for comes from us. After
each refusal nothing was started, nobody was moved and nobody was killed.

Seen to fail when weakened: `Monitor.account` that resolves without the rules; `kinds.of_run` that takes any profile;
`LocalPowers.adopt` without its look at the warm process's descendants; `kill` that opens a pidfd of what was not adopted;
`kill_strays` that does not ask whose children they are; `serve` that answers words it does not know.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dagseal.footing import Accounts
from launcher.channel import Channel, close_all
from launcher.monitor import FRAME_BYTES
from launcher.powers import LocalPowers
from launcher.trees import children, descendants, has_ended
from tests.attacks.attacker import is_alive
from tests.halves import USER, halves
from tests.root.launcher.mode_host import become

pytestmark = pytest.mark.root


@dataclass(slots=True)
class Notary:
    """The other end, in bad hands."""

    channel: Channel
    powers: LocalPowers
    serving: asyncio.Task[None]
    number: int = 0
    controls: list[Channel] = field(default_factory=list)

    async def ask(self, kind: str, **fields: Any) -> tuple[str, dict[str, Any], tuple[int, ...]]:
        """The monitor's answer: its kind, all its fields, and its descriptors."""
        self.number += 1
        await self.channel.send(kind, number=self.number, **fields)
        received = await self.channel.receive(max_fds=2)
        said = {key: received.message.fields.take(key) for key in received.message.fields.keys()}
        assert said.pop("number") == self.number
        return received.message.kind, said, received.fds

    async def refused(self, kind: str, **fields: Any) -> tuple[str, str]:
        """The error and its words."""
        word, said, fds = await self.ask(kind, **fields)
        assert (word, fds) == ("refused", ()), said
        return said["error"], said["detail"]

    async def warm(self, profile: str = "standard") -> int:
        word, said, fds = await self.ask("start", name=USER, purpose="run", profile=profile, variant=0)
        assert word == "done", said
        close_all(fds[1:])
        control = Channel(socket.socket(fileno=fds[0]))
        assert (await control.receive()).message.kind == "warm"
        self.controls.append(control)
        return int(said["pid"])


@pytest.fixture
async def notary(tmp_path: Path) -> AsyncIterator[Notary]:
    async with halves(tmp_path) as found:
        yield Notary(found.ours, found.powers, found.serving)


@contextlib.contextmanager
def stranger(account: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of that account that waits, and no child of any warm process; it is unharmed at the end."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, **become(account)) as process:
        yield process
        assert process.poll() is None, "it was killed"
        process.kill()


def cgroups(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


@pytest.mark.parametrize(
    ("name", "error", "why"),
    [
        ("root", "privilege", "nothing of a DAG runs as root"),
        ("bin", "privilege", "is banned by the launcher's policy"),
        ("mail", "privilege", "is not allowed here"),
        ("nobody2", "privilege", "does not exist"),
        ("0", "malformed", "unix user"),
        ("#0", "malformed", "unix user"),
        ("-1", "malformed", "unix user"),
        ("4294967295", "malformed", "unix user"),
        ("root ", "malformed", "unix user"),
        ("", "malformed", "unix user"),
        (Accounts.choose().notary, "privilege", "is one of dagseal's own accounts"),
        (Accounts.choose().agent, "privilege", "is one of dagseal's own accounts"),
        (Accounts.choose().parser, "privilege", "is one of dagseal's own accounts"),
    ],
)
async def test_nobody_but_whom_the_policy_allows(notary: Notary, name: str, error: str, why: str) -> None:
    before = children(os.getpid())
    for kind, fields in (("account", {}), ("start", {"profile": "standard", "variant": 0})):
        slug, detail = await notary.refused(kind, name=name, purpose="run", **fields)
        assert slug == error and why in detail
    assert children(os.getpid()) == before


@pytest.mark.parametrize(
    ("asked", "error", "why"),
    [
        ({"profile": "minimal"}, "out-of-scope", "runs nothing in profile 'minimal'"),
        ({"profile": "none"}, "out-of-scope", "runs nothing in profile 'none'"),
        ({"profile": ""}, "out-of-scope", "runs nothing in profile ''"),
        ({"purpose": "describe"}, "out-of-scope", f"not as {USER}"),
        ({"purpose": "describe", "name": Accounts.choose().parser, "variant": 2}, "out-of-scope", "no variant 2"),
        ({"purpose": "compile"}, "malformed", "is to be one of run, describe"),
        ({"variant": -1}, "malformed", "the least is 0"),
    ],
)
async def test_nothing_less_confined_than_the_policy_says(
    notary: Notary, asked: dict[str, Any], error: str, why: str
) -> None:
    before = children(os.getpid())
    usual = {"name": USER, "purpose": "run", "profile": "standard", "variant": 0}
    slug, detail = await notary.refused("start", **usual | asked)
    assert slug == error and why in detail
    assert children(os.getpid()) == before


async def test_no_limits_and_no_death_for_who_is_no_task(notary: Notary) -> None:
    """Process 1, us, a neighbour of the task's user, root's: neither adopted nor killed, by whatever word."""
    warm = await notary.warm()
    with stranger(USER) as neighbour, stranger("root") as other:
        for pid in (1, os.getpid(), neighbour.pid, other.pid, warm):
            before = cgroups(pid)
            assert await notary.refused("adopt", warm=warm, pid=pid) == (
                "out-of-scope",
                f"process {pid} is no new fork of warm process {warm}",
            )
            assert await notary.refused("kill", pid=pid) == ("out-of-scope", f"process {pid} was not adopted")
            assert await notary.refused("strays", warm=warm, pids=[pid]) == (
                "out-of-scope",
                f"processes [{pid}] are no children of warm process {warm}",
            )
            if pid != warm:
                assert await notary.refused("end", warm=pid) == (
                    "out-of-scope",
                    f"process {pid} is no warm process of this launcher",
                )
                for kind, fields in (("adopt", {"pid": neighbour.pid}), ("strays", {"pids": [neighbour.pid]})):
                    slug, _ = await notary.refused(kind, warm=pid, **fields)
                    assert slug == "out-of-scope"
            assert cgroups(pid) == before and is_alive(pid)


async def test_a_process_is_one_task_once(notary: Notary) -> None:
    """What is below a warm process can be adopted, once, and then killed, once."""
    warm = await notary.warm("strict")
    (pid, *_) = sorted(descendants(warm))
    word, said, _ = await notary.ask("adopt", warm=warm, pid=pid)
    assert (word, sorted(said["namespaces"])) == ("done", ["pid", "user"])
    assert (await notary.refused("adopt", warm=warm, pid=pid))[0] == "out-of-scope"
    word, _, _ = await notary.ask("kill", pid=pid)
    assert word == "done" and not is_alive(pid)
    assert (await notary.refused("kill", pid=pid))[0] == "out-of-scope"
    word, _, _ = await notary.ask("end", warm=warm)
    assert word == "done" and not is_alive(warm)
    assert (await notary.refused("end", warm=warm))[0] == "out-of-scope"


OUT_OF_THE_TABLE: dict[str, Callable[[], bytes]] = {
    "a word of others": lambda: frame(b'{"fds":0,"kind":"run","number":1}'),
    "fork": lambda: frame(b'{"fds":0,"kind":"fork","number":1}'),
    "no word": lambda: frame(b'{"fds":0,"kind":"","number":1}'),
    "no number": lambda: frame(b'{"fds":0,"kind":"kill","pid":1}'),
    "a number that is none": lambda: frame(b'{"fds":0,"kind":"kill","number":"1","pid":1}'),
    "a frame over the limit": lambda: struct.pack(">I", FRAME_BYTES + 1) + b"{",
    "not canonical": lambda: frame(b'{"kind":"kill","fds":0,"number":1,"pid":1}'),
    "no object": lambda: frame(b"[]"),
}


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


@pytest.mark.parametrize("how", OUT_OF_THE_TABLE)
async def test_a_word_out_of_the_table_is_its_last(notary: Notary, how: str) -> None:
    """The monitor hears no more; with that the launcher ends."""
    await asyncio.get_running_loop().sock_sendall(notary.channel._sock, OUT_OF_THE_TABLE[how]())
    await asyncio.wait_for(notary.serving, 10)


async def test_with_it_ends_what_was_started(notary: Notary) -> None:
    warm = await notary.warm()
    pidfd = os.pidfd_open(warm)
    await asyncio.get_running_loop().sock_sendall(notary.channel._sock, OUT_OF_THE_TABLE["fork"]())
    await asyncio.wait_for(notary.serving, 10)
    await notary.powers.close()
    assert has_ended(pidfd)
    os.close(pidfd)


@pytest.mark.parametrize(
    "fields",
    [
        {"pid": "1"},
        {"pid": True},
        {"pid": None},
        {"pid": -1},
        {},
        {"pid": 1, "signal": 9},
    ],
)
async def test_fields_that_are_not_its_own(notary: Notary, fields: dict[str, Any]) -> None:
    assert (await notary.refused("kill", **fields))[0] == "malformed"


@pytest.mark.parametrize("pids", [None, 1, [True], ["1"], [[1]], {"1": 1}])
async def test_numbers_that_are_none(notary: Notary, pids: Any) -> None:
    assert await notary.refused("strays", warm=1, pids=pids) == ("malformed", "pids is to be a list of numbers")


async def test_descriptors_are_not_taken(notary: Notary) -> None:
    await notary.channel.send("kill", number=1, pid=1, pass_fds=[0])
    await asyncio.wait_for(notary.serving, 10)


async def test_an_account_that_was_taken_over_signals_nobody(notary: Notary) -> None:
    """Nor does a process of the notary's account reach a warm process by itself."""
    warm = await notary.warm()
    (inner, *_) = sorted(descendants(warm))
    tried = (
        "import os, sys\nfor pid in sys.argv[1:]:\n try: os.kill(int(pid), 9)\n except PermissionError: print('EPERM')"
    )
    done = subprocess.run(
        ["python3", "-c", tried, str(warm), str(inner), str(os.getpid())],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
        **become(Accounts.choose().notary),
    )
    assert done.stdout.split() == ["EPERM"] * 3
    assert is_alive(warm) and is_alive(inner)

"""Trees by cgroup without limits: what is in them dies whole, and what a dead launcher left is gone at the next start."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher import trees
from launcher.cgroups import CgroupTrees, Limits
from launcher.channel import close_all

pytestmark = pytest.mark.root


@pytest.fixture
def cgroups() -> Iterator[CgroupTrees]:
    found = CgroupTrees.find(Limits())
    if found is None:
        pytest.skip("needs cgroup v2 that may be written")
    yield found
    found.close()
    assert not found.folder.exists()


class Member:
    """A process that waits to be adopted, runs `body`, and waits for ever."""

    def __init__(self, body: Callable[[Callable[[], None]], None]) -> None:
        go, self._go = os.pipe()
        self._words, word = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.read(go, 1)
                body(lambda: os.write(word, b"%d\n" % os.getpid()) and None)
                while True:
                    signal.pause()
            finally:
                os._exit(0)
        os.close(go)
        os.close(word)

    def start(self, words: int) -> list[int]:
        os.write(self._go, b"g")
        os.close(self._go)
        with os.fdopen(self._words) as pipe:
            return [int(pipe.readline()) for _ in range(words)]

    def reap(self) -> None:
        os.waitpid(self.pid, 0)


def escape_artists(say: Callable[[], None]) -> None:
    """Double fork with a session of its own; a deaf one; a stopped one; an orphan of init."""
    for trick in ("setsid", "deaf", "stop"):
        middle = os.fork()
        if middle == 0:
            os.setsid()
            if os.fork() == 0:
                if trick == "deaf":
                    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                        signal.signal(number, signal.SIG_IGN)
                say()
                if trick == "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
                while True:
                    signal.pause()
            os._exit(0)
        os.waitpid(middle, 0)


def alive(pid: int) -> bool:
    return trees._alive(pid)


async def test_nothing_is_left_after_a_kill_not_even_the_folder(cgroups: CgroupTrees) -> None:
    member = Member(escape_artists)
    tree = cgroups.adopt(member.pid, "one")
    pids = member.start(3)
    assert all(alive(pid) for pid in pids)
    await tree.kill()
    assert not [pid for pid in (member.pid, *pids) if alive(pid)]
    assert not (cgroups.folder / "one").exists()
    member.reap()


async def test_a_fork_bomb_of_two_is_caught(cgroups: CgroupTrees) -> None:
    def hare(say: Callable[[], None]) -> None:
        os.setsid()
        if os.fork() == 0:
            say()
            while True:
                if os.fork():
                    os._exit(0)

    member = Member(hare)
    tree = cgroups.adopt(member.pid, "hare")
    member.start(1)
    await tree.kill()
    left = [int(name) for name in os.listdir("/proc") if name.isdigit() and session_of(int(name)) == member.pid]
    assert not [pid for pid in left if alive(pid)]
    member.reap()


def session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


async def test_two_trees_are_apart(cgroups: CgroupTrees) -> None:
    one, two = Member(lambda say: say()), Member(lambda say: say())
    first, second = cgroups.adopt(one.pid, "one"), cgroups.adopt(two.pid, "two")
    one.start(1)
    two.start(1)
    await first.kill()
    assert not alive(one.pid) and alive(two.pid)
    await second.kill()
    assert not alive(two.pid)
    one.reap()
    two.reap()


LAUNCHER = """
import os, signal, sys
from launcher.cgroups import CgroupTrees, Limits
from launcher.channel import close_all
pid = os.fork()
if pid == 0:
    os.setsid()
    while True:
        signal.pause()
trees = CgroupTrees.find(Limits())
trees.adopt(pid, "left")
print(trees.folder, pid, flush=True)
sys.stdin.read()
"""


def killed_launcher() -> tuple[Path, int]:
    """Its folder and its task, which outlived it."""
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    folder, pid = process.stdout.readline().split()
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
    return Path(folder), int(pid)


def start_another() -> None:
    """What the next launcher does first."""
    program = "from launcher.cgroups import *; CgroupTrees.find(Limits()).close()"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_a_dead_launcher_left_is_removed(cgroups: CgroupTrees) -> None:
    folder, pid = killed_launcher()
    assert alive(pid) and (folder / "left").exists()
    start_another()
    assert not alive(pid) and not folder.exists()


def test_what_a_dead_launcher_of_the_same_pid_left_is_removed() -> None:
    member = Member(lambda say: say())
    first = CgroupTrees.find(Limits())
    if first is None:
        pytest.skip("needs cgroup v2 that may be written")
    first.adopt(member.pid, "left")
    member.start(1)
    close_all(first._locks)  # as its death does
    again = CgroupTrees.find(Limits())
    assert again is not None and again.folder == first.folder
    assert not alive(member.pid) and not (again.folder / "left").exists()
    member.reap()
    again.close()


def test_a_launcher_in_another_pid_namespace_is_not_taken_for_dead() -> None:
    """Its folder is called after a number that is nobody's here."""
    number = next(number for number in itertools.count(20_000) if not Path(f"/proc/{number}").exists())
    shell = f'echo {number - 1} >/proc/sys/kernel/ns_last_pid; {sys.executable} -c "$0"; exit'
    words = ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", shell, LAUNCHER]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        folder = Path(process.stdout.readline().split()[0])
        assert folder.name == f"dagseal-{number}" and not Path(f"/proc/{number}").exists()
        start_another()
        assert (folder / "left").exists()
        process.stdin.close()
    start_another()
    assert not folder.exists()


def test_a_folder_that_is_no_launchers_is_left_alone(cgroups: CgroupTrees) -> None:
    other = cgroups.folder.parent / "dagseal-agent.service"
    other.mkdir()
    try:
        start_another()
        assert other.exists()
    finally:
        other.rmdir()

"""Trees without cgroups: every descendant is dead after a kill, whatever it did to get away."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator

import pytest

from launcher import trees
from launcher.trees import WalkTrees

PR_SET_CHILD_SUBREAPER = 36


class Spawned:
    """A process like a task: a subreaper that runs `body` and then waits for ever. Every process that `body` starts
    says its pid on the pipe before anything else is done with it."""

    def __init__(self, body: Callable[[Callable[[], None]], None], words: int) -> None:
        read, write = os.pipe()

        def say() -> None:
            os.write(write, b"%d\n" % os.getpid())

        self.pid = os.fork()
        if self.pid == 0:
            try:
                ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
                body(say)
                while True:
                    signal.pause()
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            self.descendants = [int(pipe.readline()) for _ in range(words)]

    def reap(self) -> None:
        os.waitpid(self.pid, 0)


def sleeper(say: Callable[[], None]) -> None:
    say()
    while True:
        signal.pause()


def child(say: Callable[[], None]) -> None:
    if os.fork() == 0:
        sleeper(say)


def double_fork_in_a_session_of_its_own(say: Callable[[], None]) -> None:
    middle = os.fork()
    if middle == 0:
        os.setsid()
        if os.fork() == 0:
            sleeper(say)
        os._exit(0)
    os.waitpid(middle, 0)


def deaf(say: Callable[[], None]) -> None:
    if os.fork() == 0:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        sleeper(say)


def stopped(say: Callable[[], None]) -> None:
    if os.fork() == 0:
        say()
        os.kill(os.getpid(), signal.SIGSTOP)
        sleeper(lambda: None)


def deep(say: Callable[[], None]) -> None:
    for _ in range(10):
        if os.fork():
            break
        say()


def all_of_them(say: Callable[[], None]) -> None:
    for body in (child, double_fork_in_a_session_of_its_own, deaf, stopped):
        body(say)


SHAPES: dict[str, tuple[Callable[[Callable[[], None]], None], int]] = {
    "alone": (lambda say: say(), 1),
    "child": (child, 1),
    "double fork, setsid": (double_fork_in_a_session_of_its_own, 1),
    "ignores signals": (deaf, 1),
    "stopped": (stopped, 1),
    "ten deep": (deep, 10),
    "all": (all_of_them, 4),
}


def alive(pid: int) -> bool:
    return trees._alive(pid)


@pytest.fixture(params=SHAPES)
def spawned(request: pytest.FixtureRequest) -> Iterator[Spawned]:
    body, words = SHAPES[request.param]
    process = Spawned(body, words)
    yield process
    for pid in {process.pid, *process.descendants}:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    process.reap()


async def test_nothing_is_left_after_a_kill(spawned: Spawned) -> None:
    tree = WalkTrees().adopt(spawned.pid, "label")
    assert all(alive(pid) for pid in spawned.descendants)
    await tree.kill()
    assert not [pid for pid in (spawned.pid, *spawned.descendants) if alive(pid)]


async def test_what_forks_without_end_is_caught() -> None:
    """Each process forks the next and ends: there is never a moment to count them."""

    def hare(say: Callable[[], None]) -> None:
        os.setsid()  # so that whatever is left of it can be found
        if os.fork() == 0:
            say()
            while True:
                if os.fork():
                    os._exit(0)

    process = Spawned(hare, 1)
    await WalkTrees().adopt(process.pid, "label").kill()
    left = [pid for name in os.listdir("/proc") if name.isdigit() and session_of(pid := int(name)) == process.pid]
    assert not [pid for pid in left if alive(pid)]
    process.reap()


def session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


async def test_a_tree_that_is_gone_already_is_fine() -> None:
    process = Spawned(lambda say: (say(), os._exit(0)), 1)  # type: ignore[arg-type,return-value,func-returns-value]
    tree = WalkTrees().adopt(process.pid, "label")
    process.reap()
    await tree.kill()


def test_only_descendants_are_found() -> None:
    process = Spawned(all_of_them, 4)
    try:
        assert trees.descendants(process.pid) >= set(process.descendants)
        assert os.getpid() not in trees.descendants(process.pid)
    finally:
        for pid in (process.pid, *process.descendants):
            os.kill(pid, signal.SIGKILL)
        process.reap()

"""Process trees that can be killed whole, whatever their processes did: double fork, setsid, ignored signals, SIGSTOP.

A task with namespaces is process 1 of its own, and the kernel does it. One without lives in a cgroup (`launcher.cgroups`) from
before its first byte of DAG code, and `cgroup.kill` misses nothing. Where there is neither the task is stopped, its
descendants are found through /proc (orphans come back to it: it is a subreaper, prctl(2)), stopped too until no new one
appears, and all are killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from integrity.errors import SettingsError
from launcher.channel import wait_readable

_POLL_SECONDS = 0.001
_KILL_DEADLINE_SECONDS = 5.0


class Tree(Protocol):
    """One task and everything that came of it."""

    misses_orphans: bool

    async def kill(self) -> None:
        """Every process of it is gone when this returns. Raises `RuntimeError` if one is still there after 5 s."""

    async def remove(self) -> None:
        """What is kept beside its processes, once something else has killed them."""

    def oom_kills(self) -> int:
        """How many of its processes were killed for their memory."""


class Trees(Protocol):
    """A way to keep trees on this host."""

    name: str

    def describe(self) -> str:
        """The limits in force, for the attestation."""

    def adopt(self, pid: int, label: str) -> Tree:
        """From now on `pid` and what it forks are one tree. May block. Raises `OSError`."""

    def close(self) -> None:
        """Nothing of it is left; its trees are gone by now."""


class InitTree:
    """A task that is process 1 of a pid namespace of its own: when it dies the kernel kills all that is in there, before its
    death can be seen (pid_namespaces(7)). `folder` holds its limits, where there are any."""

    misses_orphans = False

    def __init__(self, pidfd: int, folder: Tree | None) -> None:
        self._pidfd = pidfd
        self._folder = folder

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        async with asyncio.timeout(_KILL_DEADLINE_SECONDS):
            await wait_readable(self._pidfd)
        if self._folder is not None:
            await self._folder.remove()

    async def remove(self) -> None:
        await self.kill()

    def oom_kills(self) -> int:
        return self._folder.oom_kills() if self._folder is not None else 0


class WalkTrees:
    """Trees by /proc/<pid>/task/<tid>/children, for a launcher that may not make cgroups."""

    name = "walk"

    def __init__(self) -> None:
        if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
            raise SettingsError(
                "this kernel does not tell a process's children (CONFIG_PROC_CHILDREN): start the launcher as root with"
                " cgroup v2, so that tasks can be killed whole"
            )

    def describe(self) -> str:
        return "none"

    def adopt(self, pid: int, label: str) -> Tree:
        return _WalkTree({pid})

    def close(self) -> None:
        """Nothing is kept."""


class _WalkTree:
    misses_orphans = True  # of a task that died by itself: its children are not below it any more

    def __init__(self, pids: set[int]) -> None:
        self._known = set(pids)

    async def kill(self) -> None:
        try:
            await self._stop_all()
        finally:
            for pid in self._known:
                _signal(pid, signal.SIGKILL)
        await _until(lambda: not any(_alive(pid) for pid in self._known))

    async def remove(self) -> None:
        """Nothing is kept."""

    def oom_kills(self) -> int:
        return 0

    async def _stop_all(self) -> None:
        while True:
            for pid in self._known:
                _signal(pid, signal.SIGSTOP)
            # A fork that was under way when the signal came still ends: only who has stopped has all its children.
            await _until(lambda: all(_halted(pid) for pid in self._known))
            found = {child for pid in self._known for child in descendants(pid)} - self._known
            if not found:
                return
            self._known |= found


async def kill_all(pids: set[int]) -> None:
    """These and everything below them. Raises `RuntimeError` if one is still there after 5 s."""
    await _WalkTree(pids).kill()


def children(pid: int) -> set[int]:
    """Live ones, as /proc shows them now."""
    return {child for child in _children(pid) if _alive(child)}


def descendants(pid: int) -> set[int]:
    """Children, their children, and so on, as /proc shows them now."""
    found: set[int] = set()
    todo = [pid]
    while todo:
        new = _children(todo.pop()) - found
        found |= new
        todo.extend(new)
    return found


def _children(pid: int) -> set[int]:
    """Of every thread, zombies included; of a process that is gone, none."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                found |= {int(child) for child in file.read().split()}
    return found


async def _until(done: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + _KILL_DEADLINE_SECONDS
    while not done():
        if asyncio.get_running_loop().time() > deadline:
            raise RuntimeError("a killed process tree is still there after 5 s")
        await asyncio.sleep(_POLL_SECONDS)


def has_ended(pidfd: int) -> bool:
    """Whether that process is dead, reaped or not (pidfd_open(2))."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _alive(pid: int) -> bool:
    """A zombie runs no code any more; its parent, the warm process, reaps it."""
    return _state(pid) not in ("Z", "X")


def _halted(pid: int) -> bool:
    """Stopped or dead. Also waiting in the kernel (D): for a vforked child, which we stopped, or on its way to a stop."""
    return _state(pid) in ("T", "t", "D", "Z", "X")


def _state(pid: int) -> str:
    """The letter of proc_pid_stat(5); X for a process that is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            stat = file.read()
    except OSError:
        return "X"
    return stat.rpartition(")")[2].split()[0]

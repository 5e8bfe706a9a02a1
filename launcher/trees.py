"""Process trees that can be killed whole, whatever their processes did: double fork, setsid, ignored signals, SIGSTOP.

With cgroup v2 each task lives in a cgroup of its own from before its first byte of DAG code, and `cgroup.kill` misses
nothing. Elsewhere (no privilege over cgroups) the task is stopped, its descendants are found through /proc (orphans come
back to it: it is a subreaper, prctl(2)), stopped too until no new one appears, and all are killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Protocol

from integrity.errors import SettingsError

_POLL_SECONDS = 0.001
_KILL_DEADLINE_SECONDS = 5.0


class Tree(Protocol):
    """One task and everything that came of it."""

    misses_orphans: bool

    async def kill(self) -> None:
        """Every process of it is gone when this returns. Raises `RuntimeError` if one is still there after 5 s."""


class Trees(Protocol):
    """A way to keep trees on this host."""

    name: str

    def adopt(self, pid: int, label: str) -> Tree:
        """From now on `pid` and what it forks are one tree. Raises `OSError`."""


class CgroupTrees:
    """Trees by cgroup v2 (Documentation/admin-guide/cgroup-v2.rst, `cgroup.kill`, Linux 5.14)."""

    name = "cgroup"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def find(cls) -> CgroupTrees | None:
        """Below this process's own cgroup; None where that is not cgroup v2, or not ours to write."""
        mount = _cgroup2_mount()
        own = next((line[3:] for line in _lines("/proc/self/cgroup") if line.startswith("0::")), None)
        if mount is None or own is None:
            return None
        folder = mount / own.lstrip("/") / f"dagseal-{os.getpid()}"
        try:
            if folder.exists():  # of a dead launcher that had our pid
                _remove_whole(folder)
            folder.mkdir()
            usable = os.access(folder / "cgroup.kill", os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK)
        except OSError:
            return None
        if not usable:
            folder.rmdir()
            return None
        for other in folder.parent.glob("dagseal-*"):
            number = other.name.partition("-")[2]
            if number.isdecimal() and not _alive(int(number)):
                with contextlib.suppress(FileNotFoundError):  # another launcher that starts now cleans up as well
                    _remove_whole(other)
        return cls(folder)

    def adopt(self, pid: int, label: str) -> Tree:
        folder = self._folder / label
        folder.mkdir()
        try:
            (folder / "cgroup.procs").write_text(str(pid), encoding="ascii")
        except OSError:
            folder.rmdir()
            raise
        return _CgroupTree(folder)

    def close(self) -> None:
        """Remove the launcher's own folder; its trees are gone by now."""
        with contextlib.suppress(OSError):
            self._folder.rmdir()


class _CgroupTree:
    misses_orphans = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def kill(self) -> None:
        (self._folder / "cgroup.kill").write_text("1", encoding="ascii")
        await _until(lambda: "populated 0" in (self._folder / "cgroup.events").read_text(encoding="ascii"))
        self._folder.rmdir()


class WalkTrees:
    """Trees by /proc/<pid>/task/<tid>/children, for a launcher that may not make cgroups."""

    name = "walk"

    def __init__(self) -> None:
        if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
            raise SettingsError(
                "this kernel does not tell a process's children (CONFIG_PROC_CHILDREN): start the launcher as root with"
                " cgroup v2, so that tasks can be killed whole"
            )

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


def choose() -> CgroupTrees | WalkTrees:
    """The better of the two that this host and this account allow."""
    return CgroupTrees.find() or WalkTrees()


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
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found |= {int(child) for child in task.read_text(encoding="ascii").split()}
    return found


async def _until(done: object) -> None:
    deadline = asyncio.get_running_loop().time() + _KILL_DEADLINE_SECONDS
    while not done():  # type: ignore[operator]
        if asyncio.get_running_loop().time() > deadline:
            raise RuntimeError("a killed process tree is still there after 5 s")
        await asyncio.sleep(_POLL_SECONDS)


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
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "X"
    return stat.rpartition(")")[2].split()[0]


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _cgroup2_mount() -> Path | None:
    for line in _lines("/proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        if after.split()[0] == "cgroup2":
            return Path(before.split()[4])
    return None


def _remove_whole(folder: Path) -> None:
    """The cgroup of a launcher that was killed: what still lives in it is killed, then it is removed. At start only, as it
    blocks. Raises `OSError`, or `RuntimeError` when something in it cannot be killed."""
    (folder / "cgroup.kill").write_text("1", encoding="ascii")
    deadline = time.monotonic() + _KILL_DEADLINE_SECONDS
    while "populated 0" not in (folder / "cgroup.events").read_text(encoding="ascii"):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{folder}: what a dead launcher left there cannot be killed")
        time.sleep(_POLL_SECONDS)
    for path, _, _ in os.walk(folder, topdown=False):
        os.rmdir(path)

"""A cgroup per task: killed whole by one write, and held to the memory, processes and CPU time that the policy gives it.

Below the launcher's own cgroup, in every hierarchy that is needed (`launcher.controllers`), it makes `dagseal-<pid>/<label>`.
`cgroup.kill` (Documentation/admin-guide/cgroup-v2.rst, Linux 5.14) misses no process, whatever it did.

In v2 a cgroup other than the root that shares controllers out may hold no process ("no internal processes"): only where v2
controllers are wanted, `find` moves the launcher into `dagseal-<pid>/launcher`. So call it before anything is forked, in a
systemd unit of its own with `Delegate=yes` and without `DelegateSubgroup=`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from launcher.channel import close_all
from launcher.controllers import (
    Limits as Limits,
)
from launcher.controllers import (
    OwnCgroup,
    limit,
    own_cgroups,
    read,
    refusing,
    share,
    share_out,
    take_back,
    told,
    write,
)
from launcher.trees import _until


class CgroupTrees:
    """The launcher's folder in each hierarchy that is needed, with a folder per task."""

    name = "cgroup"

    def __init__(self, shared: dict[OwnCgroup, dict[str, int]]) -> None:
        """Make them. Raises `PrivilegeError`; then nothing is left."""
        self._places: dict[Path, tuple[int, dict[str, int]]] = {}  # v2 first
        self._locks: list[int] = []
        try:
            for own, asked in shared.items():
                folder = own.folder / f"dagseal-{os.getpid()}"
                if asked or (own.version == 2 and os.access(own.folder, os.W_OK)):
                    with refusing(f"limits {asked}"):
                        folder.mkdir(mode=0o700)
                        self._places[folder] = own.version, asked
                        self._locks.append(_locked(folder))
                        if own.version == 2 and asked:
                            share_out(folder, set(asked))
            self.folder = next(iter(self._places), None)
            self.kills = self.folder is not None and os.access(self.folder / "cgroup.kill", os.W_OK)
            self._make("probe").discard()  # what cannot be set is to be known now, not at the first task
        except BaseException:
            self.close()
            raise

    @classmethod
    def find(cls, limits: Limits) -> CgroupTrees | None:
        """Below this process's own cgroups, after what dead launchers left there is removed. None where no limit is asked for
        and `cgroup.kill` is not there; if only that is not, `kills` is false. Blocks. Raises `PrivilegeError`."""
        owns = own_cgroups(read(Path("/proc/self/cgroup")), read(Path("/proc/self/mountinfo")))
        for own in owns:
            for folder in own.folder.glob("dagseal-*") if os.access(own.folder, os.W_OK) else ():
                if not folder.name.partition("-")[2].isdecimal():
                    continue
                with contextlib.suppress(
                    BlockingIOError, FileNotFoundError
                ):  # alive, or removed by another that starts now
                    os.close(_locked(folder))
                    _remove_whole(folder)
        trees = cls(share(limits, owns))
        if trees.kills or limits != Limits():
            return trees
        trees.close()
        return None

    def describe(self) -> str:
        """What is in force, for the attestation: `v2:kill v1:memory=4294967296,pids=1024`."""
        words: dict[int, list[str]] = {2: ["kill"] if self.kills else [], 1: []}
        for folder, (version, asked) in self._places.items():
            words[version] += told(folder, version, asked)
        return " ".join(f"v{version}:{','.join(said)}" for version, said in words.items() if said)

    def adopt(self, pid: int, label: str) -> CgroupTree:
        """From now on `pid` and what it forks are one tree, under its limits. Synchronous, up to 11 ms for each hierarchy
        (the kernel waits for its readers), and safe in a thread: call it in one. Raises `PrivilegeError` or `OSError`; then no
        folder is left, and no process that was in one."""
        tree = self._make(label)
        try:
            tree.attach(pid)
        except BaseException:
            tree.discard()
            raise
        return tree

    def _make(self, label: str) -> CgroupTree:
        tree = CgroupTree([], self.kills)
        try:
            for below, (version, asked) in self._places.items():
                folder = f"{below}/{label}"
                os.mkdir(folder)
                tree.folders.append(folder)
                limit(folder, version, asked)
        except BaseException:
            tree.discard()
            raise
        return tree

    def close(self) -> None:
        """Remove the launcher's own folders, going back to where it came from; its trees are gone by now."""
        for folder, (version, asked) in self._places.items():
            if version == 2 and asked:
                take_back(folder, set(asked))
            with contextlib.suppress(OSError):
                folder.rmdir()
        close_all(self._locks)


@dataclass(slots=True)
class CgroupTree:
    """A task's folders, of v2 first. Without `kills` something else ends the task, and `remove` then takes them away. No `Path`
    is made of their names: it would intern each part, of folders that are never seen again."""

    misses_orphans = False
    folders: list[str]
    kills: bool

    def attach(self, pid: int) -> None:
        """Synchronous, as `CgroupTrees.adopt`. Raises `OSError`."""
        for folder in self.folders:
            write(f"{folder}/cgroup.procs", str(pid))

    async def kill(self) -> None:
        """Every process of it and its folders are gone when this returns. Raises `RuntimeError` if one is there after 5 s."""
        if not self.kills:
            raise RuntimeError("there is no cgroup.kill here: something else is to kill the task before its remove()")
        write(f"{self.folders[0]}/cgroup.kill", "1")
        await self.remove()

    async def remove(self) -> None:
        """When its processes were killed. Raises `RuntimeError` if one is still there after 5 s."""
        await _until(lambda: all(_removed(folder) for folder in self.folders))

    def discard(self) -> None:
        """Kill and remove, blocking."""
        for folder in self.folders:
            _remove_whole(folder)

    def oom_kills(self) -> int:
        """Not 0 if the memory limit killed it, before it is removed; v2 counts who set it off twice (`memory.oom.group`)."""
        told = "\n".join(
            read(f"{folder}/{name}") for folder in self.folders for name in ("memory.events", "memory.oom_control")
        )
        found = re.search(r"^oom_kill (\d+)$", told, re.MULTILINE)
        return int(found[1]) if found else 0


def _locked(folder: Path) -> int:
    """A descriptor whose lock says that its launcher lives, to others in any pid namespace, until it is closed (flock(2)).
    Raises `BlockingIOError` when another holds it."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise
    return fd


def _remove_whole(folder: Path | str) -> None:
    """Kill what lives in it and remove it, blocking. Raises `OSError`, or `RuntimeError` when something cannot be killed.
    Another launcher that starts now may be doing the same."""
    deadline = time.monotonic() + 5.0
    for path, _, _ in os.walk(folder, topdown=False):
        while not _removed(path):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{path}: what is in this cgroup cannot be killed")
            try:
                _kill_in(path)
            except OSError:
                if os.path.exists(path):
                    raise
            time.sleep(0.001)


def _kill_in(folder: str) -> None:
    if os.path.exists(f"{folder}/cgroup.kill"):
        write(f"{folder}/cgroup.kill", "1")
        return
    for pid in read(f"{folder}/cgroup.procs").split():
        if pid != "0":  # of a pid namespace that we do not see
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def _removed(folder: str) -> bool:
    """False while a process is in it; one that is dying still is."""
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True

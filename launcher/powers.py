"""What takes privileges, one method each, and nothing else does: start a warm process, keep a task's tree, kill it.

Numbers of processes come from a caller that is not trusted: whatever is adopted or killed is a process below a warm process
that was started here, and of that account. Each method raises `PrivilegeError`, `OutOfScopeError` or `OSError`; then nothing
was done, or nothing is left of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from integrity.errors import OutOfScopeError, PrivilegeError
from launcher import privileges
from launcher.kinds import Kind
from launcher.trees import InitTree, Tree, Trees, children, descendants, kill_all

_BECOME = os.path.join(os.path.dirname(os.path.abspath(__file__)), "become.py")
NAMESPACES = ("ipc", "mnt", "net", "pid", "user", "uts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A warm process that imports now. Whoever gets it owns both descriptors: its control socket, and its pidfd."""

    pid: int
    control_fd: int
    pidfd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """`oom_kills`: how many of its processes had died of its memory limit. `misses_orphans`: what the task forked away before
    it died by itself is to be looked for among the warm process's children."""

    oom_kills: int
    misses_orphans: bool


@dataclass(frozen=True, slots=True)
class _Warm:
    process: subprocess.Popen[bytes]
    kind: Kind


class LocalPowers:
    """`privileged` is false where everything runs as one user; `environment` is what the operator gives to a kind."""

    def __init__(self, *, privileged: bool, trees: Trees, environment: Callable[[Kind], Mapping[str, str]]) -> None:
        self._privileged = privileged
        self._trees = trees
        self._environment = environment
        self._warm: dict[int, _Warm] = {}
        self._tasks: dict[int, tuple[Tree, int]] = {}

    async def start(self, kind: Kind) -> Started:
        """Exec a warm process. It speaks first, when it is ready."""
        ours, theirs = socket.socketpair()
        account, confinement = kind.account, kind.confinement.to_json()
        who = [str(account.uid), str(account.gid), ",".join(map(str, account.groups))] if self._privileged else ["-"]
        what = [str(theirs.fileno()), str(os.getpid()), kind.purpose, confinement]
        with ours, theirs:
            process = subprocess.Popen(  # noqa: ASYNC220 - a millisecond, once per unix user
                [sys.executable, "-s", "-P", "-S", _BECOME, *what, *who],
                env=dict(self._environment(kind)),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
            self._warm[process.pid] = _Warm(process, kind)
            return Started(pid=process.pid, control_fd=ours.detach(), pidfd=os.pidfd_open(process.pid))

    async def end(self, warm: int) -> int:
        """Kill that warm process; the code that it exited with. Its tasks die with it."""
        process = self._started_here(warm).process
        del self._warm[warm]
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        return process.wait()

    async def adopt(self, warm: int, pid: int) -> tuple[str, ...] | None:
        """From now on this fork of a warm process and what comes of it are one tree, under the policy's limits. In which of its
        namespaces it is apart from the host; None where only root could tell."""
        kind = self._started_here(warm).kind
        try:
            pidfd = os.pidfd_open(pid)  # before it is looked at: from here on this number is nobody else's unnoticed
        except ProcessLookupError:
            raise OutOfScopeError(f"process {pid} is gone") from None
        try:
            if pid in self._tasks or pid not in descendants(warm):
                raise OutOfScopeError(f"process {pid} is no new fork of warm process {warm}")
            namespaces, tree = await self._taken_in(pid, pidfd, kind)
        except BaseException:
            os.close(pidfd)
            raise
        self._tasks[pid] = InitTree(pidfd, tree) if kind.confinement.profile.namespaces else tree, pidfd
        return namespaces

    async def _taken_in(self, pid: int, pidfd: int, kind: Kind) -> tuple[tuple[str, ...] | None, Tree]:
        """Where that fails it is killed: it would belong to nobody."""
        try:
            _require_account(pid, kind)
            namespaces = apart(pid)
            tree = await asyncio.to_thread(self._trees.adopt, pid, f"task-{secrets.token_hex(8)}")
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if isinstance(error, FileNotFoundError | ProcessLookupError):
                raise OutOfScopeError(f"process {pid} died while it was adopted") from None
            raise
        return namespaces, tree

    async def kill(self, pid: int) -> Killed:
        """Every process of that tree is gone when this returns. Raises `RuntimeError` if one is still there after 5 s."""
        if pid not in self._tasks:
            raise OutOfScopeError(f"process {pid} was not adopted")
        tree, pidfd = self._tasks.pop(pid)
        try:
            oom_kills = tree.oom_kills()
            await tree.kill()
        finally:
            os.close(pidfd)
        return Killed(oom_kills=oom_kills, misses_orphans=tree.misses_orphans)

    async def kill_strays(self, warm: int, pids: frozenset[int]) -> None:
        """These children of a warm process, and everything below them."""
        self._started_here(warm)
        if strangers := pids - children(warm):
            raise OutOfScopeError(f"processes {sorted(strangers)} are no children of warm process {warm}")
        await kill_all(set(pids))

    async def close(self) -> None:
        """Everything that was started is gone."""
        for pid in list(self._tasks):
            await self.kill(pid)
        for warm in list(self._warm):
            await self.end(warm)
        self._trees.close()

    def _started_here(self, warm: int) -> _Warm:
        if warm not in self._warm:
            raise OutOfScopeError(f"process {warm} is no warm process of this launcher")
        return self._warm[warm]


def apart(pid: int) -> tuple[str, ...] | None:
    """The kinds of namespaces in which that process is not where we are; None where only root could tell."""
    if os.geteuid() != 0:
        return None
    ours, theirs = ({name: os.readlink(f"/proc/{of}/ns/{name}") for name in NAMESPACES} for of in ("self", pid))
    return tuple(name for name in NAMESPACES if ours[name] != theirs[name])


def _require_account(pid: int, kind: Kind) -> None:
    uids = [int(word) for word in privileges.status_of(pid)["Uid"].split()]
    if uids != [kind.account.uid] * 4:
        raise PrivilegeError(f"process {pid} has the uids {uids}, not those of {kind.account.name}")

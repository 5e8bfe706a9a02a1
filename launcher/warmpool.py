"""Warm processes: one per unix user and purpose, with the Airflow SDK imported and no secret, from which tasks are forked.

The launcher execs `become.py`, which drops before it imports anything third-party. A warm process never runs a byte of a
DAG; it only forks. It is retired when idle, and replaced when it died.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from integrity.errors import MalformedError, SettingsError
from launcher.accounts import Account
from launcher.channel import Channel
from launcher.trees import children

_BECOME = os.path.join(os.path.dirname(os.path.abspath(__file__)), "become.py")
_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a warm process is for. `variant` tells the two interpreters of a description apart."""

    account: Account
    purpose: str
    variant: int = 0


class WarmProcess:
    """One of them, started and ready."""

    def __init__(self, process: subprocess.Popen[bytes], channel: Channel, airflow_version: str) -> None:
        self.pid = process.pid
        self.airflow_version = airflow_version
        self._process = process
        self._channel = channel
        self._lock = asyncio.Lock()
        self._out_of_step = False
        self.used_at = asyncio.get_running_loop().time()
        self.tasks = 0
        self._forked: set[int] = set()

    @property
    def alive(self) -> bool:
        """False also when an exchange with it was broken off: what it says next would answer the wrong question."""
        return self._process.poll() is None and not self._out_of_step

    async def fork(self, fds: Sequence[int]) -> int:
        """Fork a task that gets these four descriptors; its pid. Raises `EOFError` when the warm process has died."""
        async with self._lock:
            self.used_at = asyncio.get_running_loop().time()
            try:
                await self._channel.send("fork", pass_fds=fds)
                answer = (await self._channel.receive()).message
                if answer.kind != "forked":
                    raise MalformedError(f"the warm process said {answer.kind!r}, expected is forked")
                pid = answer.fields.integer("pid", least=2)
                answer.fields.done()
            except BaseException:
                self._out_of_step = True
                raise
            self._forked.add(pid)
            return pid

    async def orphans(self) -> set[int]:
        """Its children that it did not fork: what tasks that died by themselves left, which came back to it (subreaper).
        The orphans of a live task are that task's own. No fork is under way meanwhile, which would look alike."""
        async with self._lock:
            return children(self.pid) - self._forked

    def forget(self, pid: int) -> None:
        """This task is dead and reaped, or as good as: its number may be anybody's next."""
        self._forked.discard(pid)

    def end(self) -> None:
        """Kill it; its tasks die with it (PR_SET_PDEATHSIG)."""
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()


class WarmPool:
    """Starts warm processes when they are first needed. `privileged` is false where everything runs as one user."""

    def __init__(
        self,
        *,
        privileged: bool,
        environment: Callable[[Kind], Mapping[str, str]],
        start_timeout_seconds: float,
        idle_seconds: float,
    ) -> None:
        self._privileged = privileged
        self._environment = environment
        self._start_timeout = start_timeout_seconds
        self._idle = idle_seconds
        self._warm: dict[Kind, WarmProcess] = {}
        self._starting: dict[Kind, asyncio.Lock] = {}

    async def get(self, kind: Kind) -> WarmProcess:
        """A ready warm process of that kind. Raises `SettingsError` when it cannot be started, saying why."""
        async with self._starting.setdefault(kind, asyncio.Lock()):
            warm = self._warm.get(kind)
            if warm is not None and not warm.alive:
                warm.end()
                warm = None
            if warm is None:
                warm = self._warm[kind] = await self._start(kind)
            return warm

    async def _start(self, kind: Kind) -> WarmProcess:
        ours, theirs = socket.socketpair()
        account = kind.account
        who = [str(account.uid), str(account.gid), ",".join(map(str, account.groups))] if self._privileged else ["-"]
        with theirs:
            process = subprocess.Popen(  # noqa: ASYNC220 - a millisecond, once per unix user
                [sys.executable, "-s", "-P", "-S", _BECOME, str(theirs.fileno()), kind.purpose, str(os.getpid()), *who],
                env=dict(self._environment(kind)),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        channel = Channel(ours)
        try:
            async with asyncio.timeout(self._start_timeout):
                message = (await channel.receive()).message
                if message.kind != "warm":
                    raise MalformedError(f"the new warm process said {message.kind!r}, expected is warm")
                version = message.fields.text("airflow_version", max_chars=100)
                message.fields.done()
        except (EOFError, TimeoutError) as error:
            channel.close()
            process.kill()
            code = process.wait()
            why = "it took too long" if isinstance(error, TimeoutError) else f"it exited with {code}"
            raise SettingsError(
                f"the warm process of unix user {account.name} did not start ({why}); its last words are in the launcher's"
                " log. Often the interpreter or its packages cannot be read by that user: run dagseal doctor"
            ) from None
        except BaseException:
            channel.close()
            process.kill()
            process.wait()
            raise
        return WarmProcess(process, channel, version)

    def retire_idle(self) -> int:
        """End those without tasks that were not used for long; how many."""
        now = asyncio.get_running_loop().time()
        idle = [kind for kind, warm in self._warm.items() if not warm.tasks and now - warm.used_at > self._idle]
        for kind in idle:
            self._warm.pop(kind).end()
        return len(idle)

    def end(self) -> None:
        """End all."""
        for warm in self._warm.values():
            warm.end()
        self._warm.clear()


def clean_environment(kind: Kind, given: Mapping[str, str]) -> dict[str, str]:
    """All that a warm process and its tasks find in their environment: an allow list, nothing of the launcher's own.

    The two variants of a description differ in hash seed and home, so that a description which depends on them is found out.
    """
    account = kind.account
    environment = {
        "PATH": f"{os.path.dirname(sys.executable)}:{_PATH}",
        "HOME": account.home,
        "USER": account.name,
        "LOGNAME": account.name,
        "SHELL": "/bin/sh",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "AIRFLOW_HOME": "/nonexistent/dagseal",
        **given,
    }
    if kind.purpose == "describe":
        environment["PYTHONHASHSEED"] = str(1 + kind.variant)
        environment["HOME"] = f"/nonexistent/dagseal-{kind.variant}"
    return environment

"""A warm process: one per unix user, purpose and profile, with the Airflow SDK imported and no secret; tasks are its forks.

The launcher execs `become.py`, which drops before it imports anything third-party. A warm process never runs a byte of a
DAG; it only forks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from integrity.errors import FetchError, MalformedError, SettingsError
from launcher.accounts import Account
from launcher.channel import Channel
from launcher.codecache import CodeCache
from launcher.isolation import Confinement
from launcher.trees import children

_BECOME = os.path.join(os.path.dirname(os.path.abspath(__file__)), "become.py")
_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a warm process is for. `variant` tells the two interpreters of a description apart."""

    account: Account
    purpose: str
    confinement: Confinement
    variant: int = 0


class WarmProcess:
    """One of them, started and ready."""

    def __init__(self, kind: Kind, process: subprocess.Popen[bytes], channel: Channel, airflow_version: str) -> None:
        self.kind = kind
        self.airflow_version = airflow_version
        self._process = process
        self._channel = channel
        self._lock = asyncio.Lock()
        self._out_of_step = False
        self.used_at = asyncio.get_running_loop().time()
        self.tasks = 0
        self.forks = 0
        self._forked: set[int] = set()
        self.codes = CodeCache()

    @classmethod
    async def start(
        cls, kind: Kind, environment: Mapping[str, str], *, privileged: bool, timeout_seconds: float
    ) -> WarmProcess:
        """Raises `SettingsError` when it cannot be started, saying why."""
        ours, theirs = socket.socketpair()
        account = kind.account
        who = [str(account.uid), str(account.gid), ",".join(map(str, account.groups))] if privileged else ["-"]
        what = [str(theirs.fileno()), str(os.getpid()), kind.purpose, kind.confinement.to_json()]
        with theirs:
            process = subprocess.Popen(  # noqa: ASYNC220 - a millisecond, once per unix user
                [sys.executable, "-s", "-P", "-S", _BECOME, *what, *who],
                env=dict(environment),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        channel = Channel(ours)
        try:
            async with asyncio.timeout(timeout_seconds):
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
                f"the warm process of unix user {account.name} (profile {kind.confinement.profile.name}) did not start ({why});"
                " its last words are in the launcher's log. Often the interpreter or its packages cannot be read by that user,"
                " or this host does not permit the profile: run dagseal doctor"
            ) from None
        except BaseException:
            channel.close()
            process.kill()
            process.wait()
            raise
        return cls(kind, process, channel, version)

    @property
    def alive(self) -> bool:
        """False also when an exchange with it was broken off: what it says next would answer the wrong question."""
        return self._process.poll() is None and not self._out_of_step

    async def fork(self, fds: Sequence[int]) -> int:
        """Fork a task that gets these descriptors; its pid, as the warm process sees it. Raises `FetchError` when the host has
        no room for one more, `EOFError` when the warm process died."""
        async with self._lock:
            try:
                await self._channel.send("fork", pass_fds=fds)
                answer = (await self._channel.receive()).message
                if answer.kind != "forked":
                    raise MalformedError(f"the warm process said {answer.kind!r}, expected is forked")
                pid, detail = answer.fields.integer("pid"), answer.fields.text("detail", max_chars=1000)
                answer.fields.done()
            except BaseException:
                self._out_of_step = True
                raise
            if pid < 1:
                raise FetchError(f"no task can be forked for unix user {self.kind.account.name}: {detail}; try again")
            self.forks += 1
            self._forked.add(pid)
            return pid

    async def orphans(self) -> set[int]:
        """Its children that it did not fork: what tasks that died by themselves left, which came back to it (subreaper).
        The orphans of a live task are that task's own. No fork is under way meanwhile, which would look alike."""
        async with self._lock:
            return children(self._process.pid) - self._forked

    def forget(self, pid: int) -> None:
        """This task is dead and reaped, or as good as: its number may be anybody's next."""
        self._forked.discard(pid)

    def end(self) -> None:
        """Kill it; its tasks die with it."""
        self.codes.close()
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()


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

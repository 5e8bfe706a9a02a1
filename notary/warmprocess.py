"""A warm process: one per unix user, purpose and profile, with the Airflow SDK imported and no secret; tasks are its forks.

The monitor execs `become.py`, which drops before it imports anything third-party. A warm process never runs a byte of a
DAG; it only forks.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence

from integrity.errors import FetchError, MalformedError, SettingsError
from launcher.channel import Channel
from launcher.kinds import Kind
from launcher.powers import Started
from launcher.trees import children, has_ended
from notary.asking import Powers
from notary.codecache import CodeCache


class WarmProcess:
    """One of them, started and ready."""

    def __init__(self, kind: Kind, started: Started, channel: Channel, airflow_version: str, powers: Powers) -> None:
        self.kind = kind
        self.pid = started.pid
        self.airflow_version = airflow_version
        self._pidfd = started.pidfd
        self._channel = channel
        self._powers = powers
        self._lock = asyncio.Lock()
        self._out_of_step = False
        self.used_at = asyncio.get_running_loop().time()
        self.tasks = 0
        self.forks = 0
        self._forked: set[int] = set()
        self.codes = CodeCache()

    @classmethod
    async def start(cls, kind: Kind, powers: Powers, *, timeout_seconds: float) -> WarmProcess:
        """Raises `SettingsError` when it cannot be started, saying why; or what the monitor refuses it with."""
        started = await powers.start(kind)
        channel = Channel(socket.socket(fileno=started.control_fd))
        try:
            async with asyncio.timeout(timeout_seconds):
                message = (await channel.receive()).message
                if message.kind != "warm":
                    raise MalformedError(f"the new warm process said {message.kind!r}, expected is warm")
                version = message.fields.text("airflow_version", max_chars=100)
                message.fields.done()
        except BaseException as error:
            channel.close()
            os.close(started.pidfd)
            code = await powers.end(started.pid)
            if not isinstance(error, EOFError | TimeoutError):
                raise
            why = "it took too long" if isinstance(error, TimeoutError) else f"it exited with {code}"
            raise SettingsError(
                f"the warm process of unix user {kind.account.name} (profile {kind.confinement.profile.name}) did not start"
                f" ({why}); its last words are in the launcher's log. Often the interpreter or its packages cannot be read by"
                " that user, or this host does not permit the profile: run dagseal doctor"
            ) from None
        return cls(kind, started, channel, version, powers)

    @property
    def alive(self) -> bool:
        """False also when an exchange with it was broken off: what it says next would answer the wrong question."""
        return not self._out_of_step and not has_ended(self._pidfd)

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

    async def _orphans(self) -> set[int]:
        """Its children that it did not fork: what tasks that died by themselves left, which came back to it (subreaper).
        The orphans of a live task are that task's own. No fork is under way meanwhile, which would look alike."""
        async with self._lock:
            return children(self.pid) - self._forked

    def forget(self, pid: int) -> None:
        """This task is dead and reaped, or as good as: its number may be anybody's next."""
        self._forked.discard(pid)

    async def kill_strays(self) -> None:
        """Its orphans, until there are none."""
        while left := await self._orphans():
            await self._powers.kill_strays(self.pid, frozenset(left))

    async def end(self) -> None:
        """Kill it; its tasks die with it."""
        self.codes.close()
        self._channel.close()
        try:
            await self._powers.end(self.pid)
        finally:
            os.close(self._pidfd)

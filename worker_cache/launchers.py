"""How the launcher is reached: it listens on a socket, or the agent starts it, through sudo, and hands it connections.

`connection()` gives a connected socket in both cases, one per job. A launcher that is started gets one end of a socket pair as
its stdin; on that, every connection is announced by a frame `connect` that brings the launcher's end (docs/protocol.md). It
lives no longer than the agent: the kernel closes that stdin when the agent ends, however it does.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Sequence
from typing import Protocol

from integrity import messages
from integrity.errors import FetchError

CONNECT_SECONDS = 5.0
_CONNECT = messages.encode("connect", fds=1)


class Launcher(Protocol):
    """The launcher of this host."""

    async def connection(self) -> socket.socket:
        """A new connection, non-blocking; the caller closes it. Raises `FetchError`."""

    async def close(self) -> None:
        """No connection is wanted any more: whom we started ends, with every task."""


class AtSocket:
    """One that listens."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def connection(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.setblocking(False)
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().sock_connect(sock, self._path)
        except (OSError, TimeoutError) as error:
            sock.close()
            reason = str(error) or "no answer in time"
            raise FetchError(
                f"the launcher's socket {self._path} cannot be reached ({reason}): is the launcher running?"
            ) from None
        except BaseException:
            sock.close()
            raise
        return sock

    async def close(self) -> None:
        """It is not ours."""


class OnDemand:
    """One that this process starts when it is first needed, and again when it died."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._starting = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Of what was started: with sudo, sudo's own."""
        return self._process.pid if self._process is not None else None

    async def connection(self) -> socket.socket:
        async with self._starting:
            if self._process is None or self._process.poll() is not None:
                await self._end()
                self._start()
            assert self._control is not None
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            with theirs:
                try:
                    ours.setblocking(False)
                    socket.send_fds(self._control, [_CONNECT], [theirs.fileno()])
                except OSError as error:
                    ours.close()
                    if not isinstance(error, BlockingIOError):  # else it is busy, or still starting
                        await self._end()
                    raise FetchError(
                        f"the launcher that {self._command[0]} started takes no connection ({error}): see its log"
                    ) from None
        return ours

    async def close(self) -> None:
        async with self._starting:
            await self._end()

    def _start(self) -> None:
        control, stdin = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with stdin:
            try:
                # Its log is ours: stderr. In a session of its own, so that no terminal's signal reaches it before us.
                self._process = subprocess.Popen(
                    self._command, stdin=stdin.fileno(), stdout=subprocess.DEVNULL, cwd="/", start_new_session=True
                )
            except OSError as error:
                control.close()
                raise FetchError(f"the launcher cannot be started: {self._command[0]}: {error.strerror}") from None
        control.setblocking(False)
        self._control = control

    async def _end(self) -> None:
        """Its stdin ends, so it kills its tasks and exits; sudo could be killed, and it would go on."""
        process, control, self._process, self._control = self._process, self._control, None, None
        if control is not None:
            control.close()
        if process is not None:
            await asyncio.to_thread(process.wait)

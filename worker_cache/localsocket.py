"""A unix socket of the agent's for local processes: it listens, says who asks, and lets nobody keep others out.

Promise: who asks is known by the kernel's word alone (SO_PEERCRED). Anybody may connect: who may ask for what decides whoever
answers. More than `most` at once are let go unheard.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable

import structlog

from integrity.errors import SettingsError

_ACCEPT_AGAIN_SECONDS = 0.5
_UCRED = struct.Struct("3i")

Serve = Callable[
    [socket.socket, int], Awaitable[None]
]  # one connection, non-blocking, and its uid; it is closed afterwards


class LocalSocket:
    """One listening socket. `close` ends it and every conversation."""

    def __init__(
        self, path: str, serve: Serve, *, setting: str, most: int, log: structlog.typing.FilteringBoundLogger
    ) -> None:
        """`setting` is what names the path. Raises `SettingsError`."""
        self._path = path
        self._serve = serve
        self._setting = setting
        self._most = most
        self._log = log
        self.answering: set[asyncio.Task[None]] = set()
        self._listening = self._listen()
        self._accepting = asyncio.create_task(self._accept())

    async def close(self) -> None:
        tasks = [self._accepting, *self.answering]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listening.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    async def _accept(self) -> None:
        while True:
            try:
                peer, _ = await asyncio.get_running_loop().sock_accept(self._listening)
            except OSError as error:  # no descriptor is left, say: others give theirs back
                self._log.error("nobody is heard at a socket", setting=self._setting, error=str(error))
                await asyncio.sleep(_ACCEPT_AGAIN_SECONDS)
                continue
            if len(self.answering) >= self._most:
                peer.close()
                continue
            task = asyncio.create_task(self._answer(peer))
            self.answering.add(task)
            task.add_done_callback(self.answering.discard)

    async def _answer(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError, TimeoutError):
            peer.setblocking(False)
            _, uid, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            await self._serve(peer, uid)

    def _listen(self) -> socket.socket:
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)  # the cache's lock says that no other agent of this configuration is there
            return _bound(self._path, self._most)
        except OSError as error:
            raise SettingsError(f"{self._setting} {self._path} cannot be made: {error.strerror}") from None


def _bound(path: str, most: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.bind(path)
        os.chmod(path, 0o666)  # noqa: S103 - who asks decides, not the socket's mode
        sock.listen(most)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock

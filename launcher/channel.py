"""Frames on a unix socket, asynchronously: `integrity.messages` with descriptors and the kernel's word on who sent them.

Promise: a frame is handed over whole or not at all; descriptors that were not asked for are closed, never kept; nothing of
an announced size is allocated before the size was checked.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from integrity import messages
from integrity.errors import MalformedError
from integrity.messages import Message

_CREDENTIALS = struct.Struct("iII")
_ANCILLARY_BYTES = socket.CMSG_SPACE(messages.MAX_FDS * 4) + socket.CMSG_SPACE(_CREDENTIALS.size)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who sent a frame, as the kernel attached it (SCM_CREDENTIALS) or as it was at connect (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Received:
    """One frame. The receiver owns `fds` and closes them."""

    message: Message
    fds: tuple[int, ...]
    sender: Credentials | None


class Channel:
    """One end of a stream socket. Raises `EOFError` when the other end is gone."""

    def __init__(self, sock: socket.socket, *, limit: int = messages.MAX_FRAME_BYTES) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._limit = limit
        self._loop = asyncio.get_running_loop()

    @property
    def peer(self) -> Credentials:
        """Who connected, by SO_PEERCRED: of use only for sockets that were connected by name, not for inherited ones."""
        raw = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return Credentials(*_CREDENTIALS.unpack(raw))

    def ask_for_credentials(self) -> None:
        """From now on every received frame says which process sent it."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    async def send(self, kind: str, *, pass_fds: Sequence[int] = (), **fields: Any) -> None:
        data = messages.encode(kind, fds=len(pass_fds), **fields)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", pass_fds))] if pass_fds else []
        try:
            sent = await self._when(True, lambda: self._sock.sendmsg([data], rights))
            if sent < len(data):  # even no byte at all is an error when the other end has answered and closed
                await self._loop.sock_sendall(self._sock, memoryview(data)[sent:])
        except (BrokenPipeError, ConnectionResetError):
            raise EOFError("the other end closed the socket") from None

    async def receive(self, *, max_fds: int = 0) -> Received:
        """The next frame, with so many descriptors at the most. Raises `MalformedError` or `EOFError`; then every descriptor
        that came is closed, and the channel is to be closed too."""
        fds: list[int] = []
        try:
            header, sender = await self._header(fds)
            body = await self._exactly(messages.body_length(header, limit=self._limit))
            message = messages.decode(body)
            if message.fds != len(fds):
                raise MalformedError(
                    f"frame {message.kind!r} announces {message.fds} descriptors and brings {len(fds)}"
                )
            if len(fds) > max_fds:
                raise MalformedError(f"{len(fds)} descriptors came with {message.kind!r}, {max_fds} are taken here")
        except BaseException:
            close_all(fds)
            raise
        return Received(message, tuple(fds), sender)

    async def _header(self, fds: list[int]) -> tuple[bytes, Credentials | None]:
        header, sender = b"", None
        while len(header) < messages.HEADER_BYTES:
            missing = messages.HEADER_BYTES - len(header)
            try:
                data, ancillary, got, _ = await self._when(
                    False, lambda n=missing: self._sock.recvmsg(n, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
                )
            except ConnectionResetError:
                raise EOFError("the other end closed the socket") from None
            for level, kind, raw in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds.extend(array.array("i", raw[: len(raw) - len(raw) % 4]))
                elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                    found = Credentials(*_CREDENTIALS.unpack(raw))
                    if sender not in (None, found):
                        raise MalformedError(f"one frame was begun by {sender} and continued by {found}")
                    sender = found
            if got & socket.MSG_CTRUNC or len(fds) > messages.MAX_FDS:
                raise MalformedError(f"more than {messages.MAX_FDS} descriptors beside one frame")
            if not data:
                raise EOFError("the other end closed the socket")
            header += data
        return header, sender

    async def _exactly(self, size: int) -> bytes:
        """`recv` drops any descriptors that come with these bytes; the kernel closes them."""
        body = bytearray()
        while len(body) < size:
            try:
                data = await self._loop.sock_recv(self._sock, min(size - len(body), 1 << 18))
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError("the other end closed the socket inside a frame")
            body += data
        return bytes(body)

    async def _when(self, writable: bool, attempt: Any) -> Any:
        while True:
            try:
                return attempt()
            except BlockingIOError:
                await self._until(writable)

    async def _until(self, writable: bool) -> None:
        fd, ready = self._sock.fileno(), self._loop.create_future()
        (self._loop.add_writer if writable else self._loop.add_reader)(fd, settle, ready)
        try:
            await ready
        finally:
            if self._sock.fileno() == fd:
                (self._loop.remove_writer if writable else self._loop.remove_reader)(fd)

    def close(self) -> None:
        """Whoever waits on it still waits for nothing: its number may be another socket's at once, and is let go here."""
        fd = self._sock.fileno()
        if fd >= 0:
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
        self._sock.close()


def settle(ready: asyncio.Future[None]) -> None:
    """What was waited for is there; more than once is fine."""
    if not ready.done():
        ready.set_result(None)


async def wait_readable(fd: int) -> None:
    """Return when `fd` can be read without blocking (or is at its end)."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(fd, settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


def close_all(fds: Sequence[int]) -> None:
    """Close each; one that is closed already is fine."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)

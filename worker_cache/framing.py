"""One frame of `integrity.messages` from a local socket, without blocking the loop."""

from __future__ import annotations

import array
import asyncio
import os
import socket

from integrity import messages
from integrity.errors import MalformedError
from integrity.messages import MAX_FDS, MAX_FRAME_BYTES, Message

_CHUNK_BYTES = 256 * 1024
_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)


async def receive(sock: socket.socket, *, limit: int = MAX_FRAME_BYTES) -> Message:
    """Raises `EOFError` when the peer closes before its end, `MalformedError` for what is no frame of at most `limit` bytes,
    `OSError`. Descriptors that come along are closed by the kernel."""
    return await _received(sock, await _exactly(sock, messages.HEADER_BYTES), limit)


async def receive_with_fd(sock: socket.socket, *, limit: int) -> tuple[Message, int]:
    """As `receive`, of a frame that is to bring one descriptor: it is the caller's to close."""
    head, fds = await _first(sock)
    try:
        head += await _exactly(sock, messages.HEADER_BYTES - len(head))
        message = await _received(sock, head, limit)
        if (message.fds, len(fds)) != (1, 1):
            raise MalformedError(f"frame {message.kind!r} is to bring one descriptor")
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return message, fds[0]


async def _received(sock: socket.socket, head: bytes, limit: int) -> Message:
    return messages.decode(await _exactly(sock, messages.body_length(head, limit=limit)))


async def _first(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Descriptors come beside the first byte; those that are more than there may be, the kernel closes."""
    while True:
        try:
            head, ancillary, _, _ = sock.recvmsg(messages.HEADER_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
            break
        except BlockingIOError:
            await _readable(sock)
    if not head:
        raise EOFError
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return head, list(fds)


async def _readable(sock: socket.socket) -> None:
    ready, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)


async def _exactly(sock: socket.socket, count: int) -> bytes:
    loop, data = asyncio.get_running_loop(), bytearray()
    while len(data) < count:
        chunk = await loop.sock_recv(sock, min(count - len(data), _CHUNK_BYTES))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)

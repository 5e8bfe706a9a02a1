"""One frame of `integrity.messages` from a local socket, without blocking the loop."""

from __future__ import annotations

import asyncio
import socket

from integrity import messages
from integrity.messages import MAX_FRAME_BYTES, Message

_CHUNK_BYTES = 256 * 1024


async def receive(sock: socket.socket, *, limit: int = MAX_FRAME_BYTES) -> Message:
    """Raises `EOFError` when the peer closes before its end, `MalformedError` for what is no frame of at most `limit` bytes,
    `OSError`. Descriptors that come along are closed by the kernel."""
    length = messages.body_length(await _exactly(sock, messages.HEADER_BYTES), limit=limit)
    return messages.decode(await _exactly(sock, length))


async def _exactly(sock: socket.socket, count: int) -> bytes:
    loop, data = asyncio.get_running_loop(), bytearray()
    while len(data) < count:
        chunk = await loop.sock_recv(sock, min(count - len(data), _CHUNK_BYTES))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)

"""One frame of `integrity.messages` from a peer, without blocking the loop."""

from __future__ import annotations

import asyncio
import socket

from integrity import messages
from integrity.messages import MAX_FRAME_BYTES, Message

_CHUNK_BYTES = 256 * 1024


async def receive(peer: socket.socket, *, limit: int = MAX_FRAME_BYTES) -> Message:
    """Raises `ConnectionResetError` when the peer closes before its end, `MalformedError` for what is no frame of at most
    `limit` bytes."""
    header = await _exactly(peer, messages.HEADER_BYTES)
    return messages.decode(await _exactly(peer, messages.body_length(header, limit=limit)))


async def _exactly(peer: socket.socket, count: int) -> bytes:
    loop, data = asyncio.get_running_loop(), bytearray()
    while len(data) < count:
        chunk = await loop.sock_recv(peer, min(count - len(data), _CHUNK_BYTES))
        if not chunk:
            raise ConnectionResetError("it closed the connection early")
        data += chunk
    return bytes(data)

"""Frames on a blocking unix socket: `integrity.messages`, with descriptors beside the first byte.

The launcher's own end is asynchronous (`launcher.channel`); a warm process and a task do one thing at a time.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from typing import Any

from integrity import messages
from integrity.errors import MalformedError
from integrity.messages import Message

_ANCILLARY_BYTES = socket.CMSG_SPACE(messages.MAX_FDS * 4)


def send(sock: socket.socket, kind: str, **fields: Any) -> None:
    """Send one frame whole. Raises `EOFError` when the other end is gone, `MalformedError` when it is too large."""
    try:
        sock.sendall(messages.encode(kind, **fields))
    except (BrokenPipeError, ConnectionResetError):
        raise EOFError("the other end closed the socket") from None


def receive(sock: socket.socket, *, fds: int = 0, more: int = 0) -> tuple[Message, list[int]]:
    """The next frame, which is to bring `fds` descriptors, or up to so many more: the caller's to close. Raises `EOFError` at
    the end, `MalformedError` for anything else than one such frame; descriptors that came are closed then."""
    got: list[int] = []
    try:
        header = _take(sock, messages.HEADER_BYTES, got)
        message = messages.decode(_take(sock, messages.body_length(header), got))
        if message.fds != len(got) or not fds <= len(got) <= fds + more:
            raise MalformedError(f"frame {message.kind!r}: {fds} descriptors are expected, {len(got)} came")
    except BaseException:
        close_all(got)
        raise
    return message, got


def close_all(fds: list[int]) -> None:
    """Close each; one that is closed already is fine."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def _take(sock: socket.socket, size: int, fds: list[int]) -> bytes:
    taken = bytearray()
    while len(taken) < size:
        try:
            chunk, ancillary, flags, _ = sock.recvmsg(
                min(size - len(taken), 1 << 18), _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            chunk, ancillary, flags = b"", [], 0
        for level, kind, raw in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.extend(array.array("i", raw[: len(raw) - len(raw) % 4]))
        if flags & socket.MSG_CTRUNC:
            raise MalformedError(f"more than {messages.MAX_FDS} descriptors beside one frame")
        if not chunk:
            raise EOFError("the other end closed the socket")
        taken += chunk
    return bytes(taken)

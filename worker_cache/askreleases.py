"""The other side of the agent's `releases.sock`, blocking: for local processes that read code.

Each raises `NotFoundError` for a refusal, with its words, `MalformedError` for what is no answer, and `OSError` where nobody
listens or answers in time.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence

from integrity import messages, names
from integrity.digests import Digest
from integrity.errors import MalformedError, NotFoundError
from integrity.messages import Message
from worker_cache.releasesocket import ANSWER_SECONDS, SET_SECONDS


def ask(path: str, archive: str, number: int | None = None, *, want: str = "file") -> tuple[Message, int | None]:
    """The answer's frame, and the descriptor, which is the caller's to close."""
    names.check("archive", archive)
    with _asked(path, messages.encode("release", archive=archive, number=number, want=want), ANSWER_SECONDS) as sock:
        message, fds = _whole(_answer(sock))
    if message.kind != "release" or message.fds != len(fds):
        for fd in fds:
            os.close(fd)
        raise MalformedError(f"the agent answered {message.kind!r} with {len(fds)} descriptors")
    return message, fds[0] if fds else None


def ask_set(
    path: str, archives: Sequence[str], digest: Digest | None = None, *, want: str = "folder"
) -> tuple[Digest, str]:
    """Of archives that fit one of these globs: the set's digest, by default of the active one, and its folder."""
    asking = digest.hex if digest is not None else None
    frame = messages.encode("set", archives=list(archives), digest=asking, want=want)
    with _asked(path, frame, SET_SECONDS + ANSWER_SECONDS) as sock:
        return _set(_whole(_answer(sock)))


def watch_sets(path: str, archives: Sequence[str]) -> Iterator[Digest]:
    """The digest of the active set, now and whenever it is another; until the agent closes. Close the iterator when done."""
    with _asked(path, messages.encode("watch", archives=list(archives)), ANSWER_SECONDS) as sock:
        sock.settimeout(None)
        while (answer := _answer(sock)) is not None:
            yield _set(answer)[0]


def _asked(path: str, frame: bytes, seconds: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(seconds)
        sock.connect(path)
        sock.sendall(frame)
    except BaseException:
        sock.close()
        raise
    return sock


def _whole(answer: tuple[Message, list[int]] | None) -> tuple[Message, list[int]]:
    if answer is None:
        raise MalformedError("the agent closed the connection without an answer")
    return answer


def _set(answer: tuple[Message, list[int]]) -> tuple[Digest, str]:
    message, fds = answer
    for fd in fds:
        os.close(fd)
    if message.kind != "set" or fds:
        raise MalformedError(f"the agent answered {message.kind!r} to a question for a set")
    digest, folder = Digest(message.fields.text("digest", max_chars=128)), message.fields.text("folder")
    message.fields.done()
    return digest, folder


def _answer(sock: socket.socket) -> tuple[Message, list[int]] | None:
    """One frame and its descriptors; None where the agent closed."""
    data, fds, _, _ = socket.recv_fds(sock, messages.HEADER_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
    if not data:
        return None
    try:
        while len(data) < messages.HEADER_BYTES:
            data += _more(sock, messages.HEADER_BYTES - len(data))
        body = bytearray()
        length = messages.body_length(data)
        while len(body) < length:
            body += _more(sock, length - len(body))
        message = messages.decode(bytes(body))
        if message.kind == "refused":
            raise NotFoundError(f"{message.fields.text('error')}: {message.fields.text('detail')}")
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return message, fds


def _more(sock: socket.socket, count: int) -> bytes:
    chunk = sock.recv(count)
    if not chunk:
        raise MalformedError("the agent's answer ended early")
    return chunk

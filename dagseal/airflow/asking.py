"""Frames of `integrity.messages` for a process of Airflow's: a question to the agent, or a conversation in its selector loop.

Promise: nothing here waits for ever; what a peer sends is capped before it is kept, and whoever does not
answer, or not in frames, is a `FetchError` that names the socket.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Sequence

from integrity import messages
from integrity.digests import Digest
from integrity.errors import DagsealError, FetchError, MalformedError, NotFoundError, SettingsError
from integrity.messages import Message
from worker_cache import askreleases

ANSWER_SECONDS = 10.0
_AGAIN_SECONDS = 1.0
_CHUNK_BYTES = 256 * 1024


class Incoming:
    """Frames out of the chunks that they come in."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """The frames that are whole now. Raises `MalformedError`, after those that came before it."""
        self._data += chunk
        while len(self._data) >= messages.HEADER_BYTES:
            end = messages.HEADER_BYTES + messages.body_length(bytes(self._data[: messages.HEADER_BYTES]))
            if len(self._data) < end:
                break
            body = bytes(self._data[messages.HEADER_BYTES : end])
            del self._data[:end]
            yield messages.decode(body)


def connect(path: str, whose: str) -> socket.socket:
    """Raises `SettingsError` where this account may not, `FetchError`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.settimeout(ANSWER_SECONDS)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise unreachable(error, path, whose) from None
    return sock


def send(sock: socket.socket, frame: bytes, *fds: int) -> None:
    """All of the frame, the descriptors beside its first byte. Raises `OSError`."""
    sent = socket.send_fds(sock, [frame], fds) if fds else 0
    if sent < len(frame):  # even no byte at all is an error when the peer has answered and closed
        sock.sendall(frame[sent:])


def unreachable(error: OSError, path: str, whose: str) -> DagsealError:
    """What is to be done about it."""
    if isinstance(error, PermissionError):
        return SettingsError(
            f"uid {os.geteuid()} may not use {whose} socket {path}: give its account the socket's group"
        )
    return FetchError(f"{whose} socket {path} does not answer ({error.strerror or error}): is it running?")


def ask_set(path: str, archives: Sequence[str], digest: str | None) -> tuple[str, str]:
    """The set's digest, as 128 hex, and its folder. Without a digest: the set that is active now.

    Raises `NotFoundError` for a refusal, in the agent's words, `FetchError`, `SettingsError`."""
    try:
        found, folder = askreleases.ask_set(path, archives, Digest(digest) if digest else None)
    except NotFoundError as error:
        raise NotFoundError(f"the agent: {error}") from None
    except OSError as error:
        raise unreachable(error, path, "the agent's") from None
    except MalformedError as error:
        raise FetchError(f"the agent at {path} sent what cannot be read: {error}") from None
    return found.hex, folder


def read_set(message: Message) -> tuple[str, str]:
    """Raises `NotFoundError` for a refusal, `MalformedError`."""
    if message.kind == "refused":
        raise NotFoundError(f"the agent: {message.fields.text('error')}: {message.fields.text('detail')}")
    if message.kind != "set" or message.fds:
        raise MalformedError(f"the agent answered {message.kind!r} to a question for a set")
    digest, folder = message.fields.text("digest", max_chars=128), message.fields.text("folder", max_chars=4096)
    message.fields.done()
    if not is_version(digest):
        raise MalformedError("a set's digest is 128 lower-case hexadecimal digits")
    return digest, folder


def is_version(text: str) -> bool:
    return len(text) == 128 and not set(text) - set("0123456789abcdef")


class Watch:
    """Told by the agent whenever the set of these archives is another; asks again when the agent went away.

    `tend` is to be called now and then; `changed` hears each digest, from the selector's thread."""

    def __init__(self, path: str, archives: Sequence[str], changed: Callable[[str], None]) -> None:
        self._path = path
        self._question = messages.encode("watch", archives=list(archives))
        self._changed = changed
        self._incoming = Incoming()
        self._sock: socket.socket | None = None
        self._not_before = 0.0
        self.problem = ""

    def tend(self, selector: selectors.BaseSelector) -> None:
        """Ask, unless it is asked already."""
        if self._sock is not None or time.monotonic() < self._not_before:
            return
        self._not_before = time.monotonic() + _AGAIN_SECONDS
        try:
            sock = connect(self._path, "the agent's")
        except DagsealError as error:
            self.problem = str(error)
            return
        try:
            sock.sendall(self._question)
        except OSError as error:
            sock.close()
            self.problem = str(error)
            return
        sock.setblocking(False)
        self._sock, self._incoming = sock, Incoming()
        selector.register(sock, selectors.EVENT_READ, (self._read, selector.unregister))

    def _read(self, sock: socket.socket) -> bool:
        """As Airflow's selector loop calls it: whether more is to come; after False it is unregistered and closed."""
        try:
            chunk = sock.recv(_CHUNK_BYTES)
            for message in self._incoming.feed(chunk):
                digest, _ = read_set(message)
                self.problem = ""
                self._changed(digest)
        except BlockingIOError:
            return True
        except (DagsealError, OSError) as error:
            self.problem, chunk = str(error), b""
        if not chunk:
            self._sock = None
        return bool(chunk)

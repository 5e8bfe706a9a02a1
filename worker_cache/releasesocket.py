"""The agent's `releases.sock`: a local process asks for release N of archive X, and gets its verified bytes.

    → release {archive, number, want}      number null: the active one; want: "file" or "folder"
    ← release {archive, number, digest, size, folder} + 1 fd, of want "file"; folder is its path, or empty
    ← refused {error, detail}

Promise: who asks is known by the kernel's word alone (SO_PEERCRED) and sees what its principal may read by the archive's mode,
as the verified log has it; no answer makes the agent fetch, lock or write a cache entry. A release that is revoked, waits,
lacks the author that this host asks for, or is not cached is refused. One question for each connection; a slow asker is let
go.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping

import structlog

from integrity import messages, names
from integrity.errors import DagsealError, MalformedError, NotFoundError, NotOwnerError, SettingsError
from integrity.logview import LoggedRelease, LogView
from integrity.messages import Message
from worker_cache import framing
from worker_cache.authors import Authors
from worker_cache.readers import NOBODY, Reader
from worker_cache.trees import Trees

MAX_REQUEST_BYTES = 4096
MAX_CONNECTIONS = 64
ANSWER_SECONDS = 10.0
_ACCEPT_AGAIN_SECONDS = 0.5
WANTS = ("file", "folder")
_UCRED = struct.Struct("3i")

View = Callable[[], LogView]  # the newest; raises StaleError, ForkError
OpenCached = Callable[
    [LoggedRelease], Awaitable[int]
]  # a verified descriptor; raises NotFoundError where it is not cached


class ReleaseSocket:
    """One listening socket. `close` ends it and every conversation."""

    def __init__(
        self,
        path: str,
        *,
        readers: Mapping[int, Reader],
        view: View,
        open_cached: OpenCached,
        trees: Trees | None,
        authors: Authors,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._path = path
        self._readers = readers
        self._view = view
        self._open_cached = open_cached
        self._trees = trees
        self._authors = authors
        self._log = log
        self._answering: set[asyncio.Task[None]] = set()
        self._listening = _listen(path)
        self._accepting = asyncio.create_task(self._accept())

    async def close(self) -> None:
        tasks = [self._accepting, *self._answering]
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
                self._log.error("nobody is heard at the releases' socket", error=str(error))
                await asyncio.sleep(_ACCEPT_AGAIN_SECONDS)
                continue
            if len(self._answering) >= MAX_CONNECTIONS:
                peer.close()
                continue
            task = asyncio.create_task(self._serve(peer))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

    async def _serve(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError, TimeoutError):
            peer.setblocking(False)
            _, uid, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            async with asyncio.timeout(ANSWER_SECONDS):
                fd = None
                try:
                    frame, fd = await self._answer(await _receive(peer), uid)
                except DagsealError as error:
                    self._log.info("release not given", uid=uid, slug=error.slug, error=str(error))
                    frame = messages.encode("refused", error=error.slug, detail=str(error)[:4000])
                try:
                    await _send(peer, frame, fd)
                finally:
                    if fd is not None:
                        os.close(fd)

    async def _answer(self, message: Message, uid: int) -> tuple[bytes, int | None]:
        fields = message.fields
        if message.kind != "release" or message.fds:
            raise MalformedError("here one asks for a release, and brings no descriptor")
        name = fields.name("archive", "archive")
        number = fields.optional("number", lambda key: fields.integer(key, least=1))
        want = fields.choice("want", WANTS)
        fields.done()
        view = self._view()
        archive = view.archives.get(name)
        if archive is None:
            raise NotFoundError(f"there is no archive {name!r} in the log")
        if not self._readers.get(uid, NOBODY).may_read(archive):
            raise NotOwnerError(
                f"archive {name} is not yours to read: ask {archive.owner}, or to be added to the readers"
            )
        if number is None and archive.active is None:
            raise NotFoundError(f"no release of {name} is active")
        release = view.runnable(name, number or archive.active or 0)
        self._authors.require(release)
        fd = await self._open_cached(release)
        try:
            folder = ""
            if want == "folder":
                if self._trees is None:
                    raise NotFoundError("this agent makes no folders: set trees_dir, or ask for the file")
                folder = await asyncio.to_thread(self._trees.folder, release, archive, fd)
            sent = want == "file"
            frame = messages.encode(
                "release",
                fds=int(sent),
                archive=name,
                number=release.number,
                digest=str(release.digest),
                size=release.size,
                folder=folder,
            )
        except BaseException:
            os.close(fd)
            raise
        if not sent:
            os.close(fd)
        return frame, fd if sent else None


def _listen(path: str) -> socket.socket:
    """Raises `SettingsError`."""
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # the cache's lock says that no other agent of this configuration is there
        return _bound(path)
    except OSError as error:
        raise SettingsError(f"releases_socket {path} cannot be made: {error.strerror}") from None


def _bound(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.bind(path)
        os.chmod(path, 0o666)  # noqa: S103 - the archive's mode decides, not the socket's
        sock.listen(MAX_CONNECTIONS)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


async def _receive(peer: socket.socket) -> Message:
    """Nobody asks for a descriptor that comes along."""
    try:
        return await framing.receive(peer, limit=MAX_REQUEST_BYTES)
    except EOFError:
        raise MalformedError("the question ended early") from None


async def _send(peer: socket.socket, frame: bytes, fd: int | None) -> None:
    """A frame fits into the socket's buffer, which is empty."""
    if fd is None:
        await asyncio.get_running_loop().sock_sendall(peer, frame)
    else:
        socket.send_fds(peer, [frame], [fd])


def ask(path: str, archive: str, number: int | None = None, *, want: str = "file") -> tuple[Message, int | None]:
    """The other side, blocking: the answer's frame, and the descriptor, which is the caller's to close.

    Raises `NotFoundError` for a refusal, with its words, `MalformedError`, and `OSError` where nobody listens."""
    names.check("archive", archive)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(ANSWER_SECONDS)
        sock.connect(path)
        sock.sendall(messages.encode("release", archive=archive, number=number, want=want))
        data, fds, _, _ = socket.recv_fds(sock, messages.HEADER_BYTES, 1)
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
            if message.kind != "release" or message.fds != len(fds):
                raise MalformedError(f"the agent answered {message.kind!r} with {len(fds)} descriptors")
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
    return message, fds[0] if fds else None


def _more(sock: socket.socket, count: int) -> bytes:
    chunk = sock.recv(count)
    if not chunk:
        raise MalformedError("the agent's answer ended early")
    return chunk

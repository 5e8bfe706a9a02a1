"""The agent's `releases.sock`: a local process asks for code that it may read, and gets verified bytes.

    → release {archive, number, want}          number null: the active one; want: "file" or "folder"
    ← release {archive, number, digest, size, folder} + 1 fd, of want "file"; folder is its path, or empty
    → set {archives: [globs], digest, want}    digest null: the active set; want: "folder" or "version"
    ← set {digest, folder}                     128 hex; folder is empty of want "version"
    → watch {archives: [globs]}
    ← set {digest, folder: ""}                 now, if there is one, and whenever it is another, until the asker closes
    ← refused {error, detail}

Promise: who asks is known by the kernel's word alone (SO_PEERCRED) and sees what its principal may read by the archive's mode,
as the verified log has it; no answer makes the agent lock or write a cache entry, and but for what is in a set (`setfolders`)
none makes it fetch. A release that is revoked, waits, or lacks the author that this host asks for is refused, and one that is
not cached; it is in no set. One question for each connection; a slow asker is let go. Those who watch keep nobody out who asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from integrity import messages
from integrity.digests import Digest
from integrity.errors import DagsealError, FetchError, MalformedError, NotFoundError, NotOwnerError
from integrity.fields import Fields
from vocabulary.logview import LoggedRelease
from worker_cache import framing, sets
from worker_cache.localsocket import LocalSocket
from worker_cache.readers import NOBODY, Reader
from worker_cache.setfolders import SetFolders
from worker_cache.trees import Trees
from worker_cache.waiting import unless

MAX_REQUEST_BYTES = 32 * 1024
MAX_CONNECTIONS = 64
MAX_WATCHERS = 64
MAX_WATCHERS_OF_ONE = 8
ANSWER_SECONDS = 10.0
SET_SECONDS = 50.0  # what is in it may have to be fetched
WANTS = ("file", "folder")
SET_WANTS = ("folder", "version")
_WATCH_AGAIN_SECONDS = 1.0

# a verified descriptor; raises NotFoundError where it is not cached
OpenCached = Callable[[LoggedRelease], Awaitable[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A frame, and a descriptor that goes with it and is then closed."""

    frame: bytes
    fd: int | None = None


class ReleaseSocket:
    """One listening socket. `close` ends it and every conversation."""

    def __init__(
        self,
        path: str,
        *,
        readers: Mapping[int, Reader],
        folders: SetFolders,
        open_cached: OpenCached,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        """Raises `SettingsError`."""
        self._readers = readers
        self._folders = folders
        self._open_cached = open_cached
        self._log = log
        self._watching: Counter[int] = Counter()
        most = MAX_CONNECTIONS + MAX_WATCHERS
        self._socket = LocalSocket(path, self._serve, setting="releases_socket", most=most, log=log)

    async def close(self) -> None:
        await self._socket.close()

    async def _serve(self, peer: socket.socket, uid: int) -> None:
        reader = self._readers.get(uid, NOBODY)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                message = await _receive(peer)
            if message.kind == "watch":
                await self._watch(peer, uid, reader, message.fields)
                return
            async with asyncio.timeout(SET_SECONDS if message.kind == "set" else ANSWER_SECONDS):
                answer = await self._answer(message, reader)
        except DagsealError as error:
            self._log.info("release not given", uid=uid, slug=error.slug, error=str(error))
            answer = Answer(frame=messages.encode("refused", error=error.slug, detail=str(error)[:4000]))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await _send(peer, answer)
        finally:
            if answer.fd is not None:
                os.close(answer.fd)

    async def _answer(self, message: messages.Message, reader: Reader) -> Answer:
        match message.kind:
            case "release":
                return await self._release(reader, message.fields)
            case "set":
                return await self._set(reader, message.fields)
            case _:
                raise MalformedError("here one asks for a release or a set, or watches")

    async def _release(self, reader: Reader, fields: Fields) -> Answer:
        name = fields.name("archive", "archive")
        number = fields.optional("number", lambda key: fields.integer(key, least=1))
        want = fields.choice("want", WANTS)
        fields.done()
        view = self._folders.view()
        archive = view.archives.get(name)
        if archive is None:
            raise NotFoundError(f"there is no archive {name!r} in the log")
        if not reader.may_read(archive):
            raise NotOwnerError(
                f"archive {name} is not yours to read: ask {archive.owner}, or to be added to the readers"
            )
        if number is None and archive.active is None:
            raise NotFoundError(f"no release of {name} is active")
        release = view.runnable(name, number or archive.active or 0)
        self._folders.authors.require(release)
        fd = await self._open_cached(release)
        try:
            folder = ""
            if want == "folder":
                folder = await asyncio.to_thread(_require(self._folders.trees).folder, release, archive, fd)
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
        return Answer(frame=frame, fd=fd if sent else None)

    async def _set(self, reader: Reader, fields: Fields) -> Answer:
        globs = sets.read_globs(fields)
        digest = fields.optional("digest", lambda key: Digest(fields.text(key, max_chars=128)))
        want = fields.choice("want", SET_WANTS)
        fields.done()
        if digest is None:
            found = await self._folders.active(reader, globs)
        else:
            found = await self._folders.recalled(reader, globs, digest)
        if found is None:
            raise NotFoundError("no archive that is yours to read and fits has an active release that may run here")
        folder = await self._folders.folder(found) if want == "folder" else ""
        return Answer(frame=_set_frame(found.digest, folder))

    async def _watch(self, peer: socket.socket, uid: int, reader: Reader, fields: Fields) -> None:
        globs = sets.read_globs(fields)
        fields.done()
        if self._watching.total() >= MAX_WATCHERS or self._watching[uid] >= MAX_WATCHERS_OF_ONE:
            raise FetchError(f"too many watch: {MAX_WATCHERS_OF_ONE} of one account may, {MAX_WATCHERS} of all")
        self._watching[uid] += 1
        changed, gone = self._folders.watch(), asyncio.Event()
        listening = asyncio.create_task(_until_gone(peer, gone))
        try:
            await self._tell(peer, reader, globs, changed, gone)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            self._folders.unwatch(changed)
            self._watching[uid] -= 1

    async def _tell(
        self, peer: socket.socket, reader: Reader, globs: tuple[str, ...], changed: asyncio.Event, gone: asyncio.Event
    ) -> None:
        told: Digest | None = None
        while not gone.is_set():
            changed.clear()
            try:
                found = await self._folders.active(reader, globs)
            except DagsealError as error:  # the log is too old to tell, or the API cannot be told: not yet
                self._log.info("set not told", slug=error.slug, error=str(error))
                await unless(asyncio.sleep(_WATCH_AGAIN_SECONDS), gone)
                continue
            if found is not None and found.digest != told:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await _send(peer, Answer(frame=_set_frame(found.digest, "")))
                told = found.digest
            await unless(changed.wait(), gone)


def _require(trees: Trees | None) -> Trees:
    if trees is None:
        raise NotFoundError("this agent makes no folders: set trees_dir, or ask for the file")
    return trees


def _set_frame(digest: Digest, folder: str) -> bytes:
    return messages.encode("set", digest=digest.hex, folder=folder)


async def _receive(peer: socket.socket) -> messages.Message:
    """Nobody asks for a descriptor that comes along."""
    try:
        message = await framing.receive(peer, limit=MAX_REQUEST_BYTES)
    except EOFError:
        raise MalformedError("the question ended early") from None
    if message.fds:
        raise MalformedError("here one brings no descriptor")
    return message


async def _until_gone(peer: socket.socket, gone: asyncio.Event) -> None:
    """Whoever watches says nothing more: any word is its end."""
    with contextlib.suppress(OSError):
        await asyncio.get_running_loop().sock_recv(peer, 1)
    gone.set()


async def _send(peer: socket.socket, answer: Answer) -> None:
    """A frame fits into the socket's buffer, which is empty."""
    if answer.fd is None:
        await asyncio.get_running_loop().sock_sendall(peer, answer.frame)
    else:
        socket.send_fds(peer, [answer.frame], [answer.fd])

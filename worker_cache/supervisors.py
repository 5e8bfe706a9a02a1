"""A supervisor at the other end of `tasks.sock`: what it says beside everything else, and what it is told of its launch.

Promise: when it goes away, or says what is no part of the conversation, that is a wish to kill its task at once. It is told of
a launch in order: the log, as fast as it reads and from the disk, so that a slow one keeps nobody waiting and costs no memory;
then one last word, which is the launcher's signed one, or says that there is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from integrity import messages
from integrity.errors import DagsealError, FetchError, MalformedError
from integrity.fields import to_base64
from vocabulary import claims
from vocabulary.keys import VerifyKey
from worker_cache import framing
from worker_cache.log_relay import KeptLog, LogReader
from worker_cache.waiting import unless

MAX_REQUEST_BYTES = 8192
MAX_GRACE_SECONDS = 60
LAST_SECONDS = 60.0
LOST = "lost"
_MAX_DETAIL_CHARS = 4000
_KILLED = -9


class Asker:
    """One connection. `hear` beside everything else; `say` one at a time."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self.started, self.cancelled, self.gone = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.wishes: asyncio.Queue[int] = asyncio.Queue()

    async def hear(self) -> None:
        """Until it closes, or says what is no part of this: either is the end of its task."""
        try:
            while True:
                self._heard(await framing.receive(self._peer, limit=MAX_REQUEST_BYTES))
        except (EOFError, OSError, MalformedError):
            self._leave()

    def _leave(self) -> None:
        self.gone.set()
        self.wishes.put_nowait(0)

    def _heard(self, message: messages.Message) -> None:
        fields = message.fields
        match message.kind:
            case "start" if not self.started.is_set():
                self.started.set()
            case "cancel":
                grace_seconds = fields.integer("grace_seconds")
                if grace_seconds > MAX_GRACE_SECONDS:
                    raise MalformedError(f"a task has {MAX_GRACE_SECONDS} seconds at most to end by itself")
                self.cancelled.set()
                self.wishes.put_nowait(grace_seconds)
            case other:
                raise MalformedError(f"{other!r} is not permitted here")
        fields.done()

    async def say(self, kind: str, **fields: Any) -> None:
        """Who does not hear it is gone."""
        if "detail" in fields:
            fields["detail"] = fields["detail"][:_MAX_DETAIL_CHARS]
        try:
            await asyncio.get_running_loop().sock_sendall(self._peer, messages.encode(kind, **fields))
        except OSError:
            self._leave()


class Telling:
    """What a supervisor is told of a launch that was started: its log, as fast as it reads, then one last word."""

    def __init__(self, asker: Asker, launcher: VerifyKey) -> None:
        self._asker = asker
        self._launcher = launcher
        self._last: asyncio.Future[tuple[str, dict[str, Any]]] = asyncio.get_running_loop().create_future()
        self._was_claimed = False
        self._reader: LogReader | None = None
        self._speaking: asyncio.Task[None] | None = None

    def claimed(self, log: KeptLog) -> None:
        self._was_claimed = True
        self._reader = log.reader()
        self._speaking = asyncio.create_task(self._speak())

    def ended(self, result: bytes) -> None:
        try:
            found = claims.verify_result(result, self._launcher).result
        except DagsealError as error:
            self.failed(error)
            return
        if self._was_claimed:
            self._finally("ended", state=found.state, error=found.error, detail=found.detail, exit_code=found.exit_code)
        else:
            self.refused(found.error, found.detail)

    def refused(self, slug: str, detail: str) -> None:
        self._finally("refused", error=slug, detail=detail)

    def failed(self, error: Exception) -> None:
        if self._was_claimed:
            self._finally("ended", state=LOST, error=LOST, detail=str(error), exit_code=_KILLED)
        else:
            self.refused(error.slug if isinstance(error, DagsealError) else FetchError.slug, str(error))

    def _finally(self, kind: str, **fields: Any) -> None:
        if not self._last.done():  # the first is the one that holds
            self._last.set_result((kind, fields))
            if self._speaking is None:
                self._speaking = asyncio.create_task(self._speak())

    async def _speak(self) -> None:
        if self._reader is not None:
            while data := await self._reader.piece():
                await self._asker.say("log", data=to_base64(data))
                self._reader.offset += len(data)
        kind, fields = await self._last
        await self._asker.say(kind, **fields)

    async def close(self, gone: asyncio.Event) -> None:
        """Whoever is still there is told the rest."""
        try:
            if self._speaking is not None and self._last.done():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LAST_SECONDS):
                        await unless(_finished(self._speaking), gone)
        finally:
            self._last.cancel()
            if self._speaking is not None:
                self._speaking.cancel()
                await asyncio.gather(self._speaking, return_exceptions=True)
            if self._reader is not None:
                self._reader.close()


async def _finished(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])

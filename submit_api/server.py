"""The listening socket and its deadlines, which aiohttp does not have: a head has so many seconds, an idle connection too.

(Bodies have theirs in `submit_api.bodies`.) Bodies are never inflated. Requests that are not HTTP are answered with a problem
document, and the connection is closed. One question is answered here (`submit_api.polling`), on a connection that made a
request before, is asked nothing else at the time, and whose peer takes its answers.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest

from submit_api import problems
from submit_api.polling import Polls
from submit_api.refusals import RequestError
from submit_api.settings import LimitsSection

_SLOW_HEAD = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_BACKLOG = 512
_log = structlog.get_logger("submit_api")


class HeadTooLargeError(RequestError):
    slug = "head-too-large"
    status = 431


class Connection(RequestHandler):
    """One connection. Between requests, and before the first, the next head has `head_seconds` from its first byte."""

    __slots__ = ("_head_deadline", "_head_seconds", "_polls")

    def __init__(self, manager: web.Server, *, head_seconds: float, polls: Polls, **settings: Any) -> None:
        super().__init__(manager, **settings)
        self._head_seconds = head_seconds
        self._polls = polls
        self._head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_idle() and isinstance(self.transport, asyncio.Transport):
            answer = self._polls.answer(data)
            if answer is not None:
                self.transport.write(answer)
                self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
                return
        before = self._request_count
        super().data_received(data)
        if self._request_count != before:
            self._disarm()
        elif data and self._awaits_head():
            self._arm()

    def _awaits_head(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def _is_idle(self) -> bool:
        """Between two requests, with nothing of the next one here. Before the first there is a deadline, and no clock
        for idle connections yet."""
        return self._head_deadline is None and self._awaits_head() and not self._paused and not self._close

    def _arm(self) -> None:
        if self._head_deadline is None:
            self._head_deadline = self._loop.call_later(self._head_seconds, self._head_is_late)

    def _disarm(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _head_is_late(self) -> None:
        self._head_deadline = None
        if self._awaits_head():
            if isinstance(self.transport, asyncio.Transport):
                self.transport.write(_SLOW_HEAD)
            self.force_close()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Requests that never became one: the parser refused them."""
        if request.writer.output_size > 0:
            raise ConnectionError("a part of the answer is sent already")
        if status == 400:
            late = isinstance(exc, LineTooLong)
            error = HeadTooLargeError("the head is too large") if late else RequestError("this is not a valid request")
            answer = problems.response(problems.document(error))
        else:
            _log.error("unexpected", error=type(exc).__name__)
            answer = problems.response(problems.internal())
        answer.force_close()
        return answer


class Listener:
    """A started server. `port` is the one it got."""

    def __init__(self, runner: web.AppRunner, server: asyncio.Server) -> None:
        self._runner = runner
        self._server = server
        bound: socket.socket = server.sockets[0]
        self.port = int(bound.getsockname()[1])

    async def close(self) -> None:
        """Stop listening, let what is under way end, then close every connection."""
        self._server.close()
        await self._runner.cleanup()


async def listen(app: web.Application, polls: Polls, host: str, port: int, limits: LimitsSection) -> Listener:
    """Serve `app`. Raises `OSError` when the port is taken."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=limits.shutdown_seconds)
    await runner.setup()
    if runner.server is None:
        raise RuntimeError("aiohttp's runner has no server after its setup")
    manager = runner.server
    loop = asyncio.get_running_loop()

    def connection() -> Connection:
        return Connection(
            manager,
            loop=loop,
            head_seconds=limits.head_seconds,
            polls=polls,
            keepalive_timeout=limits.idle_seconds,
            lingering_time=limits.lingering_seconds,
            auto_decompress=False,
            access_log=None,
        )

    try:
        server = await loop.create_server(connection, host, port, backlog=_BACKLOG)
    except OSError:
        await runner.cleanup()
        raise
    return Listener(runner, server)

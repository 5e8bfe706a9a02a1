"""What stands between the service and its bucket when that fails: each request goes through, unless a fault is due.

A fault is due so many times, for one method; a listing's is LIST. In the words of the tests: `away` (the connection ends),
`lost` (done, and the answer is lost), `hang` (no answer), `hold` and `done` (until `release`; before and after it was done),
bodies that are cut `short`, `brief` by their own word, `endless`, of a `huge` object or from `elsewhere` in it, `ranges` that
are ignored, `flip`ped bytes, `conditions` that are ignored, and any status with an error code of S3's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from types import TracebackType

import aiohttp
from aiohttp import web
from yarl import URL

AWAY, LOST, HANG, HOLD, SHORT, ENDLESS = "away", "lost", "hang", "hold", "short", "endless"
HUGE, RANGES, FLIP, CONDITIONS = "huge", "ranges", "flip", "conditions"
BRIEF, ELSEWHERE, DONE = "brief", "elsewhere", "done"
ALWAYS = 10**9
_HEAD = {"ETag": '"e"', "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}


@dataclass(slots=True)
class Fault:
    method: str
    what: str
    times: int
    code: str = ""


class Proxy:
    """`seen` are the requests so far, as `METHOD key`; `given_up` is set when an answer was not waited for, or not read."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self.faults: list[Fault] = []
        self.seen: list[str] = []
        self.headers: deque[dict[str, str]] = deque(maxlen=100)
        self.given_up, self.held, self.release = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def fail(self, method: str, what: str, times: int = ALWAYS, code: str = "") -> None:
        self.faults.append(Fault(method, what, times, code))

    def heal(self) -> None:
        self.faults.clear()

    def count(self, method: str) -> int:
        return sum(line.startswith(method + " ") for line in self.seen)

    async def __aenter__(self) -> Proxy:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        self._runner = web.ServerRunner(web.Server(self._handle, handler_cancellation=True), shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._runner.cleanup()
        await self._session.close()

    def _due(self, method: str) -> Fault | None:
        for fault in self.faults:
            if fault.method == method and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        method = "LIST" if "list-type" in request.query else request.method
        self.seen.append(f"{method} {request.path.partition('/p/q/')[2]}")
        self.headers.append(dict(request.headers))
        body = await request.content.read()
        fault = self._due(method)
        what = fault.what if fault else ""
        if what.isdigit():
            text = f"<?xml version='1.0'?><Error><Code>{fault.code if fault else ''}</Code><Message>m</Message></Error>"
            return web.Response(status=int(what), text=text, content_type="application/xml")
        if what == AWAY:
            return _cut(request)
        if what == HANG:
            try:
                await asyncio.Event().wait()
            finally:
                self.given_up.set()
        if what == HOLD:
            self.held.set()
            await self.release.wait()
        if what in (ENDLESS, HUGE, ELSEWHERE):
            return await self._lie(request, what)
        status, headers, data = await self._forward(request, body, what)
        if what == DONE:
            self.held.set()
            await self.release.wait()
        if what in (LOST, DONE):
            return _cut(request)
        if what == BRIEF:
            data = data[:-1]
            headers["Content-Length"] = str(len(data))
        if what == FLIP:
            data = bytes([data[0] ^ 1]) + data[1:]
        answer = web.StreamResponse(status=status, headers=headers)
        await answer.prepare(request)
        await answer.write(data[: len(data) // 2] if what == SHORT else data)
        return _cut(request) if what == SHORT else answer

    async def _forward(self, request: web.BaseRequest, body: bytes, what: str) -> tuple[int, dict[str, str], bytes]:
        left_out = {CONDITIONS: "If-None-Match", RANGES: "Range"}.get(what, "Connection")
        sent = {name: value for name, value in request.headers.items() if name.lower() != left_out.lower()}
        url = URL(self._upstream + request.raw_path, encoded=True)  # type: ignore[attr-defined]
        async with self._session.request(request.method, url, data=body, headers=sent) as answer:
            data = await answer.read()
            kept = ("Content-Type", "Content-Length", "Content-Range", "ETag", "Last-Modified")
            return answer.status, {name: answer.headers[name] for name in kept if name in answer.headers}, data

    async def _lie(self, request: web.BaseRequest, what: str) -> web.StreamResponse:
        """Zeros: `ENDLESS` ones for the range, the right range of a `HUGE` object, or another range, from `ELSEWHERE`."""
        first, last = (int(part) for part in request.headers["Range"].removeprefix("bytes=").split("-"))
        size = 10**12 if what == HUGE else last + 1
        if what == ELSEWHERE:
            first, last, size = first + 1, last + 1, last + 2
        length = 10**12 if what == ENDLESS else last + 1 - first
        head = {**_HEAD, "Content-Range": f"bytes {first}-{last}/{size}", "Content-Length": str(length)}
        answer = web.StreamResponse(status=206, headers=head)
        await answer.prepare(request)
        try:
            for at in range(0, length, 65536):
                await answer.write(bytes(min(65536, length - at)))
        finally:
            self.given_up.set()
        return answer


def _cut(request: web.BaseRequest) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()

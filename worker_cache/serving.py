"""An agent as a mirror for others: its verified cache over HTTP, to be read only.

Promise: what is sent was hashed on the descriptor that it is sent from; a damaged entry is put aside and answered 404, as is
what is not cached: nobody makes this agent fetch. No listing, no other path, no other method. Whoever reaches the address and
knows a digest gets its bytes: that is why the setting is called unsafe.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from integrity.digests import Digest
from integrity.errors import DagsealError, SettingsError
from worker_cache.cache import Cache

AT_ONCE = 8  # each hashes first
PIECE_BYTES = 256 * 1024
SEND_SECONDS = 60.0  # for one piece
_RANGE = re.compile(r"bytes=([0-9]{1,16})-")


@asynccontextmanager
async def serving(cache: Cache, host: str, port: int) -> AsyncIterator[int]:
    """While inside, it is served; the port. Raises `SettingsError` for an address that cannot be had."""
    app = web.Application()
    app.router.add_get(r"/sha512/{two:[0-9a-f]{2}}/{hex:[0-9a-f]{128}}", _Answering(cache).answer)
    runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=1.0, handler_cancellation=True)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise SettingsError(f"mirrors.unsafe_serve_address {host}:{port}: {error.strerror}") from None
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


class _Answering:
    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._at_once = asyncio.Semaphore(AT_ONCE)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        digest = Digest(request.match_info["hex"])
        if not digest.hex.startswith(request.match_info["two"]):
            raise web.HTTPNotFound
        tag = f'"{digest}"'
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers={"ETag": tag})
        async with self._at_once:
            try:
                fd = await self._cache.open_held(digest)
            except DagsealError:
                raise web.HTTPNotFound from None
        try:
            return await _send(request, fd, tag)
        finally:
            os.close(fd)


async def _send(request: web.Request, fd: int, tag: str) -> web.StreamResponse:
    size, first = os.fstat(fd).st_size, 0
    made = web.StreamResponse(
        headers={"ETag": tag, "Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
    )
    if asked := _RANGE.fullmatch(request.headers.get("Range", "")):  # any other range is answered whole
        first = int(asked[1])
        if first >= size:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
        made.set_status(206)
        made.headers["Content-Range"] = f"bytes {first}-{size - 1}/{size}"
    made.content_length = size - first
    await made.prepare(request)
    while piece := os.pread(fd, PIECE_BYTES, first):
        async with asyncio.timeout(SEND_SECONDS):
            await made.write(piece)
        first += len(piece)
    return made

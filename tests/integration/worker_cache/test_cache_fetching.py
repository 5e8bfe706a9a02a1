"""The cache over real HTTP: one fetch for many, and nothing wrong, short or endless ever gets a name."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from agent_peers import raw_server
from aiohttp import web

from integrity.digests import Digest
from integrity.errors import DigestMismatchError, FetchError, SecurityError
from worker_cache import fsck
from worker_cache.cache import Cache
from worker_cache.client import Client
from worker_cache.problems import RequestError
from worker_cache.store import Store
from worker_cache.transport import Transport

DATA = random.Random(1).randbytes(700_000)
DIGEST = Digest.of(DATA)


@asynccontextmanager
async def cache_of(folder: Path, url: str) -> AsyncIterator[Cache]:
    store = Store.open(str(folder / "cache"))
    try:
        async with Transport(url, "tok") as transport:
            cache = Cache(store, Client(transport).blob, max_blob_bytes=1024 * 1024)
            yield cache
            await cache.close()
    finally:
        store.close()
        report = fsck.check(str(folder / "cache"))
        assert report.findings == ()


class Blobs:
    """A server of one blob that can be held back."""

    def __init__(self) -> None:
        self.requests = 0
        self.go = asyncio.Event()
        self.go.set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        assert request.match_info["hex"] == DIGEST.hex
        await self.go.wait()
        return web.Response(body=DATA)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_get("/v1/blobs/sha512/{hex}", self.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        await runner.cleanup()


async def test_sixteen_waiters_one_fetch(tmp_path: Path) -> None:
    blobs = Blobs()
    blobs.go.clear()
    async with blobs.serving() as url, cache_of(tmp_path, url) as cache:
        waiters = [asyncio.create_task(cache.open(DIGEST, size=len(DATA))) for _ in range(16)]
        while blobs.requests == 0:
            await asyncio.sleep(0)
        blobs.go.set()
        fds = await asyncio.gather(*waiters)
        assert blobs.requests == 1
        for fd in fds:
            assert os.pread(fd, len(DATA) + 1, 0) == DATA
            os.close(fd)
        os.close(await cache.open(DIGEST, size=len(DATA)))
        assert blobs.requests == 1


async def test_a_waiter_that_goes_away_takes_nobodys_fetch_with_it(tmp_path: Path) -> None:
    blobs = Blobs()
    blobs.go.clear()
    async with blobs.serving() as url, cache_of(tmp_path, url) as cache:
        first, second = (asyncio.create_task(cache.open(DIGEST, size=len(DATA))) for _ in range(2))
        while blobs.requests == 0:
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        blobs.go.set()
        os.close(await second)
        assert blobs.requests == 1


async def test_an_archive_over_the_limit_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    blobs = Blobs()
    async with blobs.serving() as url, cache_of(tmp_path, url) as cache:
        with pytest.raises(SecurityError, match="max_blob_mib"):
            await cache.open(DIGEST, size=2 * 1024 * 1024)
        assert blobs.requests == 0


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def sized(announced: int, body: bytes) -> bytes:
    return OK + f"Content-Length: {announced}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("answer", "endless", "kind"),
    [
        (sized(len(DATA), DATA[:1000]), b"", FetchError),
        (sized(1000, DATA[:1000]), b"", FetchError),
        (sized(len(DATA) + 1, DATA + b"x"), b"", FetchError),
        (sized(len(DATA), DATA[:-1] + bytes([DATA[-1] ^ 1])), b"", DigestMismatchError),
        (sized(0, b""), b"", FetchError),
        (CHUNKED + b"5\r\nhello\r\n", b"", FetchError),
        (CHUNKED, b"10000\r\n" + b"x" * 0x10000 + b"\r\n", FetchError),
        (sized(10**12, b""), b"x" * 65536, FetchError),
        (b"", b"", FetchError),
        (b"nonsense\r\n\r\n", b"", FetchError),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n", b"", RequestError),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", b"", FetchError),
        (b"HTTP/1.1 500 Oops\r\nContent-Type: application/problem+json\r\n\r\n", b"x" * 65536, FetchError),
    ],
)
async def test_a_bad_answer_is_never_cached(
    tmp_path: Path, answer: bytes, endless: bytes, kind: type[Exception]
) -> None:
    async with raw_server(answer, endless=endless) as url, cache_of(tmp_path, url) as cache:
        with pytest.raises(kind):
            await cache.open(DIGEST, size=len(DATA))
    assert not list((tmp_path / "cache" / "sha512").rglob("*"))


async def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    async with cache_of(tmp_path, "http://127.0.0.1:1") as cache:
        with pytest.raises(FetchError, match="cannot be reached"):
            await cache.open(DIGEST, size=len(DATA))

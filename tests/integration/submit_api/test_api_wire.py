"""The HTTP layer itself: sizes, codings, deadlines, broken bodies, and paths that are none."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from api_rig import SOURCE, Answer, Api

SMALL = {
    "max_archive_bytes": 4096,
    "head_seconds": 0.3,
    "idle_seconds": 0.6,
    "body_window_seconds": 0.3,
    "body_min_bytes_per_second": 1000,
    "lingering_seconds": 0,
}


@pytest.fixture
async def small(folder: str) -> AsyncIterator[Api]:
    async with Api(folder, limits=SMALL) as running:
        yield running


async def raw(api: Api, *parts: bytes, eof: bool = False, seconds: float = 10) -> bytes:
    """Send these bytes as they are, and read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.listener.port)
    for part in parts:
        writer.write(part)
        await writer.drain()
    if eof:
        writer.write_eof()
    try:
        return await asyncio.wait_for(reader.read(), seconds)
    finally:
        writer.close()


def head(api: Api, *lines: str, path: str = "/v1/archives/etl.py", token: str | None = None) -> bytes:
    given = ["PUT " + path + " HTTP/1.1", "Host: x", f"Authorization: Bearer {token or api.admin}", *lines]
    return "\r\n".join([*given, "", ""]).encode()


async def nothing_left(api: Api) -> None:
    assert await api.remains() == ([], [])


async def test_content_length_over_the_cap_is_refused_before_the_body(small: Api) -> None:
    answer = await raw(small, head(small, "Content-Length: 4097", "Connection: close"))
    assert answer.startswith(b"HTTP/1.1 413") and b"problems/too-large" in answer
    await nothing_left(small)


async def test_a_chunked_body_over_the_cap_is_refused(small: Api) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"#" * 1024

    answer = await small.call("PUT", "/v1/archives/etl.py", token=small.admin, body=body())
    assert (answer.status, answer.slug) == (413, "too-large")
    await nothing_left(small)


async def test_a_chunked_body_under_the_cap_is_fine(small: Api) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield SOURCE[:10]
        yield SOURCE[10:]

    assert (await small.call("PUT", "/v1/archives/etl.py", token=small.admin, body=body())).status == 201


async def test_a_source_over_its_own_limit_is_413(api: Api) -> None:
    answer = await api.push("etl.py", b"#" + b"x" * 1000 + b"\n" + b"x = 1\n" * 400_000)
    assert (answer.status, answer.json["errors"][0]["rule"]) == (413, "source-too-large")
    await nothing_left(api)


async def test_a_coded_body_is_415(small: Api) -> None:
    answer = await small.push("etl.py", gzip.compress(SOURCE), Content_Encoding="gzip")
    assert (answer.status, answer.slug) == (415, "content-encoding")
    assert answer.headers["Accept-Encoding"] == "identity"
    await nothing_left(small)


async def test_no_length_is_411(small: Api) -> None:
    answer = await raw(small, head(small, "Connection: close"))
    assert answer.startswith(b"HTTP/1.1 411") and b"problems/length-required" in answer
    await nothing_left(small)


async def test_a_truncated_body_leaves_nothing(small: Api) -> None:
    await raw(small, head(small, f"Content-Length: {len(SOURCE)}"), SOURCE[:20], eof=True)
    await raw(small, head(small, "Transfer-Encoding: chunked"), b"20\r\nabc", eof=True)
    async with asyncio.timeout(10):  # the connection is gone before the handler has noticed and recorded it
        while [event["verdict"] for event in await small.events()].count("refused") < 2:
            pass
    await nothing_left(small)


async def test_a_client_that_goes_away_while_it_is_described_leaves_a_whole_release_or_nothing(api: Api) -> None:
    api.launcher.hold.clear()
    _, writer = await asyncio.open_connection("127.0.0.1", api.listener.port)
    writer.write(head(api, f"Content-Length: {len(SOURCE)}") + SOURCE)
    while not api.launcher.seen:
        await asyncio.sleep(0)
    writer.close()
    api.launcher.hold.set()
    async with asyncio.timeout(10):
        # The blob has its name a moment before the transaction is committed.
        while any(name.startswith(".tmp-") for name in api.files()) or await api.fsck():
            await asyncio.sleep(0)


async def test_a_slow_body_is_408(small: Api) -> None:
    started = time.monotonic()
    answer = await raw(small, head(small, "Content-Length: 100"), b"x")
    assert answer.startswith(b"HTTP/1.1 408") and b"problems/slow-body" in answer
    assert time.monotonic() - started < 5
    await nothing_left(small)


async def test_a_slow_head_is_408_and_an_idle_connection_is_closed(small: Api) -> None:
    assert (await raw(small, b"GET /healthz HTTP/1.1\r\nHos")).startswith(b"HTTP/1.1 408")
    assert (await raw(small)).startswith(b"HTTP/1.1 408")
    answer = await raw(small, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200") and answer.count(b"HTTP/1.1") == 1
    second = await raw(small, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HT")
    assert second.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_a_400_problem(small: Api, request_bytes: bytes) -> None:
    answer = await raw(small, request_bytes)
    assert answer.split(b" ")[1] == b"400" and b"application/problem+json" in answer


async def test_a_head_that_is_too_large_is_431(small: Api) -> None:
    answer = await raw(small, b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 20000 + b"\r\n\r\n")
    assert answer.split(b" ")[1] == b"431" and b"problems/head-too-large" in answer


async def test_100_continue_is_sent_only_to_who_may_go_on(small: Api) -> None:
    expecting = (f"Content-Length: {len(SOURCE)}", "Expect: 100-continue", "Connection: close")
    refused = await raw(small, head(small, *expecting, token="dgs_x"))
    assert refused.startswith(b"HTTP/1.1 401")
    too_long = await raw(small, head(small, "Content-Length: 9999", *expecting[1:]))
    assert too_long.startswith(b"HTTP/1.1 413")
    unknown = await raw(small, head(small, "Content-Length: 1", "Expect: cake", "Connection: close"))
    assert unknown.startswith(b"HTTP/1.1 417")
    reader, writer = await asyncio.open_connection("127.0.0.1", small.listener.port)
    writer.write(head(small, *expecting))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(SOURCE)
    assert (await reader.read()).startswith(b"HTTP/1.1 201")
    writer.close()


async def test_unknown_paths_methods_and_json(api: Api) -> None:
    assert (await api.call("GET", "/v2")).slug == "unknown-path"
    method = await api.call("PATCH", "/v1/launches", token=api.admin)
    assert (method.status, method.slug, method.headers["Allow"]) == (405, "method-not-allowed", "GET, HEAD, POST")

    async def post(**sent: Any) -> Answer:
        return await api.call("POST", "/v1/launches", token=api.admin, **sent)

    headers = {"Content-Type": "application/json"}
    assert (await post(body=b"{", headers=headers)).slug == "invalid-request"
    assert (await post(body=b"<x/>", headers={"Content-Type": "text/xml"})).slug == "unsupported-media-type"
    for path in ("launches?limit=1001", "launches?state=gone", "launches/0?wait_seconds=1", "audit?after=x"):
        assert (await api.call("GET", f"/v1/{path}", token=api.admin)).status in (400, 422)


async def test_a_bug_answers_500_and_tells_nothing(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    from sqlalchemy import text

    await api.push("etl.py", SOURCE)
    async with api.service.database.write() as tx:
        await tx.session.execute(text("UPDATE archives SET latest = 7"))
    answer = await api.call("GET", "/v1/archives/etl.py", token=api.admin)
    assert (answer.status, answer.slug) == (500, "internal")
    assert b"latest" not in answer.body and answer.headers["Dagseal-Request-Id"]
    assert "unexpected" in capsys.readouterr().out


async def test_health_metrics_and_descriptions_need_no_token(api: Api) -> None:
    assert (await api.call("GET", "/healthz")).json == {"status": "ok"}
    ready = await api.call("GET", "/readyz")
    assert ready.json == {"status": "ok", "checks": {"database": "ok", "blobs": "ok", "signing_key": "ok"}}
    metrics = await api.call("GET", "/metrics")
    assert b'dagseal_http_requests_total{method="GET",route="/healthz",status="200"} 1.0' in metrics.body
    docs = await api.call("GET", "/docs")
    assert docs.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'self'")
    assert b"/v1/archives/{name}" in docs.body and b"<script" not in docs.body and b"http://" not in docs.body
    assert b"https://" not in docs.body.replace(b"https://dagseal.dev", b"")
    assert (await api.call("GET", "/docs/docs.css")).headers["Content-Type"].startswith("text/css")


async def test_readyz_says_what_fails(api: Api) -> None:
    from sqlalchemy import text

    async with api.service.database.write() as tx:
        await tx.session.execute(text("ALTER TABLE archives RENAME TO gone"))
    answer = await api.call("GET", "/readyz")
    assert answer.status == 503
    assert answer.json["checks"]["database"] in ("cannot be read: OperationalError", "cannot be read: ProgrammingError")


async def test_every_answer_has_the_headers_that_browsers_heed(api: Api) -> None:
    for answer in (await api.call("GET", "/healthz"), await api.call("GET", "/nothing")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"

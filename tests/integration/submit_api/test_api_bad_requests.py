"""Rows 63 to 84 of `docs/bad-uploads.md`: what is wrong with a request, written byte by byte, against the real server.

A row: its number, the case, what is sent, and the answer: status and last part of the problem's type (empty where the answer
has no body). After each the service has stored nothing, has no temporary file and no descriptor of one.

Seen to fail when weakened: `check_head` without its rule for forms; `_check_newest` without `If-None-Match`;
`Admission.uploading` that counts nothing; `SlowBodyError` that is never raised.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from api_rig import SOURCE, Api

from integrity.digests import Digest

pytestmark = pytest.mark.sqlite  # what is tried comes before any database

LIMITS = {
    "max_archive_bytes": 4096,
    "head_seconds": 0.4,
    "idle_seconds": 0.6,
    "body_window_seconds": 0.3,
    "body_min_bytes_per_second": 1000,
    "lingering_seconds": 0,
    "max_uploads_per_principal": 2,
}
PUT = "PUT /v1/archives/etl.py HTTP/1.1"
LENGTH = f"Content-Length: {len(SOURCE)}"
CLOSE = "Connection: close"
AUTHORISED = "Authorization: Bearer {admin}"
BOMB = gzip.compress(bytes(1 << 20))
FORM = b'--b\r\nContent-Disposition: form-data; name="file"; filename="../../x"\r\n\r\nx\r\n'


@dataclass(frozen=True, slots=True)
class Row:
    """`lines` is the head without its last empty line; `{admin}` stands for a token."""

    row: int
    case: str
    lines: tuple[str, ...]
    body: bytes
    status: int
    problem: str
    header: str = ""
    ends: bool = False


def put(*lines: str) -> tuple[str, ...]:
    return (PUT, "Host: x", AUTHORISED, CLOSE, *lines)


def get(*lines: str) -> tuple[str, ...]:
    return ("GET /healthz HTTP/1.1", "Host: x", *lines)


ROWS = (
    Row(63, "wrong digest", put(LENGTH, f"Repr-Digest: {Digest.of(b'').repr_digest}"), SOURCE, 422, "digest-mismatch"),
    Row(63, "digest that is none", put(LENGTH, "Repr-Digest: sha-512=:AAAA:"), SOURCE, 400, "malformed"),
    Row(63, "other algorithm", put(LENGTH, "Repr-Digest: sha-256=:AAAA:"), SOURCE, 400, "digest-algorithm",
        "Want-Repr-Digest: sha-512=10"),
    Row(64, "gzip bomb", put("Content-Encoding: gzip", f"Content-Length: {len(BOMB)}"), BOMB, 415,
        "content-encoding", "Accept-Encoding: identity"),
    Row(65, "no gzip", put(LENGTH, "Content-Encoding: gzip"), SOURCE, 415, "content-encoding"),
    Row(65, "two codings", put(LENGTH, "Content-Encoding: identity, gzip"), SOURCE, 415, "content-encoding"),
    Row(66, "length over the cap", put("Content-Length: 5242880"), b"", 413, "too-large"),
    Row(66, "chunks over the cap", put("Transfer-Encoding: chunked"), b"1001\r\n" + b"#" * 4097 + b"\r\n0\r\n\r\n", 413,
        "too-large"),
    Row(67, "no length", put(), b"", 411, "length-required"),
    Row(68, "cut body", put(LENGTH), SOURCE[:20], 0, "", ends=True),
    Row(68, "cut chunk", put("Transfer-Encoding: chunked"), b"20\r\nabc", 0, "", ends=True),
    Row(70, "length and chunks", put(LENGTH, "Transfer-Encoding: chunked"), b"0\r\n\r\n", 400, "bad-request"),
    Row(70, "two lengths", put(LENGTH, "Content-Length: 3"), SOURCE, 400, "bad-request"),
    Row(70, "length -1", put("Content-Length: -1"), b"", 400, "bad-request"),
    Row(70, "length +3", put("Content-Length: +3"), b"abc", 400, "bad-request"),
    Row(70, "length 3_0", put("Content-Length: 3_0"), b"abc", 400, "bad-request"),
    Row(70, "length 0x3", put("Content-Length: 0x3"), b"abc", 400, "bad-request"),
    Row(70, "no chunk size", put("Transfer-Encoding: chunked"), b"zz\r\nabc\r\n", 400, "bad-request"),
    Row(70, "unknown coding", put("Transfer-Encoding: cake"), b"", 400, "bad-request"),
    Row(70, "folded header", get("A: b", " c"), b"", 400, "bad-request"),
    Row(70, "space before colon", get("A : b"), b"", 400, "bad-request"),
    Row(70, "NUL in a header", get("A: \0"), b"", 400, "bad-request"),
    Row(70, "bare CR in a header", get("A: b\rc"), b"", 400, "bad-request"),
    Row(70, "no Host", ("GET /healthz HTTP/1.1", "A: b"), b"", 400, "bad-request"),
    Row(70, "two Hosts", get("Host: y"), b"", 400, "bad-request"),
    Row(70, "no HTTP", ("nonsense",), b"", 400, "bad-request"),
    Row(71, "large head", get("A: " + "a" * 100_000), b"", 431, "head-too-large"),
    Row(72, "half a head", ("GET /healthz HTTP/1.1\r\nHos",), b"", 408, ""),
    Row(72, "a byte of a body", put("Content-Length: 100"), b"x", 408, "slow-body"),
    Row(73, "100-continue, no token", (PUT, "Host: x", CLOSE, LENGTH, "Expect: 100-continue"), b"", 401, "unauthenticated",
        'WWW-Authenticate: Bearer realm="dagseal"'),
    Row(73, "100-continue, too large", put("Content-Length: 9999", "Expect: 100-continue"), b"", 413, "too-large"),
    Row(73, "100-continue, bad digest", put(LENGTH, "Expect: 100-continue", "Repr-Digest: x"), b"", 400, "digest-algorithm"),
    Row(73, "100-continue, stale", put(LENGTH, "Expect: 100-continue", 'If-Match: "x"'), b"", 412, "precondition"),
    Row(74, "other expectation", put(LENGTH, "Expect: cake"), b"", 417, "expectation-failed"),
    Row(75, "form without its end", put(f"Content-Length: {len(FORM)}", "Content-Type: multipart/form-data; boundary=b"),
        FORM, 415, "unsupported-media-type"),
    Row(75, "form without boundary", put(f"Content-Length: {len(FORM)}", "Content-Type: multipart/form-data"), FORM, 415,
        "unsupported-media-type"),
    Row(76, "form with ../../x", put(f"Content-Length: {len(FORM) + 5}", "Content-Type: Multipart/Mixed; boundary=b"),
        FORM + b"--b--", 415, "unsupported-media-type"),
    Row(80, "token that is none", (PUT, "Host: x", CLOSE, LENGTH, "Authorization: Bearer dgs_x"), SOURCE, 401,
        "unauthenticated", 'WWW-Authenticate: Bearer realm="dagseal"'),
    Row(80, "alg none", (PUT, "Host: x", CLOSE, LENGTH, "Authorization: Bearer eyJhbGciOiJub25lIn0.e30."), SOURCE, 401,
        "unauthenticated"),
    Row(80, "no scheme", (PUT, "Host: x", CLOSE, LENGTH, "Authorization: {admin}"), SOURCE, 401, "unauthenticated"),
)  # fmt: skip


@pytest.fixture
async def small(folder: str) -> AsyncIterator[Api]:
    async with Api(folder, limits=LIMITS) as running:
        yield running


async def raw(api: Api, lines: tuple[str, ...], body: bytes, *, ends: bool = False) -> tuple[int, bytes, bytes]:
    """Status, head and body of the answer, read until the server closes; status 0 when there is none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.listener.port)
    joined = "\r\n".join(lines).replace("{admin}", api.admin)
    unfinished = lines[-1].endswith("Hos")
    writer.write(joined.encode("latin-1") + (b"" if unfinished else b"\r\n\r\n") + body)
    if ends:
        writer.write_eof()
    try:
        answer = await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:  # it had not read what we sent, and is done with us
        answer = b""
    writer.close()
    head, _, rest = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]) if head else 0, head, rest


def open_blobs(api: Api) -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            continue
    return [target for target in found if target.startswith(api.settings.blobs_folder + "/")]


async def nothing_is_left(api: Api) -> None:
    async with asyncio.timeout(10):  # who goes away is noticed a moment later
        while any(name.startswith(".tmp-") for name in api.files()):
            await asyncio.sleep(0)
    assert await api.remains() == ([], []) and open_blobs(api) == [] and await api.fsck() == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.row}-{row.case}".replace(" ", "-"))
async def test_row(small: Api, row: Row) -> None:
    status, head, body = await raw(small, row.lines, row.body, ends=row.ends)
    assert status == row.status, (head, body)
    if row.problem:
        assert b"content-type: application/problem+json" in head.lower()
        problem = json.loads(body)
        assert (problem["type"], problem["status"]) == (f"https://dagseal.dev/problems/{row.problem}", status)
    assert row.header.lower().encode() in head.lower()
    assert b"100 Continue" not in head
    await nothing_is_left(small)


async def test_69_a_body_longer_than_its_length(small: Api) -> None:
    """What follows is no second request: 400, closed, and nothing of what came with it is done."""
    head = ("PUT /v1/archives/etl.py HTTP/1.1", "Host: x", AUTHORISED, "Content-Length: 10")
    status, _, body = await raw(small, head, SOURCE)
    assert status == 400 and json.loads(body)["type"].endswith("/bad-request")
    await nothing_is_left(small)
    # And when it comes after the answer to what was declared, which is not the file, as its digest shows.
    reader, writer = await asyncio.open_connection("127.0.0.1", small.listener.port)
    digest = f"Repr-Digest: {Digest.of(SOURCE).repr_digest}"
    writer.write("\r\n".join((*head, digest, "", "")).replace("{admin}", small.admin).encode() + SOURCE[:10])
    assert (await reader.readuntil(b"send it again")).startswith(b"HTTP/1.1 422 ")
    writer.write(SOURCE[10:])
    rest = await asyncio.wait_for(reader.read(), 10)
    assert b"HTTP/1.1 400" in rest or b"HTTP/1.0 400" in rest
    writer.close()
    await nothing_is_left(small)


async def test_72_an_idle_connection_is_closed(small: Api) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", small.listener.port)
    assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 408")
    writer.close()


async def test_77_and_78_preconditions(small: Api) -> None:
    assert (await small.push("etl.py", SOURCE, If_None_Match="*")).status == 201
    digest = (await small.call("GET", "/v1/archives/etl.py", token=small.admin)).json["digest"]
    for headers in ({"If_Match": '"sha512:0"'}, {"If_None_Match": "*"}, {"If_None_Match": f'"a", "{digest}"'}):
        answer = await small.push("etl.py", SOURCE + b"#\n", **headers)
        assert (answer.status, answer.slug) == (412, "precondition")
        assert digest in answer.json["detail"], "with what is there now"
    assert (await small.push("etl.py", SOURCE)).status == 200, "the same bytes again"
    assert (await small.push("etl.py", SOURCE + b"#\n", If_Match=f'"{digest}"')).json["number"] == 2
    assert (await small.push("etl.py", SOURCE + b"##\n")).json["number"] == 3, "If-Match is the caller's choice"
    assert (await small.push("etl.py", SOURCE + b"###\n", If_None_Match=f'"{digest}"')).json["number"] == 4
    assert [finding.rule for finding in await small.fsck()] == []


async def test_79_not_its_owner(small: Api) -> None:
    alice, bob = await small.token("alice"), await small.token("bob")
    assert (await small.push("etl.py", SOURCE, token=alice)).status == 201
    answer = await small.push("etl.py", SOURCE + b"#\n", token=bob)
    assert (answer.status, answer.slug) == (403, "not-owner")
    assert await small.remains() == (small.files(), ["etl.py@1"]) and len(small.files()) == 1


async def test_80_an_expired_token(small: Api) -> None:
    body = {"principal": "carol", "expires_at": small.clock.at + 1_000_000}
    token = (await small.call("POST", "/v1/tokens", token=small.admin, json=body)).json["token"]
    small.clock.forward(2)
    answer = await small.push("etl.py", SOURCE, token=token)
    assert (answer.status, answer.slug) == (401, "unauthenticated")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="dagseal"'
    await nothing_is_left(small)


async def test_81_too_many_at_once(small: Api) -> None:
    """The limit is each principal's own, and what has ended makes room. (A full disk: `tests/faults/test_f03_disk_full.py`.)"""
    alice = await small.token("alice")
    small.launcher.hold.clear()
    pushes = [asyncio.create_task(small.push(f"a{number}.py", SOURCE)) for number in range(2)]
    async with asyncio.timeout(10):
        while len(small.launcher.seen) < 2:
            await asyncio.sleep(0)
    answer = await asyncio.wait_for(small.push("etl.py", SOURCE), 10)
    assert (answer.status, answer.slug, answer.headers["Retry-After"]) == (429, "too-many-uploads", "5")
    other = asyncio.create_task(small.push("b.py", SOURCE, token=alice))
    async with asyncio.timeout(10):
        while len(small.launcher.seen) < 3:
            await asyncio.sleep(0)
    small.launcher.hold.set()
    assert [answer.status for answer in await asyncio.gather(*pushes, other)] == [201] * 3
    assert (await small.push("etl.py", SOURCE)).status == 201
    refused = [event for event in await small.events() if event["verdict"] == "refused"]
    assert [(event["object"], event["detail"][:17]) for event in refused] == [("archive:etl.py", "too-many-uploads:")]


async def test_82_a_damaged_blob_is_put_back(small: Api) -> None:
    await small.push("etl.py", SOURCE)
    with open(f"{small.settings.blobs_folder}/{small.files()[0]}", "r+b") as file:
        file.write(b"X")
    assert (await small.push("etl.py", SOURCE)).status == 200, "it is the release that was there"
    assert await small.fsck() == [] and "blob.repair" in [event["action"] for event in await small.events()]


async def test_83_older_bytes_are_a_new_release_with_a_new_number(small: Api) -> None:
    for number, tail in enumerate((b"", b"#\n", b""), 1):
        answer = await small.push("etl.py", SOURCE + tail)
        assert (answer.status, answer.json["number"]) == (201, number)
    events = [event for event in await small.events() if event["action"] == "archive.submit"]
    assert events[0]["digest"] == events[2]["digest"] == str(Digest.of(SOURCE)), "which the audit log shows"


@pytest.mark.parametrize("wanted", ["bytes=999999-", "bytes=9-3", "bytes=-", "bytes=0-1,3-4", "pages=1-2"])
async def test_84_ranges(small: Api, wanted: str) -> None:
    await small.push("etl.py", SOURCE)
    answer = await small.call(
        "GET", f"/v1/blobs/sha512/{Digest.of(SOURCE).hex}", token=small.admin, headers={"Range": wanted}
    )
    assert (answer.status, answer.slug) == (416, "range-not-satisfiable")


def test_every_row_is_here() -> None:
    tests = [name for name in globals() if name.startswith("test_") and name[5:7].isdigit()]
    rows = {row.row for row in ROWS} | {int(part) for name in tests for part in name.split("_") if part.isdigit()}
    assert rows == set(range(63, 85))

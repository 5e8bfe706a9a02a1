"""The agents' poll: answered beside the application as by it, and only where nobody could read it otherwise.

Seen to fail when weakened: `_is_idle` without one of its conditions; `_FIELD` that lets a field of the message pass; `at_hand`
without the commit, or without the second; a poll that is not counted, or does not keep its connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from api_rig import SOURCE, Api

from submit_api.polling import Polls
from submit_api.registry.database import SQLITE
from submit_api.server import Connection
from vocabulary import checkpoints

POLL = b"GET /v1/log/checkpoint HTTP/1.1\r\nHost: x\r\nAccept-Encoding: identity\r\n\r\n"
OTHER = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was answered beside the application."""
    found: list[bytes] = []
    genuine = Polls.answer

    def answer(self: Polls, data: bytes) -> bytes | None:
        made = genuine(self, data)
        if made is not None:
            found.append(data)
        return made

    monkeypatch.setattr(Polls, "answer", answer)
    return found


@pytest.fixture
async def wire(api: Api) -> AsyncIterator[Wire]:
    wire = Wire(*await asyncio.open_connection("127.0.0.1", api.listener.port))
    yield wire
    wire.writer.close()


class Wire:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, data: bytes) -> tuple[dict[str, str], bytes]:
        self.writer.write(data)
        return await self.answer()

    async def answer(self) -> tuple[dict[str, str], bytes]:
        async with asyncio.timeout(10):
            status, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
            fields = {"": status, **dict(line.split(": ", 1) for line in lines)}
            return fields, await self.reader.readexactly(int(fields["Content-Length"]))


async def size_of(api: Api, note: bytes) -> int:
    return checkpoints.verify(note, [api.service.keys.signing.public]).checkpoint.size


async def test_the_answer_is_the_applications(api: Api, wire: Wire, quick: list[bytes]) -> None:
    """The first one of a connection always goes through it."""
    slow, note = await wire.ask(POLL)
    assert quick == []
    beside, same = await wire.ask(POLL)
    assert quick == [POLL]
    assert same == note
    for fields in (slow, beside):
        assert len(fields.pop("Dagseal-Request-Id")) == 16
        assert fields.pop("Date").endswith(" GMT")
    assert slow.pop("Server")
    assert beside == slow


async def test_what_was_committed_is_in_the_next_answer(api: Api, wire: Wire, quick: list[bytes]) -> None:
    await wire.ask(POLL)
    before = await size_of(api, (await wire.ask(POLL))[1])
    assert (await api.push("etl.py", SOURCE)).status == 201
    after = await wire.ask(POLL)
    assert await size_of(api, after[1]) > before
    api.clock.at += 1_000_000
    later = (await wire.ask(POLL))[1]
    assert checkpoints.verify(later, [api.service.keys.signing.public]).checkpoint.time == api.clock.at // 1_000_000
    assert later != after[1]
    # Another process may write to PostgreSQL: it is asked when its word is of an earlier second, or from before a commit.
    assert len(quick) == (3 if api.service.database.kind == SQLITE else 1)


NOT_PLAIN = {
    "another path": POLL.replace(b"checkpoint", b"keys"),
    "a query": POLL.replace(b"checkpoint", b"checkpoint?a"),
    "another method": POLL.replace(b"GET", b"HEAD"),
    "a body": POLL[:-2] + b"Content-Length: 0\r\n\r\n",
    "a body, in small letters": POLL[:-2] + b"content-length: 0\r\n\r\n",
    "chunks": POLL[:-2] + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "the end of the connection": POLL[:-2] + b"Connection: close\r\n\r\n",
    "an upgrade": POLL[:-2] + b"Upgrade: h2c\r\n\r\n",
    "an expectation": POLL[:-2] + b"Expect: 100-continue\r\n\r\n",
    "two at once": POLL * 2,
    "the next one's beginning": POLL + b"G",
    "newlines alone": POLL.replace(b"\r\n", b"\n"),
    "a folded field": POLL[:-2] + b"A: b\r\n c\r\n\r\n",
    "no host": POLL.replace(b"Host: x\r\n", b""),
    "a host in another field": POLL.replace(b"Host: x\r\n", b"A: host: x\r\n"),
    "a space before the colon": POLL[:-2] + b"Content-Length : 5\r\n\r\n",
    "an old version": POLL.replace(b"1.1", b"1.0"),
    "a long head": POLL[:-2] + b"A: b\r\n" * 700 + b"\r\n",
}


@pytest.mark.parametrize("name", NOT_PLAIN)
async def test_anything_else_goes_the_way_of_all_requests(api: Api, wire: Wire, quick: list[bytes], name: str) -> None:
    await wire.ask(POLL)
    wire.writer.write(NOT_PLAIN[name])
    wire.writer.write_eof()
    async with asyncio.timeout(10):
        await wire.reader.read(1)
    assert quick == []


async def test_a_head_in_two_pieces_is_one_request(api: Api, wire: Wire, quick: list[bytes]) -> None:
    """Also when the second looks like a whole one."""
    await wire.ask(POLL)
    wire.writer.write(b"GET /healthz HTTP/1.1\r\nX: ")
    await api.call("GET", "/healthz")  # until the first is there
    assert (await wire.ask(POLL))[1] == b'{"status":"ok"}'
    assert quick == []


async def test_while_another_is_answered_it_waits(api: Api, wire: Wire, quick: list[bytes]) -> None:
    """Answers come in the order of the questions."""
    await wire.ask(POLL)
    api.launcher.hold.clear()
    put = f"PUT /v1/archives/etl.py HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.admin}\r\n"
    wire.writer.write(put.encode() + b"Content-Length: %d\r\n\r\n" % len(SOURCE) + SOURCE)
    while not api.launcher.seen:
        await asyncio.sleep(0)
    wire.writer.write(POLL)
    await api.call("GET", "/healthz")
    api.launcher.hold.set()
    first, second = await wire.answer(), await wire.answer()
    assert first[0][""] == "HTTP/1.1 201 Created" and second[1].startswith(b"dagseal.dev/log/")
    assert quick == []


async def test_it_is_counted(api: Api, wire: Wire, quick: list[bytes]) -> None:
    for _ in range(3):
        await wire.ask(POLL)
    metrics = (await api.call("GET", "/metrics")).body
    labels = b'{method="GET",route="/v1/log/checkpoint",status="200"} 3.0'
    assert b"dagseal_http_requests_total" + labels in metrics
    assert b'dagseal_http_request_seconds_count{method="GET",route="/v1/log/checkpoint"} 3.0' in metrics
    assert len(quick) == 2


async def test_a_connection_that_polls_is_not_idle(
    folder: str, quick: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    genuine = Connection.connection_made

    def made(self: Connection, transport: asyncio.BaseTransport) -> None:
        kept.append(self)
        genuine(self, transport)

    monkeypatch.setattr(Connection, "connection_made", made)
    async with Api(folder) as api:
        wire = Wire(*await asyncio.open_connection("127.0.0.1", api.listener.port))
        await wire.ask(POLL)
        (connection,) = kept
        due = connection._next_keepalive_close_time = 0.0
        await wire.ask(POLL)
        assert len(quick) == 1 and connection._next_keepalive_close_time > due
        connection.pause_writing()
        wire.writer.write(POLL)
        await api.call("GET", "/healthz")
        assert len(quick) == 1, "who does not take its answers gets no more of them"
        connection.resume_writing()
        await wire.answer()
        wire.writer.close()

"""A server of blobs that does what it is told, byte by byte: honest, or cut, slow, wrong, endless, redirecting.

It speaks HTTP/1.1 by hand, so that it can break every promise of it. A script takes a request and gives the pieces of its
answer; the connection is closed after them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from integrity.digests import Digest
from vocabulary import blobframes


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def hex(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def start(self) -> int:
        """Of the range that is asked for, or 0."""
        return int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))

    @property
    def digests(self) -> list[Digest]:
        return [Digest.parse(text) for text in json.loads(self.body)["digests"]]


class Hold:
    """In the place of a piece: the answer waits here."""

    def __init__(self) -> None:
        self.reached, self.go = asyncio.Event(), asyncio.Event()


class Endless:
    """In the place of a piece: this, again and again, until the other side has enough."""

    def __init__(self, piece: bytes) -> None:
        self.piece = piece


Piece = bytes | Hold | Endless
Script = Callable[[Asked], Iterable[Piece]]


def status(line: str, *headers: str, body: bytes = b"") -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {line}", *headers, "Connection: close", "", ""])
    return head.encode() + body


def sized(body: bytes, *, of: int | None = None) -> bytes:
    """200 with this body, and a length that may be a lie."""
    return status("200 OK", f"Content-Length: {len(body) if of is None else of}", body=body)


def part(data: bytes, start: int, *, upto: int | None = None) -> bytes:
    """206 with the rest from `start`, of which only what is before `upto` comes."""
    return status(
        "206 Partial Content",
        f"Content-Range: bytes {start}-{len(data) - 1}/{len(data)}",
        f"Content-Length: {len(data) - start}",
        body=data[start:upto],
    )


MISSING = status("404 Not Found", "Content-Length: 0")


class Blobs:
    """Honest: by both layouts, by ranges, and in batches."""

    def __init__(self, *bodies: bytes) -> None:
        self.held = {Digest.of(body).hex: body for body in bodies}

    def __call__(self, asked: Asked) -> Iterable[Piece]:
        if asked.path == "/v1/blobs/batch":
            return [sized(b"".join(self.frame(digest) for digest in asked.digests))]
        data = self.held.get(asked.hex)
        if data is None:
            return [MISSING]
        return [part(data, asked.start) if asked.start else sized(data)]

    def frame(self, digest: Digest) -> bytes:
        data = self.held.get(digest.hex)
        return blobframes.refusal(digest, "not-found") if data is None else blobframes.header(digest, len(data)) + data


class Server:
    """`script` can be changed at any time; `asked` is what came."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[Asked] = []
        self.url = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, path, _ = head[0].split(" ")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            asked = Asked(method, path, headers, body)
            self.asked.append(asked)
            for piece in self.script(asked):
                await _play(writer, piece)
        writer.close()

    @property
    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]


async def _play(writer: asyncio.StreamWriter, piece: Piece) -> None:
    if isinstance(piece, Hold):
        piece.reached.set()
        await piece.go.wait()
        return
    writer.write(piece.piece if isinstance(piece, Endless) else piece)
    await writer.drain()
    while isinstance(piece, Endless):
        writer.write(piece.piece)
        await writer.drain()


@asynccontextmanager
async def running(script: Script) -> AsyncIterator[Server]:
    made = Server(script)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(made._serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(true: Callable[[], bool]) -> None:
    """Returns when it is; what the test waits for happens on this loop."""
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0)


__all__ = [
    "MISSING",
    "Asked",
    "Blobs",
    "Endless",
    "Hold",
    "Piece",
    "Server",
    "part",
    "running",
    "sized",
    "status",
    "until",
]

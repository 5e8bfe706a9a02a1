"""Connections that each send the next upload when the last was answered: as cheap as Python has it, since the server that is
measured shares the machine. A process of its own; prints JSON. For `python -m tests.bench.submitting`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass

import httptools

from tests.bench import inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """`path` has one `{}` for a name, which `run` begins. Every body is new: a `.py` of `size` bytes, or a `.zip` of 1 MiB."""

    port: int
    path: str
    token: str
    run: str
    size: int
    count: int
    clients: int

    def request(self, number: int) -> bytes:
        name = f"{self.run}_{number}"
        body = inputs.large_zip(name) if self.path.endswith(".zip") else inputs.small_py(name, self.size)
        path = self.path.format(name)
        head = f"PUT {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {self.token}\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Running:
    """One run of a `Load`."""

    def __init__(self, load: Load) -> None:
        # Made before the clock starts: to make them would take the server's processor.
        self.requests = [load.request(number) for number in range(load.count)]
        self.open = load.clients
        self.seconds: list[float] = []
        self.statuses: dict[int, int] = {}
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, running: Running) -> None:
        self._running = running

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def _next(self) -> None:
        if not self._running.requests:
            self._transport.close()
            return
        self._parser = httptools.HttpResponseParser(self)
        self._begin = time.perf_counter()
        self._transport.write(self._running.requests.pop())

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """The parser's call when an answer is whole."""
        self._running.seconds.append(time.perf_counter() - self._begin)
        status = self._parser.get_status_code()
        self._running.statuses[status] = self._running.statuses.get(status, 0) + 1
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        self._running.open -= 1
        if not self._running.open:
            self._running.over.set_result(None)


async def main(load: Load) -> None:
    loop = asyncio.get_running_loop()
    running = Running(load)
    begin = time.perf_counter()
    for _ in range(load.clients):
        await loop.create_connection(lambda: Client(running), "127.0.0.1", load.port)
    await running.over
    took = time.perf_counter() - begin
    print(json.dumps({"seconds": running.seconds, "took": took, "statuses": running.statuses}))


def arguments(load: Load) -> list[str]:
    """The command that runs it."""
    return [sys.executable, "-s", "-m", "tests.bench.load", json.dumps(asdict(load))]


if __name__ == "__main__":
    asyncio.run(main(Load(**json.loads(sys.argv[1]))))

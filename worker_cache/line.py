"""One connection that stays open, for one small question after the other: what an agent asks all the time.

Promise: an answer is given only where nobody could read it otherwise: HTTP/1.1, status 200, one length, nothing encoded, no
byte after the last. For all else there is None, the connection is closed, and whoever understands all of HTTP asks again
(`worker_cache.transport`); so a question is one that may be asked twice. Who gets such answers only is not asked any more.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping

from multidict import CIMultiDict
from yarl import URL

MAX_HEAD_BYTES = 16 * 1024
SECONDS = 30.0
TRIES = 3
_HEAD = re.compile(rb"HTTP/1\.1 200 [ -~]*\r\n((?:[!#-'*+.^_`|~A-Za-z0-9-]+:[\t -~]*\r\n)*)\r\n")
_LENGTH = re.compile(r"0|[1-9][0-9]{0,11}")


class _Connection(asyncio.Protocol):
    """`answer` is done when head and body are here whole, or will never be: then it is None."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.answer: asyncio.Future[tuple[CIMultiDict[str], bytes] | None] | None = None
        self._most, self._held = 0, bytearray()
        self._fields: CIMultiDict[str] = CIMultiDict()
        self._body, self._end = 0, -1  # where it begins and ends; the end is known when the head is here

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self.transport = transport

    def ask(self, question: bytes, max_bytes: int) -> asyncio.Future[tuple[CIMultiDict[str], bytes] | None]:
        self._most, self._end = max_bytes, -1
        self._held.clear()
        self.answer = asyncio.get_running_loop().create_future()
        if self.transport is None or self.transport.is_closing():
            self.answer.set_result(None)
        else:
            self.transport.write(question)
        return self.answer

    def data_received(self, data: bytes) -> None:
        self._held += data
        if self.answer is None or self.answer.done():
            self.close()  # nobody asked for this
        elif self._end < 0 and not self._read_head():
            if b"\r\n\r\n" in self._held or len(self._held) > MAX_HEAD_BYTES:
                self.close()
        elif len(self._held) == self._end:
            self.answer.set_result((self._fields, bytes(self._held[self._body :])))
        elif len(self._held) > self._end:
            self.close()

    def _read_head(self) -> bool:
        found = _HEAD.match(self._held)
        if not found:
            return False
        lines = found[1].decode("ascii").split("\r\n")[:-1]
        self._fields = CIMultiDict(
            (name, value.strip(" \t")) for name, _, value in (one.partition(":") for one in lines)
        )
        lengths = self._fields.getall("Content-Length", [])
        if len(lengths) != 1 or not _LENGTH.fullmatch(lengths[0]) or int(lengths[0]) > self._most:
            return False
        if "Transfer-Encoding" in self._fields or self._fields.get("Content-Encoding", "identity") != "identity":
            return False
        self._body = found.end()
        self._end = self._body + int(lengths[0])
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.close()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()
            self.transport = None
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(None)


class Line:
    """To one server, for one event loop. One question at a time; who comes meanwhile gets None."""

    def __init__(self, server: URL, tls: ssl.SSLContext | None) -> None:
        self._server, self._tls = server, tls
        self._connection: _Connection | None = None
        self._busy, self._left = False, TRIES

    async def get(
        self, url: URL, headers: Mapping[str, str], *, max_bytes: int
    ) -> tuple[CIMultiDict[str], bytes] | None:
        """Header fields and body of the answer. Raises nothing: what went wrong is found out by who asks again."""
        if self._busy or not self._left:
            return None
        self._busy, found = True, None
        try:
            fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            question = f"GET {url.raw_path_qs} HTTP/1.1\r\nHost: {url.host_port_subcomponent}\r\n{fields}\r\n"
            if len(question.splitlines()) != len(headers) + 3:
                raise ValueError("a header field is one line")
            async with asyncio.timeout(SECONDS):
                connection = await self._connected()
                found = await connection.ask(question.encode("ascii"), max_bytes)
            self._left = TRIES if found is not None else self._left - 1
        except (OSError, ValueError):  # a timeout is an `OSError`
            pass
        finally:
            self._busy = False
            if found is None:
                self.close()
        return found

    async def _connected(self) -> _Connection:
        if self._connection is None or self._connection.transport is None:
            loop = asyncio.get_running_loop()
            host, port = self._server.raw_host, self._server.port
            if host is None or port is None:
                raise ValueError("no address of a server")
            _, self._connection = await loop.create_connection(_Connection, host, port, ssl=self._tls)
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

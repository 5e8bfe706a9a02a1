"""One HTTP request to the API: the bearer token or the signature, the time limits, the size limits, and the translation of
failures.

Promise: what a caller gets is an answer with a 2xx status, at most as long as it asked for, or one of our errors. A server
that does not answer, answers slowly, or answers endlessly is a `FetchError`. Redirects are not followed: they would
carry the token elsewhere. A signed request that is refused because the server has another process now, or the agent another
key, is signed anew and sent once more; it had done nothing. What is only asked may be sent again otherwise (`ask`).
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from integrity.errors import FetchError, SettingsError
from worker_cache import problems
from worker_cache.line import Line
from worker_cache.signing import EPOCH_FIELD, Signer

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_PROBLEM_BYTES = 256 * 1024
CONNECT_SECONDS = 10.0
QUIET_SECONDS = 60.0
_FIELDS = {"Accept-Encoding": "identity"}

Body = bytes | AsyncIterable[bytes] | None


def check_url(url: str, *, unsafe_http: bool = False) -> str:
    """The base URL without a slash at its end. Plain http is for this host only: the token would be readable."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise SettingsError(f"{url!r} is not the address of a server: write https://HOST[:PORT]")
    if parts.scheme == "http" and not unsafe_http and not _is_loopback(parts.hostname):
        raise SettingsError(
            f"{url} would send the token in clear text over the network: use https, "
            "or set unsafe_http if the way there is private"
        )
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Answer:
    """A finished answer: status, headers, body."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def json(self) -> Any:
        """The body as JSON. Raises `FetchError`: a proxy's page is not the API's answer."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise FetchError("the server's answer is not JSON: is this the address of a dagseal server?") from None


class Transport:
    """Requests to one server. Use as an async context manager."""

    def __init__(
        self,
        server: str,
        token: str | None,
        *,
        signer: Signer | None = None,
        unsafe_http: bool = False,
        ca_file: str | None = None,
    ) -> None:
        self._base = check_url(server, unsafe_http=unsafe_http)
        self._signer = signer
        self._bearer = {"Authorization": f"Bearer {token}"} if token is not None else {}
        try:
            self._tls = ssl.create_default_context(cafile=ca_file) if self._base.startswith("https:") else None
        except OSError as error:
            raise SettingsError(f"the certificate file {ca_file} cannot be used: {error}") from None
        self._session: aiohttp.ClientSession | None = None
        self._line = Line(URL(self._base), self._tls)

    async def __aenter__(self) -> Transport:
        connector = aiohttp.TCPConnector(limit=0, ssl=self._tls if self._tls is not None else True)
        self._session = aiohttp.ClientSession(
            headers=_FIELDS,
            auto_decompress=False,
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.close()
        if self._session is not None:
            await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Body = None,
        json_body: object = None,
        headers: Mapping[str, str] | None = None,
        wait_seconds: float = 0.0,
        max_bytes: int = MAX_ANSWER_BYTES,
        public: bool = False,
    ) -> Answer:
        """The whole answer. `wait_seconds`: how long the server was asked to hold it; `public`: do not say who asks."""
        if json_body is not None:
            body = json.dumps(json_body).encode()
            headers = {"Content-Type": "application/json", **(headers or {})}
        async with self._answered(
            method, path, query=query, body=body, headers=headers, wait=wait_seconds, public=public
        ) as response:
            data = await _read_limited(response, max_bytes, f"{method} {path}")
            return Answer(response.status, response.headers, data)

    async def ask(
        self, path: str, *, query: Mapping[str, str] | None = None, max_bytes: int, public: bool = False
    ) -> Answer:
        """As `request`, for what is small and asked often: over a line of its own, where the answer is as plain as ours."""
        signer = None if public else self._signer
        if signer is None or signer.ready:
            url = URL(self._base + path).update_query(query or {})
            signed = {} if public else self._sign("GET", url, None, {})
            found = await self._line.get(url, {**_FIELDS, **signed}, max_bytes=max_bytes)
            if found is not None:
                return Answer(200, *found)
        return await self.request("GET", path, query=query, max_bytes=max_bytes, public=public)

    async def stream(
        self,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        start: int = 0,
        chunk_bytes: int = 256 * 1024,
    ) -> AsyncGenerator[bytes, None]:
        """The answer's body, piece by piece, from this byte on. An answer shorter than announced is a `FetchError`."""
        if start:
            headers = {**(headers or {}), "Range": f"bytes={start}-"}
        async with self._answered("GET", path, query=query, body=None, headers=headers, wait=0.0) as response:
            if start and response.status == 206:
                if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                    raise FetchError(f"GET {path}: the answer is another range than the one that was asked for")
                start = 0
            async for chunk in response.content.iter_chunked(chunk_bytes):
                if start:  # a server that knows no ranges sends the whole
                    start, chunk = max(0, start - len(chunk)), chunk[start:]
                if chunk:
                    yield chunk

    async def stream_of_json(self, path: str, json_body: object) -> AsyncGenerator[bytes, None]:
        """The body of the answer to a POST, piece by piece."""
        body = json.dumps(json_body).encode()
        headers = {"Content-Type": "application/json"}
        async with self._answered("POST", path, query=None, body=body, headers=headers, wait=0.0) as response:
            async for chunk in response.content.iter_chunked(256 * 1024):
                yield chunk

    @asynccontextmanager
    async def _answered(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None,
        body: Body,
        headers: Mapping[str, str] | None,
        wait: float,
        public: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            raise RuntimeError("a Transport is used inside `async with`")
        url = URL(self._base + path).update_query(query or {})
        try:
            if self._signer is not None and not self._signer.ready and not public:
                async with self._session.get(
                    self._base + "/healthz", timeout=_limits(0.0), allow_redirects=False
                ) as answer:
                    self._signer.hear(answer.headers.get(EPOCH_FIELD))
                if not self._signer.ready:
                    raise FetchError(f"{self._base} does not say its epoch: is this the address of a dagseal server?")
            for again in (True, False):
                signed_with = self._signer.state if self._signer is not None else None
                signed = headers or {} if public else self._sign(method, url, body, headers or {})
                async with self._session.request(
                    method, url, data=body, headers=signed, timeout=_limits(wait), allow_redirects=False
                ) as response:
                    if again and response.status == 401 and not public and self._signs_otherwise(signed_with, response):
                        continue
                    if not 200 <= response.status < 300:
                        data = await _read_limited(response, MAX_PROBLEM_BYTES, f"{method} {path}")
                        raise problems.to_error(
                            response.status, response.headers.get("Content-Type", ""), data, what=f"{method} {path}"
                        )
                    yield response
                    return
        except TimeoutError:
            raise FetchError(f"{self._base} did not answer in time: try again, or look at the server") from None
        except aiohttp.ClientError as error:
            raise FetchError(f"{self._base} cannot be reached or broke off ({_say(error)}): try again") from None
        except OSError as error:
            raise FetchError(f"{self._base} cannot be reached ({_say(error)}): try again") from None

    def _sign(self, method: str, url: URL, body: Body, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The header fields, with those that say who asks: a token, or a signature. What is signed is the path that the API is
        asked for: a proxy that serves it below a path of its own takes that off."""
        if self._signer is None:
            return {**headers, **self._bearer}
        if body is not None and not isinstance(body, bytes):
            raise RuntimeError("a signed request has its whole body at hand")
        path = url.raw_path.removeprefix(URL(self._base).raw_path.rstrip("/"))
        kind = headers.get("Content-Type", "application/octet-stream")
        return {**headers, **self._signer.sign(method, path, url.raw_query_string, body, kind)}

    def _signs_otherwise(self, before: tuple[str, str] | None, response: aiohttp.ClientResponse) -> bool:
        """Whether what this answer refuses would be signed otherwise by now: others may have learnt it meanwhile."""
        if self._signer is None:
            return False
        self._signer.hear(response.headers.get(EPOCH_FIELD))
        if self._signer.state == before:
            self._signer.reread()
        return self._signer.state != before


def _limits(wait: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=QUIET_SECONDS + wait)


async def _read_limited(response: aiohttp.ClientResponse, max_bytes: int, what: str) -> bytes:
    """Read to the end, but never more than `max_bytes`."""
    data = bytearray()
    async for chunk in response.content.iter_chunked(64 * 1024):
        data += chunk
        if len(data) > max_bytes:
            raise FetchError(f"{what}: the answer is longer than {max_bytes} bytes")
    return bytes(data)


def _say(error: BaseException) -> str:
    return str(error) or type(error).__name__

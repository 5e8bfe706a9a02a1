"""Reading request bodies: every byte counted by us, at a least speed, against a cap that is known before.

aiohttp inflates bodies unless told not to, has no deadline for slow ones, and its size limit does not hold for streams;
so a coded body is refused, chunks are counted as they come, and each window of time must bring its bytes. `100
Continue` is sent when the body is first wanted: whoever is refused by then has not sent it.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from typing import TypeVar

import aiohttp
from aiohttp import web
from pydantic import BaseModel, ValidationError

from integrity.digests import Digest
from submit_api.refusals import (
    ContentEncodingError,
    ExpectationError,
    Finding,
    InvalidRequestError,
    LengthRequiredError,
    RequestError,
    SlowBodyError,
    TooLargeError,
    UnsupportedMediaError,
)
from submit_api.settings import LimitsSection

M = TypeVar("M", bound=BaseModel)
SIGNED = web.RequestKey("signed", Digest)  # what the caller's signature says that the body is
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def expect(request: web.Request) -> None:
    """aiohttp's hook for `Expect`: nothing is sent yet, see `chunks`."""


def check_head(request: web.Request, *, max_bytes: int) -> None:
    """What the headers alone say about the body. Raises before a byte of it was read."""
    if request.headers.get("Expect", "100-continue").lower() != "100-continue":
        raise ExpectationError("the only Expect that is known here is 100-continue")
    coding = request.headers.get("Content-Encoding", "identity")
    if coding.lower() != "identity":
        raise ContentEncodingError(f"send the bytes as they are: Content-Encoding {coding[:40]!r} is not accepted")
    if request.content_type.startswith("multipart/"):
        raise UnsupportedMediaError("send the file itself as the body (curl -T), not a form")
    length = request.content_length
    if length is None and "chunked" not in request.headers.get("Transfer-Encoding", "").lower():
        raise LengthRequiredError("send Content-Length, or Transfer-Encoding: chunked")
    if length is not None and length > max_bytes:
        raise TooLargeError(f"the body has {length} bytes, the limit is {max_bytes}")


async def chunks(request: web.Request, limits: LimitsSection, *, max_bytes: int) -> AsyncIterator[bytes]:
    """The body, piece by piece. Raises `TooLargeError`, `SlowBodyError`, or `RequestError` when it breaks off; after the last
    piece of one that is signed for `DigestMismatchError`, where it is another."""
    check_head(request, max_bytes=max_bytes)
    if "Expect" in request.headers and request.body_exists and not request.content.at_eof():
        await request.writer.write(_CONTINUE)
        request.writer.output_size = 0
    loop = asyncio.get_running_loop()
    signed, hashed = request.get(SIGNED), hashlib.sha512()
    total, in_window, deadline = 0, 0, loop.time() + limits.body_window_seconds
    least = limits.body_min_bytes_per_second * limits.body_window_seconds
    while True:
        try:
            chunk = request.content.read_nowait()  # small ones came with the head, and a deadline for each is dear
            if not chunk and not request.content.at_eof():
                async with asyncio.timeout_at(deadline):
                    chunk = await request.content.readany()
        except TimeoutError:
            if in_window < least:
                raise SlowBodyError(
                    f"the body came at less than {limits.body_min_bytes_per_second} bytes a second: send it again"
                ) from None
            in_window, deadline = 0, loop.time() + limits.body_window_seconds
            continue
        except (aiohttp.ClientError, ConnectionError, web.RequestPayloadError) as error:
            raise RequestError(f"the body broke off after {total} bytes ({type(error).__name__})") from None
        if not chunk:
            if signed is not None:
                signed.require(Digest(hashed.hexdigest()), "the digest of the body that came")
            return
        if signed is not None:
            hashed.update(chunk)
        total += len(chunk)
        in_window += len(chunk)
        if total > max_bytes:
            raise TooLargeError(f"the body is over the limit of {max_bytes} bytes")
        yield chunk


async def read(request: web.Request, limits: LimitsSection, *, max_bytes: int) -> bytes:
    """The whole body, for small ones."""
    return b"".join([chunk async for chunk in chunks(request, limits, max_bytes=max_bytes)])


async def read_model(request: web.Request, limits: LimitsSection, model: type[M]) -> M:
    """A JSON body. Raises `InvalidRequestError` that names the fields and never shows what was sent."""
    if request.content_type not in ("application/json", "application/octet-stream"):
        raise UnsupportedMediaError(f"send application/json, not {request.content_type[:80]!r}")
    return parse_model(await read(request, limits, max_bytes=limits.max_json_bytes), model)


def parse_model(body: bytes, model: type[M]) -> M:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        findings = tuple(
            Finding(rule=e["type"], entry=".".join(str(part) for part in e["loc"])[:200], detail=e["msg"])
            for e in error.errors(include_url=False, include_input=False, include_context=False)[:100]
        )
        shown = "; ".join(f"{f.entry or 'body'}: {f.detail}" for f in findings[:5])
        raise InvalidRequestError(f"the body cannot be used: {shown}", findings) from None


def query_number(request: web.Request, name: str, default: int, *, most: int) -> int:
    """A whole number of the query string, 0 to `most`."""
    text = request.query.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,16}", text) or int(text) > most:
        raise InvalidRequestError(f"{name} is to be a whole number from 0 to {most}")
    return int(text)


def wait_seconds(request: web.Request, limits: LimitsSection) -> float:
    """How long the caller wants to wait, at most what the settings allow."""
    text = request.query.get("wait_seconds", "0")
    if not re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,30})?(e[+-]?[0-9]{1,3})?", text):  # as any language writes a number
        raise InvalidRequestError("wait_seconds is to be a number of seconds")
    return min(float(text), limits.max_wait_seconds)

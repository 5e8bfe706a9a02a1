"""Blobs over HTTP: one, whole or in part, or many in one answer (`vocabulary.blobframes`).

Promise: only who has a release of the bytes finds them; workers find every release's. To everybody else what is hidden is as
what is not there, and that it was hidden is recorded. No wrong blob is ever sent to its end: neither alone nor in a batch.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing

import structlog
from aiohttp import web

from integrity.digests import Digest
from integrity.errors import DagsealError, NotFoundError
from submit_api import audit, modes, permissions, problems, scopes
from submit_api.http.routes import BYTES, Call
from submit_api.identity import WORKER, Caller
from submit_api.models.archives import BlobsRequest
from submit_api.refusals import RangeError
from submit_api.registry import archives
from submit_api.registry.records import Archive
from vocabulary import blobframes

GATHERED_BYTES = 256 * 1024
_RANGE = re.compile(r"bytes=([0-9]{0,16})-([0-9]{0,16})")
_log = structlog.get_logger("submit_api")


async def one(call: Call) -> web.StreamResponse:
    digest = Digest(call.part("hex"))
    size = (await _sizes(call, [digest]))[digest]
    if isinstance(size, NotFoundError):
        raise size
    headers = {
        "ETag": f'"{digest}"',
        "Cache-Control": "private, max-age=31536000, immutable",
        "Accept-Ranges": "bytes",
        "Repr-Digest": digest.repr_digest,
        "Content-Type": BYTES,
    }
    matches = [tag.strip() for tag in call.request.headers.get("If-None-Match", "").split(",")]
    if headers["ETag"] in matches or "*" in matches:
        del headers["Content-Type"]
        return web.Response(status=304, headers=headers)
    first, last = _range(call.request, size)
    status = 200 if (first, last) == (0, size - 1) and "Range" not in call.request.headers else 206
    if status == 206:
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    data = await call.service.blobs.small(digest, size)
    if data is not None:
        return web.Response(status=status, body=data[first : last + 1], headers=headers)
    made = web.StreamResponse(status=status, headers=headers)
    made.content_length = last - first + 1
    async with aclosing(_pieces(call, digest, first, last, whole=status == 200)) as pieces:
        piece = await anext(pieces)  # what is missing, or away, is an answer of its own
        await made.prepare(call.request)
        await _send(made, digest, piece, pieces)
    return made


async def batch(call: Call) -> web.StreamResponse:
    """What cannot be sent of one blob is said in its frame; the others come."""
    wanted = [Digest.parse(text) for text in (await call.body(BlobsRequest)).digests]
    sizes = await _sizes(call, wanted)
    await _record_hidden(call, sizes)
    made = web.StreamResponse(headers={"Content-Type": blobframes.MEDIA_TYPE})
    await made.prepare(call.request)
    gathered = bytearray()
    for digest in wanted:
        try:
            size = sizes[digest]
            if isinstance(size, NotFoundError):
                raise size
            data = await call.service.blobs.small(digest, size)
            if data is None:
                async with aclosing(_pieces(call, digest, 0, size - 1, whole=True)) as pieces:
                    piece = await anext(pieces)
                    await made.write(bytes(gathered) + blobframes.header(digest, size))
                    gathered.clear()
                    await _send(made, digest, piece, pieces)
                continue
        except DagsealError as error:
            gathered += blobframes.refusal(digest, problems.slug_of(error))
            if not isinstance(error, NotFoundError):
                _log.error("blob_left_out", digest=str(digest), slug=error.slug)
            continue
        gathered += blobframes.header(digest, size) + data
        if len(gathered) >= GATHERED_BYTES:
            await made.write(bytes(gathered))
            gathered.clear()
    await made.write(bytes(gathered))
    return made


async def _sizes(call: Call, wanted: Collection[Digest]) -> dict[Digest, int | NotFoundError]:
    """How long each is, or why the caller does not find it."""
    async with call.service.database.read() as tx:
        found = await archives.stored(tx, [str(digest) for digest in wanted])
        names = {release.archive for releases in found.values() for release in releases}
        archived = await archives.named(tx, names) if call.caller.kind != WORKER else {}
    sizes: dict[Digest, int | NotFoundError] = {}
    for digest in wanted:
        releases = found.get(str(digest), [])
        seen = [one for one in releases if call.caller.kind == WORKER or _may_fetch(call.caller, archived[one.archive])]
        if not seen:
            missing = NotFoundError(f"there is no blob {digest}")
            if releases:
                missing.add_note(audit.HIDES)
            sizes[digest] = missing
        elif all(release.retired_at is not None for release in seen):
            sizes[digest] = NotFoundError(
                f"there is no blob {digest} any more: {seen[0].archive}@{seen[0].number} was retired"
            )
        else:
            sizes[digest] = seen[0].size
    return sizes


def _may_fetch(caller: Caller, archive: Archive) -> bool:
    return scopes.cover(caller.scopes, scopes.ARCHIVE, archive.name) and permissions.may(caller, modes.READ, archive)


async def _record_hidden(call: Call, sizes: dict[Digest, int | NotFoundError]) -> None:
    """As the refusal of a single blob is; all in one transaction, before a byte is sent."""
    hidden = [
        (digest, error)
        for digest, error in sizes.items()
        if isinstance(error, NotFoundError) and audit.noted(error, audit.HIDES)
    ]
    if not hidden:
        return
    async with call.service.database.write() as tx:
        for digest, error in hidden:
            await audit.refused(
                tx,
                error,
                at=call.service.now_us(),
                caller=call.caller,
                address=call.caller.address,
                action="blob.read",
                about=f"blob:{digest.hex}",
            )


async def _pieces(call: Call, digest: Digest, first: int, last: int, *, whole: bool) -> AsyncGenerator[bytes, None]:
    """The last piece of a whole blob comes only when the digest agrees. Who asks for a part hashes what the parts make."""
    hashed = hashlib.sha512()
    async with aclosing(call.service.blobs.read(digest, first, last)) as pieces:
        ahead = await anext(pieces)
        if whole:
            await asyncio.to_thread(hashed.update, ahead)
        async for piece in pieces:
            yield ahead
            if whole:
                await asyncio.to_thread(hashed.update, piece)
            ahead = piece
        if whole:
            digest.require(Digest(hashed.hexdigest()), "the stored blob")
        yield ahead


async def _send(made: web.StreamResponse, digest: Digest, piece: bytes, rest: AsyncGenerator[bytes, None]) -> None:
    """What was begun either ends well or breaks off."""
    try:
        await made.write(piece)
        async for piece in rest:
            await made.write(piece)
    except DagsealError as error:
        _log.error("blob_broken_off", digest=str(digest), slug=error.slug)
        raise ConnectionResetError(str(error)) from None


def _range(request: web.Request, size: int) -> tuple[int, int]:
    """First and last byte that are wanted: one range, or everything."""
    header = request.headers.get("Range")
    if header is None:
        return 0, size - 1
    found = _RANGE.fullmatch(header.strip())
    if not found or not (found[1] or found[2]):
        raise RangeError("Range is to be one range of bytes, as bytes=0-99")
    if not found[1]:
        first, last = max(size - int(found[2]), 0), size - 1
    else:
        first, last = int(found[1]), min(int(found[2] or size), size - 1)
    if first > last:
        raise RangeError(f"the blob has {size} bytes")
    return first, last

"""Archives, releases, manifests and blobs over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import re
from contextlib import aclosing

import structlog
from aiohttp import web

from integrity import names
from integrity.digests import Digest
from integrity.errors import DagsealError, NotFoundError
from submit_api import accepting, audit, bodies, modes, permissions, releasing, scopes, submissions, views
from submit_api.http.routes import BYTES, DSSE, Call, answer
from submit_api.identity import WORKER, Caller
from submit_api.models import ArchiveDetail, ArchiveList, ArchiveView, ReleaseList, ReleaseView
from submit_api.refusals import RangeError
from submit_api.registry import archives
from submit_api.registry.database import Transaction
from submit_api.registry.records import Archive, Release

DEFAULT_LISTED, MAX_LISTED = 100, 1000
_RANGE = re.compile(r"bytes=([0-9]{0,16})-([0-9]{0,16})")
_log = structlog.get_logger("submit_api")


async def submit(call: Call) -> web.Response:
    request, limits = call.request, call.service.settings.limits
    ask = accepting.wanted(
        call.part("name"),
        request.query.get("group"),
        request.query.get("task_check"),
        request.query.get("isolation"),
        request.query.get("require_caller"),
        request.headers.get("Repr-Digest"),
        request.headers.get("If-Match"),
        request.headers.get("If-None-Match"),
    )
    newest = await submissions.authorise(call.service, call.caller, ask)
    body = bodies.chunks(request, limits, max_bytes=limits.max_archive_bytes)
    with call.service.admission.uploading(call.caller.principal):
        done = await submissions.submit(call.service, call.caller, ask, newest, body)
    made = answer(views.release(done.release, done.manifest, done.active), status=201 if done.created else 200)
    made.headers["Location"] = f"/v1/archives/{done.release.archive}/releases/{done.release.number}"
    made.headers["ETag"] = f'"{done.release.digest}"'
    made.headers["Repr-Digest"] = done.release.sha512.repr_digest
    return made


async def listed(call: Call) -> web.Response:
    caller, limit = call.caller, call.number("limit", DEFAULT_LISTED, most=MAX_LISTED)
    after = names.check("archive", call.request.query["after"]) if "after" in call.request.query else ""
    prefixes = scopes.prefixes(caller.scopes)
    async with call.service.database.read() as tx:
        page = await archives.names(tx, after=after, limit=limit, seen_by=caller.seen_by, prefixes=prefixes)
        named = await archives.named(tx, page)
        found = await _summaries(tx, [named[name] for name in page])
    return answer(ArchiveList(archives=found))


async def one(call: Call) -> web.Response:
    async with call.service.database.read() as tx:
        archive = await releasing.held(tx, call.caller, call.part("name"), modes.READ)
        (summary,) = await _summaries(tx, [archive])
        found = await archives.newest_releases(tx, archive.name, DEFAULT_LISTED)
    detail = {**summary.model_dump(), "releases": [await _view(call, r, archive) for r in found]}
    return answer(ArchiveDetail(**detail))


async def releases(call: Call) -> web.Response:
    """Without `after` the newest, so that who knows of no pages has these; with it the page that begins there."""
    query, limit = call.request.query, call.number("limit", DEFAULT_LISTED, most=MAX_LISTED)
    digest = str(Digest.parse(query["digest"])) if "digest" in query else None
    async with call.service.database.read() as tx:
        archive = await releasing.held(tx, call.caller, call.part("name"), modes.READ)
        if "after" in query:
            found = await archives.releases_after(tx, archive.name, call.number("after", 0), limit, digest=digest)
        else:
            found = await archives.newest_releases(tx, archive.name, limit, digest=digest)
    return answer(ReleaseList(releases=[await _view(call, release, archive) for release in found]))


async def release(call: Call) -> web.Response:
    async with call.service.database.read() as tx:
        archive = await releasing.held(tx, call.caller, call.part("name"), modes.READ)
        found = await releasing.numbered(tx, archive, int(call.part("number")))
    return answer(await _view(call, found, archive))


async def manifest(call: Call) -> web.Response:
    name = call.part("name")
    async with call.service.database.read() as tx:
        archive = await archives.find(tx, name)
        if archive is None or call.caller.kind != WORKER:
            archive = await releasing.held(tx, call.caller, name, modes.READ)
        found = await releasing.numbered(tx, archive, int(call.part("number")))
    return web.Response(body=found.manifest, content_type=DSSE, headers={"ETag": f'"{found.manifest_digest}"'})


async def blob(call: Call) -> web.StreamResponse:
    """The bytes by their digest. Only who has a release of them finds them; workers fetch any release's."""
    digest = Digest(call.part("hex"))
    async with call.service.database.read() as tx:
        found = await archives.releases_of_digest(tx, str(digest))
        archived = await archives.named(tx, {release.archive for release in found})
    seen = [one for one in found if _may_fetch(call.caller, archived[one.archive])]
    if not seen:
        missing = NotFoundError(f"there is no blob {digest}")
        if found:
            missing.add_note(audit.HIDES)
        raise missing
    if all(release.retired_at is not None for release in seen):
        raise NotFoundError(f"there is no blob {digest} any more: {seen[0].archive}@{seen[0].number} was retired")
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
    size = found[0].size
    first, last = _range(call.request, size)
    status = 200 if (first, last) == (0, size - 1) and "Range" not in call.request.headers else 206
    if status == 206:
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    data = await call.service.blobs.small(digest, size)
    if data is not None:
        return web.Response(status=status, body=data[first : last + 1], headers=headers)
    return await _stream(call, digest, first, last, status, headers)


def _may_fetch(caller: Caller, archive: Archive) -> bool:
    if caller.kind == WORKER:
        return True
    return scopes.cover(caller.scopes, scopes.ARCHIVE, archive.name) and permissions.may(caller, modes.READ, archive)


async def _stream(
    call: Call, digest: Digest, first: int, last: int, status: int, headers: dict[str, str]
) -> web.StreamResponse:
    """The last piece of a whole blob is held back until the digest agrees, so that no wrong one ever ends well. Who asks for
    a part hashes what the parts make."""
    made = web.StreamResponse(status=status, headers=headers)
    made.content_length = last - first + 1
    hashed = hashlib.sha512() if status == 200 else None
    async with aclosing(call.service.blobs.read(digest, first, last)) as pieces:
        ahead = await anext(pieces)  # what is missing, or away, is an answer of its own
        await made.prepare(call.request)
        try:
            await _hash(hashed, ahead)
            async for piece in pieces:
                await made.write(ahead)
                await _hash(hashed, piece)
                ahead = piece
            if hashed is not None:
                digest.require(Digest(hashed.hexdigest()), "the stored blob")
        except DagsealError as error:
            _log.error("blob_broken_off", digest=str(digest), slug=error.slug)
            raise ConnectionResetError(str(error)) from None
        await made.write(ahead)
    return made


async def _hash(hashed: hashlib._Hash | None, piece: bytes) -> None:
    if hashed is not None:
        await asyncio.to_thread(hashed.update, piece)


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


async def _summaries(tx: Transaction, found: list[Archive]) -> list[ArchiveView]:
    latest = await archives.latest(tx, found)
    return [views.archive(archive, latest[archive.name]) for archive in found]


async def _view(call: Call, found: Release, archive: Archive) -> ReleaseView:
    return views.release(found, (await call.service.manifest_of(found)).manifest, archive.active)

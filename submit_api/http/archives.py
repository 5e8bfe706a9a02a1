"""Archives, releases and manifests over HTTP."""

from __future__ import annotations

from aiohttp import web

from integrity import names
from integrity.digests import Digest
from submit_api import accepting, bodies, modes, releasing, scopes, submissions, views
from submit_api.http.routes import DSSE, Call, answer
from submit_api.identity import WORKER
from submit_api.models.archives import ArchiveDetail, ArchiveList, ArchiveView, ReleaseList, ReleaseView
from submit_api.registry import archives
from submit_api.registry.database import Transaction
from submit_api.registry.records import Archive, Release

DEFAULT_LISTED, MAX_LISTED = 100, 1000


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
        request.headers.get("Author-Signature"),
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


async def _summaries(tx: Transaction, found: list[Archive]) -> list[ArchiveView]:
    latest = await archives.latest(tx, found)
    return [views.archive(archive, latest[archive.name]) for archive in found]


async def _view(call: Call, found: Release, archive: Archive) -> ReleaseView:
    return views.release(found, (await call.service.manifest_of(found)).manifest, archive.active)

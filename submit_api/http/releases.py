"""What is decided about releases, over HTTP: which one is active, which is approved, and which is never launched again."""

from __future__ import annotations

from aiohttp import web

from integrity.errors import ConflictError
from submit_api import approving, modes, releasing, reports, views
from submit_api.http.routes import MAX_RELEASE_NUMBER, Call, answer
from submit_api.models.archives import ApproveRequest
from submit_api.models.workers import SpreadList, SpreadView
from submit_api.refusals import InvalidRequestError
from submit_api.releasing import Decided


async def activate(call: Call) -> web.Response:
    return await _answer(
        call,
        await releasing.activate(
            call.service, call.caller, call.part("name"), _number(call), call.request.headers.get("If-Match")
        ),
    )


async def roll_back(call: Call) -> web.Response:
    to = _asked(call, "to")
    return await _answer(
        call,
        await releasing.roll_back(
            call.service, call.caller, call.part("name"), to, call.request.headers.get("If-Match")
        ),
    )


async def revoke(call: Call) -> web.Response:
    query = call.request.query
    reason = query.get("reason", "").strip()
    if "reason" in query and not reason:
        raise InvalidRequestError("reason is empty: say why, or leave it out")
    if query.get("kill", "false") not in ("true", "false"):
        raise InvalidRequestError("kill is to be true or false")
    kill = query.get("kill") == "true"
    done = await releasing.revoke(call.service, call.caller, call.part("name"), _number(call), reason, kill=kill)
    return await _answer(call, done)


async def approve(call: Call) -> web.Response:
    ask = await call.body(ApproveRequest)
    return await _answer(
        call, await approving.approve(call.service, call.caller, call.part("name"), _number(call), ask)
    )


async def diff(call: Call) -> web.Response:
    """Against what is active, unless the caller says; of the active one itself, against the release before."""
    against = _asked(call, "against")
    async with call.service.database.read() as tx:
        archive = await releasing.held(tx, call.caller, call.part("name"), modes.READ)
        after = await releasing.numbered(tx, archive, _number(call))
        before = against or (archive.active if archive.active not in (None, after.number) else after.number - 1)
        if not before:
            raise ConflictError(f"{archive.name}@1 is the first and the active release: name another, as against=2")
        compared = await releasing.numbered(tx, archive, before)
    manifests = [(await call.service.manifest_of(release)).manifest for release in (compared, after)]
    return answer(views.diff(*manifests))


async def spread(call: Call) -> web.Response:
    """Which workers hold it, as they say."""
    async with call.service.database.read() as tx:
        archive = await releasing.held(tx, call.caller, call.part("name"), modes.READ)
        release = await releasing.numbered(tx, archive, _number(call))
        found = await reports.spread(call.service, tx, archive, release)
    return answer(SpreadList(workers=[SpreadView(worker=name, state=state, holds=has) for name, state, has in found]))


def _asked(call: Call, name: str) -> int | None:
    """The number of a release in the query, if one is there."""
    if name not in call.request.query:
        return None
    number = call.number(name, 0, most=MAX_RELEASE_NUMBER)
    if number == 0:
        raise InvalidRequestError(f"{name} is to be the number of a release")
    return number


def _number(call: Call) -> int:
    return int(call.part("number"))


async def _answer(call: Call, done: Decided) -> web.Response:
    manifest = (await call.service.manifest_of(done.release)).manifest
    return answer(views.release(done.release, manifest, done.archive.active))

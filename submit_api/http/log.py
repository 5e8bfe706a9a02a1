"""The transparency log over HTTP. Checkpoints are for everybody: they name nothing. The rest is for whoever has a token."""

from __future__ import annotations

from aiohttp import web

from integrity import tiles
from integrity.fields import to_base64
from integrity.tiles import TilePath
from submit_api import modes, releasing
from submit_api.http.routes import BYTES, Call, answer
from submit_api.models import ConsistencyView, InclusionView
from submit_api.refusals import InvalidRequestError
from submit_api.registry import leaves

NOTE = "text/plain"


async def checkpoint(call: Call) -> web.Response:
    return web.Response(body=await call.service.transparency.checkpoint(), content_type=NOTE, charset="utf-8")


async def keys(call: Call) -> web.Response:
    """For everybody: whoever follows with an older key finds the way to the newer ones."""
    async with call.service.database.read() as tx:
        return web.Response(body=tiles.bundle(await leaves.keys(tx)), content_type=BYTES)


async def tile(call: Call) -> web.Response:
    """Immutable: what a path names is the same for good."""
    data = await call.service.transparency.tile(TilePath.parse(call.part("path")))
    headers = {"Cache-Control": "private, max-age=31536000, immutable"}
    return web.Response(body=data, content_type=BYTES, headers=headers)


async def entries(call: Call) -> web.Response:
    start, end = call.number("start", 0), call.number("end", 2**53)
    if end <= start:
        raise InvalidRequestError("end is to be more than start")
    return web.Response(body=await call.service.transparency.entries(start, end), content_type=BYTES)


async def consistency(call: Call) -> web.Response:
    proof = await call.service.transparency.consistent(call.number("old", 0), call.number("new", 0))
    return answer(ConsistencyView(path=[to_base64(one) for one in proof]))


async def inclusion(call: Call) -> web.Response:
    async with call.service.database.read() as tx:
        archive = await releasing.held(tx, call.caller, call.part("name"), modes.READ)
        found = await releasing.numbered(tx, archive, int(call.part("number")))
        proof = await call.service.transparency.included(tx, archive.name, found.number)
    return answer(
        InclusionView(
            manifest=to_base64(found.manifest),
            entry=to_base64(proof.entry),
            index=proof.index,
            path=[to_base64(one) for one in proof.path],
            checkpoint=proof.checkpoint.decode(),
            keys=[to_base64(one) for one in proof.keys],
        )
    )

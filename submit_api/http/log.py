"""The transparency log over HTTP. Checkpoints are for everybody: they name nothing. The rest is for whoever has a token."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from aiohttp import web

from integrity.errors import DagsealError
from integrity.fields import to_base64
from submit_api import modes, releasing
from submit_api.http.routes import BYTES, Call, answer
from submit_api.identity import WORKER
from submit_api.models.archives import ConsistencyView, InclusionView
from submit_api.refusals import InvalidRequestError
from submit_api.registry import leaves
from submit_api.service import Service
from submit_api.transparency import FEW_ENTRIES
from vocabulary import leaves as entries_of
from vocabulary import lognews, tiles
from vocabulary.leaves import Activated, Released
from vocabulary.tiles import TilePath

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
    most = call.number("blobs", 0, most=lognews.MAX_BLOBS_BYTES)
    found = await call.service.transparency.entries(start, end)
    if not most or call.caller.kind != WORKER or len(found) > FEW_ENTRIES:
        return web.Response(body=tiles.bundle(found), content_type=BYTES)
    news = lognews.encode(tiles.bundle(found), [blob async for blob in _made_active(call.service, found, most)])
    return web.Response(body=news, content_type=lognews.MEDIA_TYPE)


async def _made_active(service: Service, entries: Sequence[bytes], most: int) -> AsyncIterator[lognews.Blob]:
    """What they record and make active and is at hand, up to so many bytes. What cannot be read now is left out: who asks for
    it by itself is told why."""
    read = [entries_of.from_bytes(entry) for entry in entries]
    sizes = {(leaf.archive, leaf.number): (leaf.digest, leaf.size) for leaf in read if isinstance(leaf, Released)}
    active = dict.fromkeys((leaf.archive, leaf.number) for leaf in read if isinstance(leaf, Activated))
    for digest, size in [sizes[one] for one in active if one in sizes]:
        if size > most:
            continue
        with suppress(DagsealError):
            data = await service.blobs.small(digest, size)
            if data is not None:
                most -= size
                yield digest, data


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

"""Sets of releases over HTTP."""

from __future__ import annotations

from aiohttp import web

from integrity.digests import Digest
from submit_api import setting
from submit_api.http.routes import JSON, Call
from vocabulary import sets


async def put(call: Call) -> web.Response:
    body = await call.raw(sets.MAX_BYTES)
    new = await setting.put(call.service, call.caller, Digest(call.part("hex")), body)
    return web.Response(status=201 if new else 200)


async def get(call: Call) -> web.Response:
    """Immutable: what a digest names is the same for good."""
    body = await setting.get(call.service, call.caller, Digest(call.part("hex")))
    headers = {"Cache-Control": "private, max-age=31536000, immutable"}
    return web.Response(body=body, content_type=JSON, headers=headers)

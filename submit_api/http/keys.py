"""The keys under which secrets rest, over HTTP: which there are, a new one, one less. No key leaves by this way."""

from __future__ import annotations

from aiohttp import web

from submit_api import rekeying, views
from submit_api.http.routes import Call, answer
from submit_api.models.system import KeyList, KeyView


async def listed(call: Call) -> web.Response:
    return answer(KeyList(keys=[views.copied(KeyView, state) for state in await rekeying.listed(call.service)]))


async def rotate(call: Call) -> web.Response:
    return answer(views.copied(KeyView, await rekeying.rotate(call.service, call.caller)), status=201)


async def retire(call: Call) -> web.Response:
    await rekeying.retire(call.service, call.caller, call.part("id"))
    return web.Response(status=204)

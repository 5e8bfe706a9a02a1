"""Trusted publishers, and the exchange of CI's tokens, over HTTP."""

from __future__ import annotations

from aiohttp import web

from submit_api import views
from submit_api.http.routes import Call, answer
from submit_api.models.people import ExchangedView, ExchangeRequest, PublisherList, PublisherRequest, PublisherView
from submit_api.publishing import administering, exchanging
from submit_api.registry import publishers


async def add(call: Call) -> web.Response:
    found = await administering.add(call.service, call.caller, await call.body(PublisherRequest))
    return answer(views.copied(PublisherView, found), status=201)


async def listed(call: Call) -> web.Response:
    async with call.service.database.read() as tx:
        found = await publishers.listed(tx)
    return answer(PublisherList(publishers=[views.copied(PublisherView, publisher) for publisher in found]))


async def one(call: Call) -> web.Response:
    return answer(views.copied(PublisherView, await administering.find(call.service, call.part("id"))))


async def remove(call: Call) -> web.Response:
    await administering.remove(call.service, call.caller, call.part("id"))
    return web.Response(status=204)


async def exchange(call: Call) -> web.Response:
    ask = await call.body(ExchangeRequest)
    made = await exchanging.exchange(call.service, ask.token, call.caller.address)
    view = ExchangedView(
        token_id=made.token.token_id,
        token=made.token.text,
        principal=made.principal,
        scopes=list(made.scopes),
        expires_at=made.expires_at,
    )
    return answer(view, status=201)

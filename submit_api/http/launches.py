"""Launches over HTTP: the caller's side, then the worker's."""

from __future__ import annotations

import asyncio

from aiohttp import web

from integrity import names
from submit_api import bodies, claiming, dispatching, finishing, launches, reservations, reserving, scopes, views
from submit_api.http.routes import BYTES, DSSE, Call, answer
from submit_api.models.launches import (
    Heartbeat,
    LaunchList,
    LaunchRequest,
    OffsetView,
    RefusedByWorker,
    ReservationsRequest,
    ReservationsView,
    StateView,
    TakeRequest,
)
from submit_api.refusals import InvalidRequestError
from submit_api.registry import ledger
from submit_api.registry.records import Launch
from vocabulary import logrecords
from vocabulary.claims import MAX_CLAIM_BYTES, MAX_RESULT_BYTES

MAX_LISTED = 1000
_ENVELOPE_OVERHEAD_BYTES = 4096


async def create(call: Call) -> web.Response:
    launch = await reserving.reserve(call.service, call.caller, await call.body(LaunchRequest))
    made = answer(views.launch(launch), status=201)
    made.headers["Location"] = f"/v1/launches/{launch.id}"
    return made


async def reserve(call: Call) -> web.Response:
    ask = await call.body(ReservationsRequest)
    found = await reservations.reserve(call.service, call.caller, ask.reservations)
    return answer(ReservationsView(reservations=[views.reservation(one) for one in found]))


async def listed(call: Call) -> web.Response:
    caller, state = call.caller, call.request.query.get("state")
    if state is not None and state not in launches.TRANSITIONS:
        raise InvalidRequestError(f"state is to be one of {', '.join(launches.TRANSITIONS)}")
    async with call.service.database.read() as tx:
        found = await ledger.listed(
            tx,
            dag_id=call.request.query.get("dag_id"),
            state=state,
            limit=call.number("limit", 100, most=MAX_LISTED),
            seen_by=caller.seen_by,
        )
    seen = [launch for launch in found if scopes.cover(caller.scopes, scopes.LAUNCH, launch.dag_id)]
    return answer(LaunchList(launches=[views.launch(launch) for launch in seen]))


async def one(call: Call) -> web.Response:
    found = await reserving.wait_for_end(call.service, call.caller, _id(call), call.wait_seconds)
    return answer(views.launch(found))


async def read_log(call: Call) -> web.Response:
    """The records as the launcher signed for them, where the caller accepts them; else text. Offsets are of the records."""
    offset, text = call.number("offset", 0), logrecords.MEDIA_TYPE not in call.request.headers.get("Accept", "")
    found, data = await reserving.read_log(
        call.service, call.caller, _id(call), offset, call.wait_seconds, whole_lines=text
    )
    headers = {
        "Dagseal-Next-Offset": str(offset + len(data)),
        "Dagseal-Launch-State": found.state,
        "Vary": "Accept",
    }
    if text:
        data = await asyncio.to_thread(logrecords.text_of, data)
    return web.Response(body=data, content_type=BYTES if text else logrecords.MEDIA_TYPE, headers=headers)


async def cancel(call: Call) -> web.Response:
    return answer(views.launch(await reserving.cancel(call.service, call.caller, _id(call))))


async def take(call: Call) -> web.Response:
    ask = await call.body(TakeRequest)

    def gone() -> bool:
        transport = call.request.transport
        return transport is None or transport.is_closing()

    offer = await dispatching.take(
        call.service, call.caller, call.part("name"), ask.queues, call.wait_seconds, gone, ask.task_instance
    )
    return answer(views.offer(offer)) if offer else web.Response(status=204)


async def claim(call: Call) -> web.Response:
    envelope = await call.raw(MAX_CLAIM_BYTES * 4 // 3 + _ENVELOPE_OVERHEAD_BYTES)
    grant = await claiming.claim(call.service, call.caller, _id(call), envelope)
    return web.Response(body=grant, content_type=DSSE)


async def append_log(call: Call) -> web.Response:
    offset = call.number("offset", 0)
    data = await call.raw(call.service.settings.limits.max_log_chunk_bytes)
    return answer(
        OffsetView(next_offset=await finishing.append_log(call.service, call.caller, _id(call), offset, data))
    )


async def state(call: Call) -> web.Response:
    """A result's envelope, a heartbeat, or the agent's word that its launcher refused."""
    if call.request.content_type == DSSE:
        envelope = await call.raw(MAX_RESULT_BYTES * 4 // 3 + _ENVELOPE_OVERHEAD_BYTES)
        return _state(await finishing.finish(call.service, call.caller, _id(call), envelope))
    body = await call.raw(call.service.settings.limits.max_json_bytes)
    if b'"refused"' in body:
        refused = bodies.parse_model(body, RefusedByWorker)
        return _state(await finishing.refuse(call.service, call.caller, _id(call), refused.error, refused.detail))
    bodies.parse_model(body, Heartbeat)
    return _state(await finishing.heartbeat(call.service, call.caller, _id(call)))


def _state(launch: Launch) -> web.Response:
    cancel_now = launch.cancel_requested or launch.state in ("cancelled", "lost")
    return answer(StateView(state=launch.state, cancel=cancel_now))


def _id(call: Call) -> str:
    return names.check("id", call.part("launch_id"))

"""Workers over HTTP: enrolled by an administrator, or invited, and joining by themselves."""

from __future__ import annotations

from aiohttp import web

from integrity import names
from submit_api import administering, joining, signed, views
from submit_api.http.routes import Call, answer
from submit_api.models import (
    InvitationRequest,
    InvitationView,
    JoinRequest,
    NewWorkerView,
    WorkerList,
    WorkerRequest,
)
from submit_api.registry import people


async def enroll(call: Call) -> web.Response:
    ask = await call.body(WorkerRequest)
    made = await administering.enroll_worker(call.service, call.caller, ask)
    return answer(NewWorkerView(name=ask.name, token_id=made.token_id, token=made.text), status=201)


async def one(call: Call) -> web.Response:
    return answer(views.worker(await administering.find_worker(call.service, call.part("name"))))


async def listed(call: Call) -> web.Response:
    async with call.service.database.read() as tx:
        found = await people.workers(tx)
    return answer(WorkerList(workers=[views.worker(worker) for worker in found]))


async def revoke(call: Call) -> web.Response:
    await administering.revoke_worker(call.service, call.caller, call.part("name"))
    return web.Response(status=204)


async def invite(call: Call) -> web.Response:
    name = names.check("worker", call.part("name"))
    found, made = await joining.invite(call.service, call.caller, name, await call.body(InvitationRequest))
    view = InvitationView(
        name=name,
        token_id=made.token_id,
        token=made.text,
        queues=found.queues,
        fingerprint=found.fingerprint,
        expires_at=found.expires_at,
    )
    return answer(view, status=201)


async def join(call: Call) -> web.Response:
    name = names.check("worker", call.part("name"))
    claimed = signed.read(call.service, call.request)
    ask = await call.body(JoinRequest)
    worker, new = await joining.join(call.service, claimed, name, ask, call.caller.address)
    return answer(views.worker(worker), status=201 if new else 200)

"""Workers over HTTP: enrolled by an administrator, or invited, and joining by themselves."""

from __future__ import annotations

from aiohttp import web

from integrity import names
from integrity.digests import Digest
from integrity.fields import from_base64
from submit_api import enrolling, joining, reports, signed, views
from submit_api.drift import Report
from submit_api.http.routes import Call, answer
from submit_api.models.workers import (
    InvitationRequest,
    InvitationView,
    JoinRequest,
    NewWorkerView,
    ReportRequest,
    StandingView,
    WorkerList,
    WorkerRequest,
    WorkerView,
)
from submit_api.registry import people
from submit_api.registry.records import Worker
from vocabulary import merkle


async def enroll(call: Call) -> web.Response:
    ask = await call.body(WorkerRequest)
    made = await enrolling.enroll_worker(call.service, call.caller, ask)
    return answer(NewWorkerView(name=ask.name, token_id=made.token_id, token=made.text), status=201)


async def one(call: Call) -> web.Response:
    return answer(_view(call, await enrolling.find_worker(call.service, call.part("name"))))


async def listed(call: Call) -> web.Response:
    async with call.service.database.read() as tx:
        found = await people.workers(tx)
    return answer(WorkerList(workers=[_view(call, worker) for worker in found]))


async def revoke(call: Call) -> web.Response:
    await enrolling.revoke_worker(call.service, call.caller, call.part("name"))
    return web.Response(status=204)


async def report(call: Call) -> web.Response:
    ask = await call.body(ReportRequest)
    said = Report(
        at=call.service.now_us(),
        log_size=ask.log_size,
        log_root=from_base64(ask.log_root, "log_root", max_bytes=merkle.HASH_BYTES),
        held_root=from_base64(ask.held_root, "held_root", max_bytes=merkle.HASH_BYTES),
        missing=frozenset(Digest.parse(digest) for digest in ask.missing),
        missing_count=ask.missing_count,
        damaged=tuple(Digest.parse(digest) for digest in ask.damaged),
        alarm=ask.alarm,
    )
    found = await reports.receive(call.service, call.caller, call.part("name"), said)
    return answer(StandingView(state=found.state, why=found.why))


def _view(call: Call, worker: Worker) -> WorkerView:
    return views.worker(worker, *reports.standing(call.service, worker))


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
    return answer(_view(call, worker), status=201 if new else 200)

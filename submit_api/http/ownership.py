"""Owner, group and mode, queues, and whose a dag_id is, over HTTP."""

from __future__ import annotations

from aiohttp import web

from submit_api import modes, owning, permissions, views
from submit_api.http.routes import Call, answer
from submit_api.models.ownership import (
    OwnershipChange,
    OwnershipView,
    QueueList,
    QueueRequest,
    QueueView,
    TransferRequest,
    TransferView,
)
from submit_api.registry import ownership
from submit_api.registry.ownership import Thing


async def show(call: Call) -> web.Response:
    kind, name = call.part("kind"), call.part("secret")
    return _answer(kind, await owning.show(call.service, call.caller, kind, name))


async def change(call: Call) -> web.Response:
    kind, name = call.part("kind"), call.part("secret")
    return _answer(kind, await owning.change(call.service, call.caller, kind, name, await call.body(OwnershipChange)))


def _answer(kind: str, found: Thing) -> web.Response:
    fields = {"kind": kind, "name": found.name, "owner": found.owner, "group": found.group, "mode": found.mode}
    return answer(OwnershipView.model_validate(fields))


async def list_queues(call: Call) -> web.Response:
    async with call.service.database.read() as tx:
        found = await ownership.queues(tx)
    seen = [queue for queue in found if permissions.may(call.caller, modes.READ, queue)]
    return answer(QueueList(queues=[views.copied(QueueView, queue) for queue in seen]))


async def put_queue(call: Call) -> web.Response:
    made = await owning.put_queue(call.service, call.caller, call.part("name"), await call.body(QueueRequest))
    return answer(views.copied(QueueView, made), status=201)


async def remove_queue(call: Call) -> web.Response:
    await owning.remove_queue(call.service, call.caller, call.part("name"))
    return web.Response(status=204)


async def transfer_dag(call: Call) -> web.Response:
    dag_id, to = call.part("dag_id"), (await call.body(TransferRequest)).archive
    was = await owning.transfer_dag(call.service, call.caller, dag_id, to)
    return answer(TransferView(dag_id=dag_id, archive=to, was=was))

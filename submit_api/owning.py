"""Who owns what: chown, chgrp and chmod of archives, connections, variables and queues; queues; and whose a dag_id is.

Promise: each change and its audit event are one transaction. As in unix only an administrator gives a thing away, its owner
gives it to groups it is in, and its owner changes the mode. And as names of secrets are everybody's, only an administrator
lets all others use one: it would reach every task there is.
"""

from __future__ import annotations

from integrity import names
from integrity.errors import ConflictError, MalformedError, NotFoundError, NotOwnerError
from submit_api import modes, permissions
from submit_api.administering import note
from submit_api.identity import Caller
from submit_api.models.ownership import OwnershipChange, QueueRequest
from submit_api.refusals import InvalidRequestError
from submit_api.registry import archives, leaves, logged, ownership, people
from submit_api.registry.database import Transaction
from submit_api.registry.ownership import Thing
from submit_api.registry.records import Archive, Queue
from submit_api.service import Service


async def show(service: Service, caller: Caller, kind: str, name: str) -> Thing:
    async with service.database.read() as tx:
        found = await _find(tx, kind, name)
    permissions.require(caller, modes.READ, found, f"{kind} {name}")
    return found


async def change(service: Service, caller: Caller, kind: str, name: str, wanted: OwnershipChange) -> Thing:
    """All that was asked for, or nothing. Raises `NotFoundError`, `NotOwnerError`, `InvalidRequestError`."""
    if wanted == OwnershipChange():
        raise InvalidRequestError("say what to change: owner, group or mode")
    async with service.database.write() as tx:
        found = await _find(tx, kind, name)
        owner, group = wanted.owner or found.owner, wanted.group or found.group
        mode = modes.changed(found.mode, wanted.mode) if wanted.mode is not None else found.mode
        _check(caller, kind, name, found, owner=owner, group=group, mode=mode)
        if kind == "archive" and group != found.group:
            await _require_no_approvals(tx, caller, found.group, f"archive {name}")
        if group not in (found.group, owner) and ":" not in group and group not in await people.groups(tx):
            raise NotFoundError(f"there is no group {group!r}: an administrator can make it: dagseal group set {group}")
        await ownership.change(tx, kind, name, owner=owner, group=group, mode=mode)
        changed = await _find(tx, kind, name)
        if isinstance(changed, Archive):
            await leaves.add(tx, [logged.owned(changed, by=caller.principal, at=service.now_us())])
        await note(tx, service, caller, "ownership.change", f"{kind}:{name}", f"{_says(found)} -> {_says(changed)}")
    return changed


def _check(caller: Caller, kind: str, name: str, found: Thing, *, owner: str, group: str, mode: int) -> None:
    if caller.admin:
        return
    if caller.principal != found.owner:
        raise NotOwnerError(
            f"{kind} {name} belongs to {found.owner}: ask {found.owner} or an administrator to change it"
        )
    if owner != found.owner:
        raise NotOwnerError(f"only an administrator gives {kind} {name} to {owner}, with all that {owner} may")
    if group not in (found.group, caller.principal) and group not in caller.groups:
        raise NotOwnerError(f"{caller.principal} is not in group {group}: ask an administrator to be added")
    if kind in ("connection", "variable") and mode & ~found.mode & modes.EXECUTE:
        raise NotOwnerError(
            f"only an administrator lets everybody's tasks use {kind} {name}: give it to a group instead"
        )


async def _require_no_approvals(tx: Transaction, caller: Caller, group: str, what: str) -> None:
    """Else one member alone would take it to where no other has to agree."""
    if not caller.admin and await people.asking_groups(tx, [group]):
        raise NotOwnerError(f"group {group} asks for approvals: only an administrator takes {what} away from it")


async def _find(tx: Transaction, kind: str, name: str) -> Thing:
    if kind not in ownership.KINDS:
        raise InvalidRequestError(f"{kind!r} has no owner: what has one is an {', a '.join(ownership.KINDS)}")
    found = await ownership.find(tx, kind, names.check(kind, name))
    if found is None:
        raise NotFoundError(f"there is no {kind} {name!r}")
    return found


async def put_queue(service: Service, caller: Caller, name: str, wanted: QueueRequest) -> Queue:
    """Put a queue on record: from now on its mode decides whose tasks may run in it. Raises `ConflictError`."""
    mode = modes.NEW["queue"] if wanted.mode is None else modes.changed(modes.NEW["queue"], wanted.mode)
    queue = Queue(
        name=names.check("queue", name),
        owner=wanted.owner or caller.principal,
        group=wanted.group or wanted.owner or caller.principal,
        mode=mode,
        created_at=service.now_us(),
    )
    async with service.database.write() as tx:
        earlier = await ownership.queue(tx, name)
        if earlier is not None:
            raise ConflictError(
                f"queue {name} is {earlier.owner}'s already: change it with dagseal chown, chgrp or chmod"
            )
        await ownership.add_queue(tx, queue)
        await note(tx, service, caller, "queue.write", f"queue:{name}", _says(queue))
    return queue


async def remove_queue(service: Service, caller: Caller, name: str) -> None:
    """From now on it is open to all, as every queue that is not on record."""
    async with service.database.write() as tx:
        await _find(tx, "queue", name)
        await ownership.remove_queue(tx, name)
        await note(tx, service, caller, "queue.remove", f"queue:{name}", "open to all from now on")


async def transfer_dag(service: Service, caller: Caller, dag_id: str, to: str) -> str:
    """Give a dag_id to another archive, which may then define it; the one it leaves may not. Who may write both does it.
    Raises `NotFoundError`, `NotOwnerError`, `ConflictError`."""
    try:
        names.check("dag_id", dag_id)
    except MalformedError as error:
        raise InvalidRequestError(str(error)) from None
    async with service.database.write() as tx:
        name = (await archives.archives_of_dags(tx, [dag_id])).get(dag_id)
        if name is None:
            raise NotFoundError(f"no release defines dag {dag_id!r}: the archive that is pushed with it first has it")
        if name == to:
            raise ConflictError(f"dag {dag_id} belongs to archive {to} already")
        for each in (name, to):
            archive = await _find(tx, "archive", each)
            permissions.require(caller, modes.WRITE, archive, f"archive {each}")
            await _require_no_approvals(tx, caller, archive.group, f"dag {dag_id}")
        await ownership.move_dag(tx, dag_id, to, service.now_us())
        await note(tx, service, caller, "dag.transfer", f"dag:{dag_id}", f"{name} -> {to}")
    return name


def _says(found: Thing) -> str:
    return f"{found.owner}:{found.group} {modes.shown(found.mode)}"

"""Connections and variables, and who is granted them: stored, shown without their values, removed.

Each change and its audit event are one transaction. A value of a secret enters here and never comes back.
"""

from __future__ import annotations

from integrity import names
from integrity.errors import ConflictError, NotFoundError, OutOfScopeError
from submit_api import connections, modes, permissions
from submit_api.administering import note
from submit_api.identity import Caller
from submit_api.models.secrets import GrantRequest
from submit_api.registry import secrets
from submit_api.registry.database import Transaction
from submit_api.registry.records import Grant, Secret
from submit_api.service import Service


async def put_secrets(
    service: Service, caller: Caller, kind: str, values: dict[str, str], *, action: str
) -> list[Secret]:
    """Store all of them, or none. Each gets the next version of its row. A new name takes an administrator: names are
    everybody's, and who has one decides what a task finds under it."""
    for name in values:
        if service.backends.owns(kind, name):
            raise ConflictError(
                f"{kind} {name!r} is a secrets backend's by its prefix: store it there, or under another name"
            )
    now = service.now_us()
    stored = []
    async with service.database.write() as tx:
        for name, value in values.items():
            earlier = await secrets.find(tx, kind, name)
            if earlier is not None:
                permissions.require(caller, modes.WRITE, earlier, f"{kind} {name}")
            elif not caller.admin:
                raise OutOfScopeError(f"there is no {kind} {name!r}: an administrator can make it, and give it to you")
            row = connections.seal(service.keys.rows, kind, name, value, earlier=earlier, at=now, by=caller.principal)
            await secrets.put(tx, row)
            await note(tx, service, caller, action, f"{kind}:{name}", f"version {row.version}")
            stored.append(row)
    return stored


async def find_secret(service: Service, caller: Caller, kind: str, name: str) -> Secret:
    async with service.database.read() as tx:
        return await _held(tx, caller, kind, name, modes.READ)


async def remove_secret(service: Service, caller: Caller, kind: str, name: str) -> None:
    async with service.database.write() as tx:
        await _held(tx, caller, kind, name, modes.WRITE)
        await secrets.remove(tx, kind, name)
        await note(tx, service, caller, f"{kind}.remove", f"{kind}:{name}", "its grants are gone with it")


async def _held(tx: Transaction, caller: Caller, kind: str, name: str, mode: int) -> Secret:
    """One that is there, and that the caller may use so. Raises `NotFoundError`, and what `permissions.require` raises."""
    found = await secrets.find(tx, kind, name)
    if found is None:
        raise NotFoundError(f"there is no {kind} {name!r}")
    permissions.require(caller, mode, found, f"{kind} {name}")
    return found


async def add_grant(service: Service, caller: Caller, wanted: GrantRequest) -> Grant:
    """Raises `NotFoundError` for a secret that is not there, `ConflictError` for the same grant again."""
    grant = Grant(
        id=service.new_id(),
        kind=wanted.kind,
        name=wanted.name,
        to_kind=wanted.to_kind,
        to=wanted.to,
        created_at=service.now_us(),
        created_by=caller.principal,
    )
    async with service.database.write() as tx:
        if await secrets.find(tx, grant.kind, grant.name) is None:
            if not service.backends.covers(grant.kind, grant.name):
                raise NotFoundError(f"there is no {grant.kind} {grant.name!r}")
            names.check(grant.kind, grant.name)
        earlier = await secrets.grant_like(tx, grant)
        if earlier is not None:
            raise ConflictError(f"{grant.kind} {grant.name} is granted to {grant.to} already: grant {earlier.id}")
        await secrets.add_grant(tx, grant)
        await note(tx, service, caller, "grant.add", f"{grant.kind}:{grant.name}", f"to {grant.to_kind} {grant.to}")
    return grant


async def find_grant(service: Service, grant_id: str) -> Grant:
    async with service.database.read() as tx:
        found = await secrets.grant(tx, grant_id)
    if found is None:
        raise NotFoundError(f"there is no grant {grant_id}")
    return found


async def remove_grant(service: Service, caller: Caller, grant_id: str) -> None:
    async with service.database.write() as tx:
        grant = await secrets.grant(tx, grant_id)
        if grant is None:
            raise NotFoundError(f"there is no grant {grant_id}")
        await secrets.remove_grant(tx, grant_id)
        about = f"{grant.kind}:{grant.name}"
        await note(tx, service, caller, "grant.remove", about, f"from {grant.to_kind} {grant.to}")

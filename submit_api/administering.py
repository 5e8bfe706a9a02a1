"""What administrators change: secrets, grants, impersonation rules, groups, tokens, workers; and owners, of their secrets.

Each change and its audit event are one transaction. A value of a secret enters here and never comes back.
"""

from __future__ import annotations

from collections.abc import Sequence

from integrity import names
from integrity.errors import ConflictError, MalformedError, NotFoundError, OutOfScopeError
from integrity.fields import from_base64
from submit_api import audit, connections, identity, impersonation, modes, permissions
from submit_api.identity import Caller, NewToken
from submit_api.models.ownership import RuleRequest
from submit_api.models.people import GroupRequest, TokenRequest
from submit_api.models.secrets import GrantRequest
from submit_api.models.workers import JoinRequest, WorkerRequest
from submit_api.refusals import InvalidRequestError
from submit_api.registry import invitations, people, secrets
from submit_api.registry.database import Transaction
from submit_api.registry.records import Grant, Rule, Secret, Token, Worker
from submit_api.service import Service
from vocabulary.keys import SealTo, VerifyKey, fingerprint


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
        found = await secrets.find(tx, kind, name)
    if found is None:
        raise NotFoundError(f"there is no {kind} {name!r}")
    permissions.require(caller, modes.READ, found, f"{kind} {name}")
    return found


async def remove_secret(service: Service, caller: Caller, kind: str, name: str) -> None:
    async with service.database.write() as tx:
        found = await secrets.find(tx, kind, name)
        if found is None:
            raise NotFoundError(f"there is no {kind} {name!r}")
        permissions.require(caller, modes.WRITE, found, f"{kind} {name}")
        await secrets.remove(tx, kind, name)
        await note(tx, service, caller, f"{kind}.remove", f"{kind}:{name}", "its grants are gone with it")


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


async def add_rule(service: Service, caller: Caller, wanted: RuleRequest) -> Rule:
    rule = Rule(
        id=service.new_id(),
        subject_kind=wanted.subject_kind,
        subject=wanted.subject,
        dag_glob=wanted.dag_glob,
        unix_user=wanted.unix_user,
        queue_glob=wanted.queue_glob,
        created_at=service.now_us(),
        created_by=caller.principal,
        effect=wanted.effect,
    )
    async with service.database.write() as tx:
        await secrets.add_rule(tx, rule)
        await note(tx, service, caller, "impersonation.add", f"rule:{rule.id}", _says(rule))
    return rule


async def find_rule(service: Service, rule_id: str) -> Rule:
    async with service.database.read() as tx:
        found = await secrets.rule(tx, rule_id)
    if found is None:
        raise NotFoundError(f"there is no impersonation rule {rule_id}")
    return found


async def remove_rule(service: Service, caller: Caller, rule_id: str) -> None:
    async with service.database.write() as tx:
        rule = await secrets.rule(tx, rule_id)
        if rule is None:
            raise NotFoundError(f"there is no impersonation rule {rule_id}")
        await secrets.remove_rule(tx, rule_id)
        await note(tx, service, caller, "impersonation.remove", f"rule:{rule_id}", _says(rule))


async def put_group(service: Service, caller: Caller, name: str, wanted: GroupRequest) -> tuple[list[str], int]:
    """What is not given stays as it is. How many approvals are asked for holds for what is pushed from now on."""
    names.check("group", name)
    if wanted.members is None and wanted.approvals is None:
        raise InvalidRequestError("give members, approvals, or both")
    async with service.database.write() as tx:
        before = (await people.approvals(tx)).get(name, 0)
        await people.put_group(tx, name, wanted.members, wanted.approvals, service.now_us())
        members = (await people.groups(tx))[name]
        approvals = before if wanted.approvals is None else wanted.approvals
        detail = f"members: {', '.join(members)}"
        if approvals != before:
            detail = f"approvals: {before} -> {approvals}, {detail}"
        await note(tx, service, caller, "group.write", f"group:{name}", detail)
    return members, approvals


async def find_group(service: Service, name: str) -> tuple[list[str], int]:
    async with service.database.read() as tx:
        found, approvals = await people.groups(tx), await people.approvals(tx)
    if name not in found:
        raise NotFoundError(f"there is no group {name!r}")
    return found[name], approvals[name]


async def create_token(service: Service, caller: Caller, wanted: TokenRequest) -> NewToken:
    if wanted.expires_at is not None and wanted.expires_at <= service.now_us():
        raise InvalidRequestError("expires_at is over already: it is in microseconds since 1970")
    async with service.database.write() as tx:
        return await issue(
            tx,
            service,
            caller,
            principal=wanted.principal,
            kind=identity.USER,
            admin=wanted.admin,
            expires_at=wanted.expires_at,
            scopes=sorted(set(wanted.scopes)),
        )


async def issue(
    tx: Transaction,
    service: Service,
    caller: Caller,
    *,
    principal: str,
    kind: str,
    admin: bool,
    expires_at: int | None = None,
    scopes: Sequence[str] = (),
    publisher: str = "",
) -> NewToken:
    """A new token, recorded by its hash, and with the publisher and the run that it is made for."""
    made = identity.create(service.randomness)
    token = Token(
        token_id=made.token_id,
        principal=principal,
        kind=kind,
        admin=admin,
        secret_hash=made.secret_hash,
        created_at=service.now_us(),
        created_by=caller.principal,
        expires_at=expires_at,
        revoked_at=None,
        scopes=list(scopes),
        publisher=publisher,
        via=caller.via if publisher else "",
    )
    await people.add_token(tx, token)
    limits = f", only {', '.join(scopes)}" if scopes else ""
    detail = f"for {kind} {principal}{', admin' if admin else ''}{limits}"
    await note(tx, service, caller, "token.create", f"token:{made.token_id}", detail)
    return made


async def revoke_token(service: Service, caller: Caller, token_id: str) -> Token:
    async with service.database.write() as tx:
        if await people.token(tx, token_id) is None:
            raise NotFoundError(f"there is no token {token_id!r}")
        await people.revoke_tokens(tx, service.now_us(), token_id=token_id)
        await note(tx, service, caller, "token.revoke", f"token:{token_id}", "")
    return await find_token(service, token_id)


async def find_token(service: Service, token_id: str) -> Token:
    async with service.database.read() as tx:
        found = await people.token(tx, token_id)
    if found is None:
        raise NotFoundError(f"there is no token {token_id!r}")
    return found


async def enroll_worker(service: Service, caller: Caller, wanted: WorkerRequest) -> NewToken:
    """Trust a launcher's keys. `fingerprint` is what its administrator read on its own host, not through the agent."""
    verify_key, sealing_key = launcher_keys(wanted)
    found = fingerprint(verify_key, sealing_key)
    if wanted.fingerprint != found:
        raise InvalidRequestError(
            f"these keys have fingerprint {found}, not the given one: compare it on the launcher's host"
        )
    worker = Worker(
        name=wanted.name,
        verify_key=verify_key.raw,
        sealing_key=sealing_key.raw,
        fingerprint=found,
        queues=sorted(set(wanted.queues)),
        created_at=service.now_us(),
        revoked_at=None,
    )
    async with service.database.write() as tx:
        earlier = await people.worker(tx, worker.name)
        if earlier is not None and earlier.revoked_at is None:
            raise ConflictError(f"worker {worker.name} is enrolled already: revoke it first, or take another name")
        await people.put_worker(tx, worker)
        made = await issue(tx, service, caller, principal=worker.name, kind=identity.WORKER, admin=False)
        detail = f"fingerprint {worker.fingerprint}, queues {', '.join(worker.queues)}"
        await note(tx, service, caller, "worker.enroll", f"worker:{worker.name}", detail)
    return made


def launcher_keys(wanted: WorkerRequest | JoinRequest) -> tuple[VerifyKey, SealTo]:
    """Raises `InvalidRequestError`."""
    try:
        verify_key = VerifyKey(from_base64(wanted.verify_key, "verify_key", max_bytes=32))
        return verify_key, SealTo(from_base64(wanted.sealing_key, "sealing_key", max_bytes=32))
    except MalformedError as error:
        raise InvalidRequestError(str(error)) from None


async def find_worker(service: Service, name: str) -> Worker:
    async with service.database.read() as tx:
        found = await people.worker(tx, name)
    if found is None:
        raise NotFoundError(f"there is no worker {name!r}")
    return found


async def revoke_worker(service: Service, caller: Caller, name: str) -> None:
    """With its tokens, its key and its invitations. What it runs now will fall silent and be lost."""
    async with service.database.write() as tx:
        if await people.worker(tx, name) is None:
            raise NotFoundError(f"there is no worker {name!r}")
        await people.revoke_worker(tx, name, service.now_us())
        await invitations.withdraw(tx, name)
        detail = "its tokens, its key and its invitations are revoked with it"
        await note(tx, service, caller, "worker.revoke", f"worker:{name}", detail)


def _says(rule: Rule) -> str:
    may = "may" if rule.effect == impersonation.ALLOW else "may not"
    return f"{rule.subject_kind} {rule.subject} {may} run dag {rule.dag_glob} as {rule.unix_user} in queue {rule.queue_glob}"


async def note(tx: Transaction, service: Service, caller: Caller, action: str, about: str, detail: str) -> None:
    await audit.accepted(tx, at=service.now_us(), caller=caller, action=action, about=about, detail=detail)

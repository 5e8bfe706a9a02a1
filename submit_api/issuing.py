"""Tokens: made, shown without their secret, revoked. Each change and its audit event are one transaction."""

from __future__ import annotations

from collections.abc import Sequence

from integrity.errors import NotFoundError
from submit_api import identity
from submit_api.administering import note
from submit_api.identity import Caller, NewToken
from submit_api.models.people import TokenRequest
from submit_api.refusals import InvalidRequestError
from submit_api.registry import people
from submit_api.registry.database import Transaction
from submit_api.registry.records import Token
from submit_api.service import Service


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

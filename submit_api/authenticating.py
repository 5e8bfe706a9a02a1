"""Who sends this request: by a token of ours, by one of an issuer that the settings trust, or by the signature of a worker's
key. Which token it is, is seen by its first letters (`submit_api.identity`).

Promise: who returns from here has proved it for this very request, against what is on record now: of an earlier one nothing
is remembered but rows of a database in which nobody has changed anything since (`registry.sqlite.Glancer`).
"""

from __future__ import annotations

import structlog
from aiohttp import web
from sqlalchemy.exc import SQLAlchemyError

from submit_api import identity, signed
from submit_api.identity import Caller
from submit_api.oidc import callers, verifying
from submit_api.refusals import NoSpaceError, UnavailableError
from submit_api.registry import people
from submit_api.service import Service
from vocabulary.keys import VerifyKey

_USE_IS_NEWS_US = 60_000_000  # a write for every request would be the dearest part of most
_log = structlog.get_logger("submit_api")


async def authenticate(service: Service, request: web.Request, address: str) -> Caller:
    """Whom the bearer token or the signature is of. Raises `UnauthenticatedError`; `EpochError` and `TooManyRequestsError` for
    a signature; `FetchError` when an issuer's keys are not to be had."""
    if signed.is_signed(request):
        return await _of_a_worker(service, request, address)
    text = identity.bearer(request.headers.get("Authorization"))
    if text.startswith(identity.PREFIX) or not service.issuers:
        return await by_token(service, text, address)
    return await _of_an_issuer(service, text, address)


async def by_token(service: Service, text: str, address: str) -> Caller:
    """By a token of ours. Raises `UnauthenticatedError`."""
    token_id, secret = identity.read(text)
    async with service.database.glance() as tx:
        found, groups = await people.token_and_groups(tx, token_id)
    token = identity.check(found, token_id, secret, service.now_us())
    if service.now_us() - (token.last_used_at or 0) >= _USE_IS_NEWS_US:
        await _note_use(service, token.token_id)
    return Caller(
        principal=token.principal,
        kind=token.kind,
        admin=token.admin,
        token_id=token.token_id,
        address=address,
        groups=groups if token.kind == identity.USER else frozenset(),
        scopes=tuple(token.scopes),
        via=token.via,
    )


async def _of_a_worker(service: Service, request: web.Request, address: str) -> Caller:
    claimed = signed.read(service, request)
    async with service.database.glance() as tx:
        worker = await people.worker_of_key(tx, claimed.key_id)
    if worker is None or worker.request_key is None:
        raise signed.unknown(claimed)
    signed.accept(service, claimed, VerifyKey(worker.request_key))
    return identity.worker(worker.name, claimed.key_id, address, worker)


async def _of_an_issuer(service: Service, text: str, address: str) -> Caller:
    limits = service.settings.oidc
    token = await verifying.verify(text, service.issuers, limits, now_us=service.now_us())
    principal = callers.principal_of(token)
    async with service.database.glance() as tx:
        groups = await people.groups_of(tx, principal)
    return callers.caller(token, principal, groups, address)


async def _note_use(service: Service, token_id: str) -> None:
    """A full disk must not keep anybody from reading: that it was not noted is for the operator."""
    try:
        async with service.database.write() as tx:
            await people.note_use(tx, token_id, service.now_us())
    except (SQLAlchemyError, UnavailableError, NoSpaceError) as failure:
        _log.error("use_not_noted", token_id=token_id, error=type(failure).__name__)

"""`POST /v1/tokens/exchange`: a token of CI's issuer for one of ours.

Promise: in one transaction the publisher is found, pinned to the repository's ids where it was not yet, the presented token is
used up, and the new token and its audit events are written. It lasts fifteen minutes, pushes what begins with the publisher's
prefix, and everything that is done with it is audited with the run that it came by. A refusal uses nothing up.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from integrity.errors import ReplayError
from submit_api import audit, issuing
from submit_api.identity import USER, Caller, NewToken
from submit_api.oidc import verifying
from submit_api.oidc.verifying import VerifiedToken
from submit_api.publishing import matching, runs
from submit_api.refusals import NoPublisherError
from submit_api.registry import publishers
from submit_api.registry.records import Publisher
from submit_api.scopes import ARCHIVE
from submit_api.service import Service

PUSH_TOKEN_US = 15 * 60 * 1_000_000
KEPT_US = 7 * 86_400 * 1_000_000  # so long the rows of exchanged tokens are listed; the audit log keeps what they did
MAX_ID_CHARS = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanged:
    """What the caller gets, and may know of it."""

    token: NewToken
    principal: str
    scopes: tuple[str, ...]
    expires_at: int


async def exchange(service: Service, text: str, address: str) -> Exchanged:
    """Raises `UnauthenticatedError` for a token that is not true, `NoPublisherError`, `ReplayError`; `FetchError` when
    its issuer's keys are not to be had."""
    now = service.now_us()
    presented = await verifying.verify(text, service.issuers, service.settings.oidc, now_us=now)
    run = runs.read(presented)
    used = _once(presented)
    leeway = service.settings.oidc.leeway_seconds
    async with service.database.write() as tx:
        publisher = matching.match(await publishers.of_repository(tx, presented.issuer.issuer, run.repository), run)
        if not await publishers.use(tx, used, int((presented.expires_at + 2 * leeway) * 1_000_000), now):
            raise ReplayError("this token was exchanged already: each is good for one exchange, ask CI for a new one")
        await publishers.note_use(tx, publisher.id, run.repository_id, run.owner_id, now)
        await publishers.forget_tokens(tx, now - KEPT_US)
        via = f"publisher {publisher.id}: {run}"
        scopes = (f"{ARCHIVE}:{publisher.archive_prefix}",)
        caller = _caller(publisher, address, via)
        await audit.accepted(
            tx,
            at=now,
            caller=caller,
            action="token.exchange",
            about=f"publisher:{publisher.id}",
            detail=_first(publisher),
        )
        made = await issuing.issue(
            tx,
            service,
            caller,
            principal=publisher.principal,
            kind=USER,
            admin=False,
            expires_at=now + PUSH_TOKEN_US,
            scopes=scopes,
            publisher=publisher.id,
        )
    return Exchanged(token=made, principal=publisher.principal, scopes=scopes, expires_at=now + PUSH_TOKEN_US)


def _once(token: VerifiedToken) -> str:
    """What stands for this token among the used ones."""
    found = token.claims.get("jti")
    if not isinstance(found, str) or not 0 < len(found) <= MAX_ID_CHARS or not found.isprintable():
        raise NoPublisherError("the token has no id of its own (jti), so it could be used twice: it is not exchanged")
    return hashlib.sha512(f"dagseal/oidc/v1\n{token.issuer.issuer}\n{found}".encode()).hexdigest()


def _first(publisher: Publisher) -> str:
    return (
        "" if publisher.repository_id and publisher.owner_id else "pinned to the ids of this repository and its owner"
    )


def _caller(publisher: Publisher, address: str, via: str) -> Caller:
    return Caller(
        principal=publisher.principal,
        kind=USER,
        admin=False,
        token_id="",
        address=address,
        groups=frozenset(),
        via=via,
    )

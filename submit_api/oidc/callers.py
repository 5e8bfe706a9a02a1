"""Who calls with a verified token of another issuer: a caller like any user, under a name that no local principal can have.

    ada of the issuer that is named corp        corp:ada
    a group that it tells of, where believed    corp:@engineers
    whom an administrator mapped                the local principal that was written down for this very value

Promise: nobody is an administrator or a worker by what a token says. A value that is no name as it stands is refused, not
bent into one: two people would else meet in one name.
"""

from __future__ import annotations

from typing import Any

from integrity import names
from integrity.errors import MalformedError
from submit_api.identity import USER, Caller
from submit_api.oidc.section import MAPPED, NOBODY, IssuerSection
from submit_api.oidc.verifying import VerifiedToken
from submit_api.refusals import UnauthenticatedError

TOKEN_ID = "oidc"  # noqa: S105 - what the audit log has where a local token's id stands
MAX_GROUPS = 200


def principal_of(token: VerifiedToken) -> str:
    """The principal. Raises `UnauthenticatedError` when this issuer's people may not sign in, or this one cannot."""
    issuer, claim = token.issuer, token.issuer.principal_claim
    if issuer.sign_in == NOBODY:
        raise UnauthenticatedError(
            f"tokens of issuer {issuer.name} are for trusted publishing: exchange this one at /v1/tokens/exchange"
        )
    value = token.claims.get(claim)
    if not isinstance(value, str) or not value:
        raise UnauthenticatedError(f"the token of issuer {issuer.name} does not say who calls: it lacks {claim!r}")
    # Whoever may write an address into a profile has not shown that it is theirs.
    if claim == "email" and token.claims.get("email_verified") is not True:
        raise UnauthenticatedError(f"issuer {issuer.name} does not say that this address was verified (email_verified)")
    if value in issuer.principals:
        return issuer.principals[value]
    if issuer.sign_in == MAPPED:
        raise UnauthenticatedError(
            f"issuer {issuer.name} says {value[:100]!r}, who is not listed here: ask an administrator to map {claim!r}"
        )
    try:
        return names.check("principal", f"{issuer.name}:{names.check('local principal', value)}")
    except MalformedError:
        raise UnauthenticatedError(
            f"issuer {issuer.name} says {value[:100]!r}, which is no name for a principal: "
            "ask an administrator to map it, or to choose another principal_claim"
        ) from None


def groups_of(token: VerifiedToken) -> frozenset[str]:
    """The groups that this issuer is believed about: none without `groups_claim`. Those that are no names are left out."""
    found: Any = token.claims.get(token.issuer.groups_claim) if token.issuer.groups_claim else None
    if not isinstance(found, list):
        return frozenset()
    return frozenset(name for value in found[:MAX_GROUPS] if (name := _group(token.issuer, value)))


def _group(issuer: IssuerSection, value: object) -> str:
    try:
        return names.check("group", f"{issuer.name}:@{names.check('local principal', value)}")
    except MalformedError:
        return ""


def caller(token: VerifiedToken, principal: str, local_groups: frozenset[str], address: str) -> Caller:
    return Caller(
        principal=principal,
        kind=USER,
        admin=False,
        token_id=TOKEN_ID,
        address=address,
        groups=local_groups | groups_of(token),
        scopes=tuple(token.issuer.scopes),
    )

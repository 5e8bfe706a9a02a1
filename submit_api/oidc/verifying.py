"""Is this token a true one, for us, now? The checks of a JSON Web Token (RFC 7519, 8725), numbered, in one function.

Promise: nothing of a token is believed before check 9 but where to look for its key; `VerifiedToken` is made at the end alone.
Errors name the check that failed and never show the token.

Not checked, and why: `nonce` and `at_hash` (there is no browser here that asked for the token); `azp` (the one audience is
us); whether the issuer revoked it meanwhile (`max_lifetime_seconds` bounds that).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

from jwt.algorithms import get_default_algorithms

from submit_api.oidc.keysets import MAX_KEY_ID_CHARS, Key
from submit_api.oidc.section import IssuerSection, OidcSection
from submit_api.refusals import UnauthenticatedError

_ALGORITHMS = get_default_algorithms()  # which of them, and with which key, is decided below
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")
_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
MAX_SUBJECT_CHARS = 255


class KeySource(Protocol):
    """One issuer's published keys."""

    async def find(self, kid: str) -> Key:
        """Raises `UnauthenticatedError`, or `FetchError` when the issuer cannot be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedIssuer:
    """What was said of an issuer, and where its keys come from."""

    settings: IssuerSection
    keys: KeySource


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedToken:
    """Claims that this issuer signed for us, good now."""

    issuer: IssuerSection
    claims: Mapping[str, Any] = field(repr=False)
    expires_at: float


async def verify(
    token: str, issuers: Mapping[str, TrustedIssuer], limits: OidcSection, *, now_us: int
) -> VerifiedToken:
    """`issuers` by their URL. Raises `UnauthenticatedError`; `FetchError` when the issuer's keys are not to be had."""
    now = now_us / 1_000_000

    # 1 Size, before anything is spent on it.
    if len(token) > limits.max_token_chars:
        _refuse(f"it is longer than {limits.max_token_chars} characters")

    # 2 One way to read it: three parts of canonical base64url, two of them JSON objects without a repeated name. Else
    #   what is verified here and what is read there could differ.
    parts = token.split(".")
    if len(parts) != 3:
        _refuse("it is not three parts with dots between them")
    header, claims = _object(parts[0], "header"), _object(parts[1], "payload")
    signature = _bytes(parts[2], "signature")

    # 3 A JSON Web Token and nothing that asks for more: `crit` and `b64` change what is signed, `cty` nests another token,
    #   `typ` keeps logout and event tokens of the same issuer apart. `jku`, `x5u`, `jwk` and `x5c`, by which a token would
    #   bring its own key, are not read anywhere.
    if header.keys() & {"crit", "b64", "cty", "zip", "enc"}:
        _refuse("its header asks for what is not done here (crit, b64, cty, zip or enc)")
    if str(header.get("typ", "JWT")).lower() not in _TYPES:
        _refuse("its header says that it is a token of another kind (typ)")

    # 4 The issuer is one of ours, letter by letter. Its keys alone are looked at: the same key id at another one is no help.
    found = issuers.get(claims["iss"]) if isinstance(claims.get("iss"), str) else None
    if found is None:
        _refuse("its issuer is none that is trusted here (iss)")
    issuer = found.settings

    # 5 The algorithm is one that was allowed to this issuer; the list can hold neither `none` nor any HMAC, by which its
    #   public key would do as a secret.
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in issuer.algorithms:
        _refuse(f"issuer {issuer.name} may sign with {', '.join(issuer.algorithms)} only (alg)")

    # 6 It names its key. Trying all of them would be work for nothing and hide which one was meant.
    kid = header.get("kid")
    if not isinstance(kid, str) or not 0 < len(kid) <= MAX_KEY_ID_CHARS:
        _refuse("its header does not name a key (kid)")

    # 7 The issuer publishes exactly one signing key of that id.
    key = await found.keys.find(kid)

    # 8 That key is for this algorithm: its type decides, not the token.
    if algorithm not in key.algorithms:
        _refuse(f"the key that it names is not for {algorithm} (alg)")

    # 9 The signature, over the bytes as they came.
    if not _ALGORITHMS[algorithm].verify(token.rpartition(".")[0].encode("ascii"), key.public, signature):
        _refuse("its signature does not hold")

    # 10 For us alone: whoever else it is for could bring it here.
    audience = claims.get("aud")
    if audience not in (issuer.audience, [issuer.audience]):
        _refuse(f"it is to be for {issuer.audience!r} and for nobody else (aud)")

    # 11 Its time: begun, not over, and not meant to last for years. A little leeway for clocks.
    expires, issued = _time(claims, "exp"), _time(claims, "iat")
    if now >= expires + limits.leeway_seconds:
        _refuse("it has expired (exp): get a new one")
    if max(issued, _time(claims, "nbf") if "nbf" in claims else 0) > now + limits.leeway_seconds:
        _refuse("its time has not come yet (iat, nbf): compare the clocks")
    if expires - issued > limits.max_lifetime_seconds:
        _refuse(f"it was made for longer than {limits.max_lifetime_seconds} seconds (exp, iat)")

    # 12 It is about somebody.
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT_CHARS:
        _refuse("it says not whom it is about (sub)")
    return VerifiedToken(issuer=issuer, claims=claims, expires_at=expires)


def _refuse(why: str) -> NoReturn:
    raise UnauthenticatedError(f"the token of another issuer is not taken: {why}")


def _bytes(part: str, what: str) -> bytes:
    """Exactly one text stands for each bytes. Raises `UnauthenticatedError`."""
    if _BASE64URL.fullmatch(part) and len(part) % 4 != 1:
        found = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
        if base64.urlsafe_b64encode(found).decode().rstrip("=") == part:
            return found
    _refuse(f"its {what} is not base64url")


def _object(part: str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(_bytes(part, what), object_pairs_hook=_distinct, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        _refuse(f"its {what} is not JSON, or says something twice")
    if not isinstance(found, dict):
        _refuse(f"its {what} is not an object")
    return found


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _time(claims: Mapping[str, Any], name: str) -> float:
    """Seconds since 1970. Raises `UnauthenticatedError`."""
    value: Any = claims.get(name)
    if type(value) not in (int, float) or not 0 <= value < 2**53:
        _refuse(f"it lacks a number of seconds ({name})")
    return float(value)

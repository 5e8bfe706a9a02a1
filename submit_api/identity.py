"""Who calls: bearer tokens `dgs_<id>_<secret>_<checksum>`.

The id (12 characters) finds the row, the secret (43 characters, 256 bits) proves it, the checksum (6 hexadecimal
characters of SHA-512 over what precedes it) lets a scanner or a person see a broken copy without asking anybody. Only
SHA-512 of the secret is stored; it is compared in constant time, also when there is no such token. Underscores
separate, so no part holds one.

A token of another issuer (`submit_api.oidc`) begins with a JSON object in base64url, and `dgs_` is the beginning of none; it
has two dots, and none of ours has one. So the first four letters say which of the two a text is meant to be.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass

from submit_api.effects import Randomness
from submit_api.refusals import UnauthenticatedError
from submit_api.registry.records import Token

PREFIX = "dgs_"
_TOKEN = re.compile(r"dgs_([a-z2-7]{12})_([A-Za-z0-9]{43,64})_([0-9a-f]{6})")
_NOBODY = "0" * 128
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
MAX_TOKEN_CHARS = 100
USER, WORKER = "user", "worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """An authenticated caller. `kind` is `user` or `worker`; a worker's principal is the worker's name. Without `scopes` the
    token has no limit (`submit_api.scopes`). `via` is the run of CI that the token was made for, where there was one."""

    principal: str
    kind: str
    admin: bool
    token_id: str
    address: str
    groups: frozenset[str]
    scopes: tuple[str, ...] = ()
    via: str = ""

    @property
    def seen_by(self) -> tuple[str, frozenset[str]] | None:
        """Whose eyes a list is for: principal and groups; None for an administrator, who sees all."""
        return None if self.admin else (self.principal, self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """`text` is shown once and kept nowhere."""

    token_id: str
    secret_hash: str
    text: str

    def __repr__(self) -> str:
        return f"NewToken(token_id={self.token_id!r})"


def create(randomness: Randomness) -> NewToken:
    token_id = base64.b32encode(randomness.token_bytes(8)).decode().lower()[:12]
    number = int.from_bytes(randomness.token_bytes(40), "big")
    secret = ""
    for _ in range(43):
        number, digit = divmod(number, len(_ALPHABET))
        secret += _ALPHABET[digit]
    stem = f"dgs_{token_id}_{secret}"
    return NewToken(token_id=token_id, secret_hash=_hash(secret), text=f"{stem}_{_checksum(stem)}")


def bearer(header: str | None) -> str:
    """The token of an `Authorization` header. Raises `UnauthenticatedError`."""
    scheme, _, text = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not text.strip():
        raise UnauthenticatedError("send a token as 'Authorization: Bearer dgs_…'")
    return text.strip()


def read(text: str) -> tuple[str, str]:
    """Id and secret of one of our tokens. Raises `UnauthenticatedError`, never showing the token."""
    found = _TOKEN.fullmatch(text) if len(text) <= MAX_TOKEN_CHARS * 2 else None
    if not found:
        raise UnauthenticatedError("this is not a dagseal token: it is written dgs_<id>_<secret>_<checksum>")
    if not hmac.compare_digest(_checksum(text.rpartition("_")[0]), found[3]):
        raise UnauthenticatedError("the token's checksum does not hold: it was not copied whole")
    return found[1], found[2]


def check(token: Token | None, token_id: str, secret: str, now_us: int) -> Token:
    """The row of this id, if the secret opens it now. Raises `UnauthenticatedError`."""
    agrees = hmac.compare_digest(token.secret_hash if token else _NOBODY, _hash(secret))
    if token is None or not agrees:
        raise UnauthenticatedError("the token is not valid here", token_id)
    if token.revoked_at is not None:
        raise UnauthenticatedError(f"token {token.token_id} was revoked: ask an administrator for a new one")
    if token.expires_at is not None and now_us >= token.expires_at:
        raise UnauthenticatedError(f"token {token.token_id} has expired: ask an administrator for a new one")
    return token


def _hash(secret: str) -> str:
    return hashlib.sha512(b"dagseal/token/v1\n" + secret.encode()).hexdigest()


def _checksum(stem: str) -> str:
    return hashlib.sha512(stem.encode()).hexdigest()[:6]

"""Who calls: bearer tokens `dgs_<id>_<secret>_<checksum>`.

The id (12 characters) finds the row, the secret (43 characters, 256 bits) proves it, the checksum (6 hexadecimal
characters of SHA-512 over what precedes it) lets a scanner or a person see a broken copy without asking anybody. Only
SHA-512 of the secret is stored; it is compared in constant time, also when there is no such token. Underscores
separate, so no part holds one. With `dgj_` it is a token that one worker joins with, once (`submit_api.joining`).

A token of another issuer (`submit_api.oidc`) begins with a JSON object in base64url, and `dgs_` is the beginning of none; it
has two dots, and none of ours has one. So the first four letters say which of the two a text is meant to be.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass, field

from submit_api.effects import Randomness
from submit_api.refusals import UnauthenticatedError
from submit_api.registry.records import Token, Worker

PREFIX, JOIN_PREFIX = "dgs_", "dgj_"
_TOKEN = re.compile(r"(?:dgs|dgj)_([a-z2-7]{12})_([A-Za-z0-9]{43,64})_([0-9a-f]{6})")
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
    enrolled: Worker | None = field(default=None, repr=False)  # who signed this request, as it was a moment ago

    @property
    def seen_by(self) -> tuple[str, frozenset[str]] | None:
        """Whose eyes a list is for: principal and groups; None for an administrator, who sees all."""
        return None if self.admin else (self.principal, self.groups)


def worker(name: str, key_id: str, address: str, enrolled: Worker | None = None) -> Caller:
    """A worker that proved to have this request key. In the audit log the beginning of its id stands where a token's would."""
    return Caller(
        principal=name,
        kind=WORKER,
        admin=False,
        token_id=f"key:{key_id[:8]}",
        address=address,
        groups=frozenset(),
        enrolled=enrolled,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """`text` is shown once and kept nowhere."""

    token_id: str
    secret_hash: str
    text: str

    def __repr__(self) -> str:
        return f"NewToken(token_id={self.token_id!r})"


def create(randomness: Randomness, prefix: str = PREFIX) -> NewToken:
    token_id = base64.b32encode(randomness.token_bytes(8)).decode().lower()[:12]
    number = int.from_bytes(randomness.token_bytes(40), "big")
    secret = ""
    for _ in range(43):
        number, digit = divmod(number, len(_ALPHABET))
        secret += _ALPHABET[digit]
    stem = f"{prefix}{token_id}_{secret}"
    return NewToken(token_id=token_id, secret_hash=_hash(secret), text=f"{stem}_{_checksum(stem)}")


def bearer(header: str | None) -> str:
    """The token of an `Authorization` header. Raises `UnauthenticatedError`."""
    scheme, _, text = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not text.strip():
        raise UnauthenticatedError("send a token as 'Authorization: Bearer dgs_…'")
    return text.strip()


def read(text: str, prefix: str = PREFIX) -> tuple[str, str]:
    """Id and secret of one of our tokens. Raises `UnauthenticatedError`, never showing the token."""
    found = _TOKEN.fullmatch(text) if len(text) <= MAX_TOKEN_CHARS * 2 and text.startswith(prefix) else None
    if not found:
        what = "dagseal token" if prefix == PREFIX else "token to join with"
        raise UnauthenticatedError(f"this is not a {what}: it is written {prefix}<id>_<secret>_<checksum>")
    if not hmac.compare_digest(_checksum(text.rpartition("_")[0]), found[3]):
        raise UnauthenticatedError("the token's checksum does not hold: it was not copied whole")
    return found[1], found[2]


def opens(secret: str, secret_hash: str | None) -> bool:
    """Whether this is the secret of that hash, found out in a time that tells nothing."""
    return hmac.compare_digest(secret_hash or _NOBODY, _hash(secret)) and secret_hash is not None


def check(token: Token | None, token_id: str, secret: str, now_us: int) -> Token:
    """The row of this id, if the secret opens it now. Raises `UnauthenticatedError`."""
    agrees = opens(secret, token.secret_hash if token else None)
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

"""An issuer's published keys (RFC 7517), without I/O.

Promise: a key that is here is public, asymmetric, strong, for signatures, and bound to the algorithms of its own type. Keys of
other kinds are passed over, as the RFC asks; also one whose private half was published with it. Two usable keys of one id are
kept as none: whoever names that id is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeAlias

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from integrity.errors import FetchError

PublicKey: TypeAlias = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

MAX_KEYS = 100
MAX_KEY_ID_CHARS = 200
RSA_BITS = range(2048, 8193)
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
# (kty, crv): what such a key can sign with, and who reads it.
_KINDS: dict[tuple[str, str], tuple[frozenset[str], Any]] = {
    ("RSA", ""): (frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}), RSAAlgorithm),
    ("EC", "P-256"): (frozenset({"ES256"}), ECAlgorithm),
    ("EC", "P-384"): (frozenset({"ES384"}), ECAlgorithm),
    ("EC", "P-521"): (frozenset({"ES512"}), ECAlgorithm),
    ("OKP", "Ed25519"): (frozenset({"EdDSA"}), OKPAlgorithm),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One public key, and the algorithms that it may verify."""

    kid: str
    algorithms: frozenset[str]
    public: PublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySet:
    """The usable keys by their id. `doubled` are the ids that more than one usable key has."""

    keys: dict[str, Key]
    doubled: frozenset[str]

    def knows(self, kid: str) -> bool:
        return kid in self.keys or kid in self.doubled


def read(data: bytes) -> KeySet:
    """The key set in these bytes. Raises `FetchError` when it is none, or holds no key that can be used."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise FetchError("what the issuer published as its keys is not JSON") from None
    listed = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise FetchError(f"what the issuer published is not a set of at most {MAX_KEYS} keys")
    keys: dict[str, Key] = {}
    doubled: set[str] = set()
    for key in filter(None, map(_usable, listed)):
        if key.kid in keys:
            doubled.add(key.kid)
        keys[key.kid] = key
    if not keys:
        raise FetchError("the issuer published no key that can be used")
    return KeySet(
        keys={kid: key for kid, key in keys.items() if kid not in doubled},
        doubled=frozenset(doubled),
    )


def _usable(jwk: object) -> Key | None:
    if not isinstance(jwk, dict) or _PRIVATE & jwk.keys():
        return None
    kid, kty, crv = jwk.get("kid"), jwk.get("kty"), jwk.get("crv", "")
    if not isinstance(kid, str) or not 0 < len(kid) <= MAX_KEY_ID_CHARS:
        return None
    operations = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    if not isinstance(kty, str) or not isinstance(crv, str) or (kty, crv) not in _KINDS:
        return None
    algorithms, kind = _KINDS[kty, crv]
    if "alg" in jwk:
        algorithms = algorithms & {str(jwk["alg"])}
    try:
        public = kind.from_jwk(jwk)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, OverflowError):
        return None
    if not isinstance(public, PublicKey) or not algorithms:
        return None
    if isinstance(public, RSAPublicKey) and public.key_size not in RSA_BITS:
        return None
    return Key(kid=kid, algorithms=algorithms, public=public)

"""Keys: Ed25519 to sign, X25519 to seal. The only file of ours that touches `cryptography`.

A signing key speaks for one party (the API, one launcher). Its `key_id` is the first 32 bytes, in hex, of
SHA-512("dagseal/key/v1\\n" + the 32 public bytes). A grant is sealed to a launcher with HPKE (RFC 9180, base mode:
DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM); `info` binds it to one ticket. Rows are kept encrypted with
AES-256-GCM (NIST SP 800-38D) under a random 96-bit nonce; the associated data names the row.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from integrity.errors import MalformedError, SignatureError

KEY_BYTES = 32
_SIGN_BIT = 1 << 255
_PRIME = 2**255 - 19
# The y-coordinates of the points of small order, also written unreduced: under such a key anybody can sign.
_WEAK_Y = frozenset(
    [
        *(0, 1, _PRIME - 1, _PRIME, _PRIME + 1),
        int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"),
        int.from_bytes(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"),
    ]
)
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """A public Ed25519 key (RFC 8032), 32 raw bytes."""

    raw: bytes

    def __post_init__(self) -> None:
        _sized(self.raw, "a public signing key")
        if int.from_bytes(self.raw, "little") % _SIGN_BIT in _WEAK_Y:
            raise MalformedError("this public signing key is a point of small order: no honest program makes it")

    @property
    def key_id(self) -> str:
        """64 hexadecimal characters: what a person compares and a signature names."""
        return hashlib.sha512(b"dagseal/key/v1\n" + self.raw).hexdigest()[:64]

    def verify(self, signature: bytes, message: bytes) -> None:
        """Raise `SignatureError` unless this key signed `message`."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except InvalidSignature:
            raise SignatureError(f"the signature is not one of key {self.key_id[:16]}… over these bytes") from None


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private Ed25519 key: its 32-byte seed, and what is derived from it once."""

    seed: bytes = field(repr=False)
    public: VerifyKey = field(init=False, repr=False, compare=False)
    _key: Ed25519PrivateKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _sized(self.seed, "a signing key")
        key = Ed25519PrivateKey.from_private_bytes(self.seed)
        object.__setattr__(self, "_key", key)
        object.__setattr__(self, "public", VerifyKey(key.public_key().public_bytes_raw()))

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(os.urandom(KEY_BYTES))

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature of `message`."""
        return self._key.sign(message)


@dataclass(frozen=True, slots=True)
class SealTo:
    """A public X25519 key: whom a grant is sealed to."""

    raw: bytes

    def __post_init__(self) -> None:
        _sized(self.raw, "a public sealing key")
        try:
            X25519PrivateKey.from_private_bytes(bytes(KEY_BYTES)).exchange(X25519PublicKey.from_public_bytes(self.raw))
        except ValueError:
            raise MalformedError(
                "this public sealing key is a point of small order: no honest program makes it"
            ) from None

    def seal(self, plaintext: bytes, *, info: bytes) -> bytes:
        """HPKE: encapsulated key and ciphertext, for the holder of the private key and this `info` only."""
        return _SUITE.encrypt(plaintext, X25519PublicKey.from_public_bytes(self.raw), info=info)


@dataclass(frozen=True, slots=True)
class SealingKey:
    """A private X25519 key: its 32 raw bytes, and what is derived from them once."""

    raw: bytes = field(repr=False)
    _key: X25519PrivateKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _sized(self.raw, "a sealing key")
        object.__setattr__(self, "_key", X25519PrivateKey.from_private_bytes(self.raw))

    @classmethod
    def generate(cls) -> SealingKey:
        return cls(os.urandom(KEY_BYTES))

    @property
    def public(self) -> SealTo:
        return SealTo(self._key.public_key().public_bytes_raw())

    def open(self, sealed: bytes, *, info: bytes) -> bytes:
        """Undo `SealTo.seal`. Raises `SignatureError` for other bytes, another key or another `info`."""
        try:
            return _SUITE.decrypt(sealed, self._key, info=info)
        except (InvalidTag, ValueError):
            raise SignatureError("this is not sealed to this launcher for this ticket") from None


@dataclass(frozen=True, slots=True)
class RowKey:
    """A 256-bit key under which secrets rest in the database."""

    raw: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _sized(self.raw, "a row key")

    @classmethod
    def generate(cls) -> RowKey:
        return cls(os.urandom(KEY_BYTES))

    @property
    def key_id(self) -> str:
        """32 hexadecimal characters, which tell nothing of the key."""
        return hashlib.sha512(b"dagseal/row-key/v1\n" + self.raw).hexdigest()[:32]

    def encrypt(self, plaintext: bytes, *, row: bytes) -> bytes:
        """Nonce and ciphertext; `row` names where it belongs."""
        nonce = os.urandom(12)
        return nonce + AESGCM(self.raw).encrypt(nonce, plaintext, row)

    def decrypt(self, stored: bytes, *, row: bytes) -> bytes:
        """Undo `encrypt`. Raises `SignatureError` when the bytes were changed or moved to another row."""
        try:
            return AESGCM(self.raw).decrypt(stored[:12], stored[12:], row)
        except (InvalidTag, ValueError):
            raise SignatureError("a stored secret was changed, moved to another row, or is under another key") from None


def fingerprint(verify_key: VerifyKey, sealing_key: SealTo) -> str:
    """What an administrator compares before a launcher is trusted: 64 hexadecimal characters over *both* its public keys,
    so that whoever relays them can exchange neither. SHA-512("dagseal/launcher/v1\n" + verify key + sealing key), cut."""
    return hashlib.sha512(b"dagseal/launcher/v1\n" + verify_key.raw + sealing_key.raw).hexdigest()[:64]


class KeyRing:
    """The public keys that a reader trusts, by key id. An empty ring is refused: it would trust nobody, or all."""

    def __init__(self, keys: list[VerifyKey]) -> None:
        if not keys:
            raise MalformedError("a key ring needs at least one key")
        self._keys = {key.key_id: key for key in keys}

    def find(self, key_id: str) -> VerifyKey:
        """The key of that id. Raises `SignatureError` when it is not trusted."""
        try:
            return self._keys[key_id]
        except KeyError:
            raise SignatureError(f"key {key_id[:16]!r}… is not one of the {len(self._keys)} trusted here") from None


def _sized(raw: bytes, what: str) -> None:
    if len(raw) != KEY_BYTES:
        raise MalformedError(f"{what} is {KEY_BYTES} bytes, not {len(raw)}")

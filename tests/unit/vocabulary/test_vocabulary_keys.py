"""Keys: agreement with the vectors of the standards, and what is not a key."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from integrity.digests import Digest
from integrity.errors import MalformedError, SignatureError
from vocabulary import envelopes, keys

KEY = keys.SigningKey(b"\1" * 32)
SEALING = keys.SealingKey(b"\4" * 32)
ROW = keys.RowKey(b"\5" * 32)

RFC_8032 = [  # section 7.1: seed, public key, message, signature
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe"
        "24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302a"
        "eeb00d291612bb0c00",
    ),
]


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC_8032)
def test_ed25519_agrees_with_rfc_8032(seed: str, public: str, message: str, signature: str) -> None:
    key = keys.SigningKey(bytes.fromhex(seed))
    assert key.public.raw.hex() == public
    assert key.sign(bytes.fromhex(message)).hex() == signature
    key.public.verify(bytes.fromhex(signature), bytes.fromhex(message))


def test_pae_agrees_with_the_dsse_specification() -> None:
    assert envelopes.pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert envelopes.pae("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "


def test_repr_digest_agrees_with_rfc_9530() -> None:
    field = "sha-512=:YMAam51Jz/jOATT6/zvHrLVgOYTGFy1d6GJiOHTohq4yP+pgk4vf2aCsyRZOtw8MjkM7iw7yZ/WkppmM44T3qg==:"
    assert Digest.of(b'{"hello": "world"}\n').repr_digest == field
    assert Digest.from_repr_digest(field) == Digest.of(b'{"hello": "world"}\n')


def labeled_extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, "sha256")


def labeled_expand(suite: bytes, secret: bytes, label: bytes, info: bytes, length: int) -> bytes:
    return hmac.digest(secret, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info + b"\1", "sha256")[:length]


def open_by_rfc_9180(sealed: bytes, private: bytes, info: bytes) -> bytes:
    """Sections 4.1, 5.1 and 5.2, base mode, written out: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM."""
    kem, suite = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x02"
    key = X25519PrivateKey.from_private_bytes(private)
    shared = key.exchange(X25519PublicKey.from_public_bytes(sealed[:32]))
    context = sealed[:32] + key.public_key().public_bytes_raw()
    secret = labeled_expand(kem, labeled_extract(kem, b"", b"eae_prk", shared), b"shared_secret", context, 32)
    context = b"\0" + labeled_extract(suite, b"", b"psk_id_hash", b"") + labeled_extract(suite, b"", b"info_hash", info)
    secret = labeled_extract(suite, secret, b"secret", b"")
    aead = AESGCM(labeled_expand(suite, secret, b"key", context, 32))
    return aead.decrypt(labeled_expand(suite, secret, b"base_nonce", context, 12), sealed[32:], b"")


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_sealing_is_hpke_of_rfc_9180(plaintext: bytes, info: bytes) -> None:
    sealed = SEALING.public.seal(plaintext, info=info)
    assert open_by_rfc_9180(sealed, SEALING.raw, info) == SEALING.open(sealed, info=info) == plaintext


def test_sealed_bytes_open_only_whole_and_for_their_purpose() -> None:
    sealed = SEALING.public.seal(b"secret", info=b"ticket")
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        wrong = [sealed[:at]] if at == 31 else [sealed[:at], bytes(changed)]
        for other in wrong:
            with pytest.raises(SignatureError):
                SEALING.open(other, info=b"ticket")
    for key, info in ((SEALING, b"other"), (keys.SealingKey.generate(), b"ticket")):
        with pytest.raises(SignatureError):
            key.open(sealed, info=info)


def test_rows_open_only_whole_and_in_their_place() -> None:
    stored = ROW.encrypt(b"secret", row=b"connections/1")
    assert ROW.decrypt(stored, row=b"connections/1") == b"secret"
    assert ROW.encrypt(b"secret", row=b"connections/1") != stored
    with pytest.raises(SignatureError):
        ROW.decrypt(stored, row=b"connections/2")
    with pytest.raises(SignatureError):
        keys.RowKey.generate().decrypt(stored, row=b"connections/1")
    for at in range(len(stored)):
        changed = bytearray(stored)
        changed[at] ^= 1
        for other in (stored[:at], bytes(changed)):
            with pytest.raises(SignatureError):
                ROW.decrypt(other, row=b"connections/1")


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_a_signature_is_for_one_message_and_one_key(one: bytes, two: bytes) -> None:
    signature = KEY.sign(one)
    KEY.public.verify(signature, one)
    if one != two:
        with pytest.raises(SignatureError):
            KEY.public.verify(signature, two)
    with pytest.raises(SignatureError):
        keys.SigningKey.generate().public.verify(signature, one)


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65)])
def test_not_a_signature(signature: bytes) -> None:
    with pytest.raises(SignatureError):
        KEY.public.verify(signature, b"")


@pytest.mark.parametrize("kind", [keys.VerifyKey, keys.SigningKey, keys.SealTo, keys.SealingKey, keys.RowKey])
@pytest.mark.parametrize("raw", [b"", bytes(31), bytes(33)])
def test_a_key_is_32_bytes(kind: type, raw: bytes) -> None:
    with pytest.raises(MalformedError, match="32 bytes"):
        kind(raw)


PRIME = 2**255 - 19
SMALL_ORDER = [
    *(y.to_bytes(32, "little") for y in (0, 1, PRIME - 1, PRIME, PRIME + 1, 1 | 1 << 255, (PRIME - 1) | 1 << 255)),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
]


@pytest.mark.parametrize("raw", SMALL_ORDER)
def test_a_signing_key_under_which_anybody_can_sign(raw: bytes) -> None:
    with pytest.raises(MalformedError, match="small order"):
        keys.VerifyKey(raw)


@pytest.mark.parametrize("raw", [bytes(32), b"\1" + bytes(31), (PRIME - 1).to_bytes(32, "little")])
def test_a_sealing_key_that_everybody_can_open(raw: bytes) -> None:
    with pytest.raises(MalformedError, match="small order"):
        keys.SealTo(raw)


def test_key_ids() -> None:
    raw = KEY.public.raw
    assert KEY.public.key_id == hashlib.sha512(b"dagseal/key/v1\n" + raw).hexdigest()[:64]
    assert keys.SigningKey.generate() != keys.SigningKey.generate()


def test_a_ring_trusts_what_it_holds() -> None:
    ring = keys.KeyRing([KEY.public])
    assert ring.find(KEY.public.key_id) == KEY.public
    with pytest.raises(SignatureError, match="not one of the 1 trusted"):
        ring.find("0" * 64)
    with pytest.raises(MalformedError, match="at least one key"):
        keys.KeyRing([])

"""Who wrote an archive: an author's own signature, which no server can make.

Signed is one statement, canonical JSON:

>>> statement("etl.py", Digest("c" * 128)).replace(b"c" * 128, b"...")
b'{"archive":"etl.py","digest":"sha512:...","v":1}'

in one of two forms, each of which names its public key (Ed25519). No byte of either can be changed, nor written otherwise:

    ours    canonical JSON `{"envelope": base64 of a DSSE envelope of the statement, "key": base64, "v": 1}`
    SSHSIG  what `ssh-keygen -Y sign -n dagseal.dev/author` writes (OpenSSH, PROTOCOL.sshsig): PEM-like armour in lines of 70
            around magic, version 1, public key, namespace, nothing, "sha512", signature; only of `ssh-ed25519` keys

What a signature does not say: when it was made, as which release, or that the author still means it. Who has the server can
record again whatever an author ever signed under this name; to take a release back there is the revocation.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Collection
from dataclasses import dataclass

from integrity import canonical, names
from integrity.digests import Digest
from integrity.errors import MalformedError, SignatureError
from integrity.fields import Fields, from_base64, to_base64
from vocabulary import envelopes
from vocabulary.keys import KEY_BYTES, KeyRing, SigningKey, VerifyKey

PAYLOAD_TYPE = "application/vnd.dagseal.author.v1+json"
NAMESPACE = "dagseal.dev/author"
MAX_BYTES = 3072  # of a signature in either form: 4 KiB as base64
_BEGIN, _END = b"-----BEGIN SSH SIGNATURE-----\n", b"-----END SSH SIGNATURE-----\n"
_LINE_CHARS = 70
_MAGIC, _VERSION, _HASH, _KEY_TYPE = b"SSHSIG", 1, b"sha512", b"ssh-ed25519"
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedAuthor:
    """`key` signed that `archive` has these bytes."""

    archive: str
    digest: Digest
    key: VerifyKey


def statement(archive: str, digest: Digest) -> bytes:
    """The bytes to sign. Raises `MalformedError` for what is no archive's name."""
    return canonical.dump({"archive": names.check("archive", archive), "digest": str(digest), "v": 1})


def sign(key: SigningKey, *, archive: str, digest: Digest) -> bytes:
    """In our own form."""
    envelope = envelopes.sign(statement(archive, digest), payload_type=PAYLOAD_TYPE, key=key)
    return canonical.dump({"envelope": to_base64(envelope), "key": to_base64(key.public.raw), "v": 1})


def key_of(signature: bytes) -> VerifyKey:
    """The key that it names; whether that key signed anything is not looked at. Raises `MalformedError`."""
    return _sshsig(signature)[0] if signature.startswith(_BEGIN) else _ours(signature)[0]


def verify(signature: bytes, *, archive: str, digest: Digest, keys: Collection[VerifyKey]) -> VerifiedAuthor:
    """The checks, in this order, and what each answers:

    1 exactly one of the two forms, for this purpose: what the key signed for another
    2 the key that it names is one of `keys`: anybody's key
    3 that key signed the statement of this archive and digest: a signature of something else, or none

    Raises `MalformedError`, `SignatureError`. Not checked: when (see above).
    """
    wanted = statement(archive, digest)
    if signature.startswith(_BEGIN):
        key, made = _sshsig(signature)
        _require_known(key, keys)
        key.verify(made, _sshsig_message(wanted))
    else:
        key, envelope = _ours(signature)
        _require_known(key, keys)
        found, _ = envelopes.verify(envelope, payload_type=PAYLOAD_TYPE, ring=KeyRing([key]))
        if found != wanted:
            raise SignatureError(f"the author signed something else than {archive} with {digest}")
    return VerifiedAuthor(archive=archive, digest=digest, key=key)


def key_of_text(text: str) -> VerifyKey:
    """Of 32 bytes as base64, or of a line as in `id_ed25519.pub`: `ssh-ed25519 AAAA… comment`. Raises `MalformedError`."""
    if not text.startswith(_KEY_TYPE.decode() + " "):
        return VerifyKey(from_base64(text, "an author's key", max_bytes=KEY_BYTES))
    return _key_of_blob(from_base64(text.split(" ")[1], "an ssh-ed25519 key", max_bytes=100))


def _require_known(key: VerifyKey, keys: Collection[VerifyKey]) -> None:
    if key not in keys:
        raise SignatureError(f"author key {key.key_id[:16]}… is not one of the {len(keys)} trusted here")


def _ours(signature: bytes) -> tuple[VerifyKey, bytes]:
    found = Fields(canonical.load(signature, max_bytes=MAX_BYTES), "author signature")
    found.version(1)
    key = VerifyKey(found.binary("key", max_bytes=KEY_BYTES))
    envelope = found.binary("envelope", max_bytes=MAX_BYTES)
    found.done()
    return key, envelope


def _sshsig(armoured: bytes) -> tuple[VerifyKey, bytes]:
    """The key, and its signature of `_sshsig_message`."""
    blob = _Blob(_dearmoured(armoured))
    if blob.take(len(_MAGIC)) != _MAGIC or blob.number() != _VERSION:
        raise MalformedError("author signature: this is no SSHSIG of version 1")
    key = _key_of_blob(blob.string())
    for what, wanted in (("namespace", NAMESPACE.encode()), ("reserved", b""), ("hash algorithm", _HASH)):
        found = blob.string()
        if found != wanted:
            raise MalformedError(f"author signature: its {what} is {found[:40]!r}, it is to be {wanted!r}")
    inner = _Blob(blob.string())
    blob.done()
    if inner.string() != _KEY_TYPE:
        raise MalformedError("author signature: it is not of an ssh-ed25519 key")
    made = inner.string()
    inner.done()
    if len(made) != 64:
        raise MalformedError(f"author signature: an Ed25519 signature is 64 bytes, not {len(made)}")
    return key, made


def _sshsig_message(signed: bytes) -> bytes:
    """What the key signs in place of the bytes, for this namespace."""
    parts = (NAMESPACE.encode(), b"", _HASH, hashlib.sha512(signed).digest())
    return _MAGIC + b"".join(map(_string, parts))


def _dearmoured(armoured: bytes) -> bytes:
    if len(armoured) > MAX_BYTES:
        raise MalformedError(f"author signature: {len(armoured)} bytes, the limit is {MAX_BYTES}")
    try:
        text = armoured.removeprefix(_BEGIN).removesuffix(_END).decode("ascii")
    except UnicodeDecodeError:
        raise MalformedError("author signature: not ASCII") from None
    raw = from_base64(text.replace("\n", ""), "author signature", max_bytes=MAX_BYTES)
    if _armoured(raw) != armoured:
        raise MalformedError("author signature: not armoured as ssh-keygen does it")
    return raw


def _armoured(raw: bytes) -> bytes:
    text = base64.b64encode(raw)
    lines = [text[at : at + _LINE_CHARS] + b"\n" for at in range(0, len(text), _LINE_CHARS)]
    return _BEGIN + b"".join(lines) + _END


def _key_of_blob(raw: bytes) -> VerifyKey:
    blob = _Blob(raw)
    kind = blob.string()
    if kind != _KEY_TYPE:
        raise MalformedError(f"an author's key is ssh-ed25519, not {kind[:40]!r}")
    key = VerifyKey(blob.string())
    blob.done()
    return key


def _string(raw: bytes) -> bytes:
    return _LENGTH.pack(len(raw)) + raw


class _Blob:
    """Numbers and strings as SSH writes them (RFC 4251, section 5), each taken once."""

    def __init__(self, raw: bytes) -> None:
        self._left = raw

    def take(self, count: int) -> bytes:
        taken, self._left = self._left[:count], self._left[count:]
        if len(taken) != count:
            raise MalformedError("SSH: it ends early")
        return taken

    def number(self) -> int:
        found: int = _LENGTH.unpack(self.take(_LENGTH.size))[0]
        return found

    def string(self) -> bytes:
        return self.take(self.number())

    def done(self) -> None:
        if self._left:
            raise MalformedError(f"SSH: {len(self._left)} bytes too many")

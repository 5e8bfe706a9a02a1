"""SSHSIG written part by part for tests: genuine unless told otherwise, and then still signed as what it says."""

from __future__ import annotations

import base64
import hashlib
import struct

from integrity.digests import Digest
from vocabulary import authorship
from vocabulary.keys import SigningKey


def string(raw: bytes) -> bytes:
    return struct.pack(">I", len(raw)) + raw


def sshsig(
    key: SigningKey,
    *,
    archive: str,
    digest: Digest,
    magic: bytes = b"SSHSIG",
    version: int = 1,
    key_type: bytes = b"ssh-ed25519",
    namespace: bytes = authorship.NAMESPACE.encode(),
    reserved: bytes = b"",
    hash_name: bytes = b"sha512",
    signature_type: bytes = b"ssh-ed25519",
    after_key: bytes = b"",
    after_signature: bytes = b"",
    after: bytes = b"",
    cut_signature: int = 0,
) -> bytes:
    hashed = hashlib.new(hash_name.decode(), authorship.statement(archive, digest)).digest()
    made = key.sign(b"SSHSIG" + string(namespace) + string(reserved) + string(hash_name) + string(hashed))
    raw = magic + struct.pack(">I", version) + string(string(key_type) + string(key.public.raw) + after_key)
    raw += string(namespace) + string(reserved) + string(hash_name)
    raw += string(string(signature_type) + string(made[: 64 - cut_signature]) + after_signature) + after
    text = base64.b64encode(raw)
    lines = [text[at : at + 70] for at in range(0, len(text), 70)]
    return b"\n".join([b"-----BEGIN SSH SIGNATURE-----", *lines, b"-----END SSH SIGNATURE-----", b""])

"""DSSE envelopes (Dead Simple Signing Envelope, protocol v1): who signed which bytes, for which purpose.

An envelope is canonical JSON: `{"payload": base64, "payloadType": text, "signatures": [{"keyid": hex,
"sig": base64}]}`. What is signed is not the JSON but PAE("DSSEv1", type, payload), so a ticket is never read as a grant:

>>> pae("http://example.com/HelloWorld", b"hello world")
b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
"""

from __future__ import annotations

from integrity import canonical
from integrity.errors import MalformedError
from integrity.fields import Fields, to_base64
from vocabulary.keys import KeyRing, SigningKey

MAX_PAYLOAD_BYTES = 8 * 1024 * 1024
MAX_ENVELOPE_BYTES = MAX_PAYLOAD_BYTES * 4 // 3 + 4096


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: lengths in ASCII decimal, so no two inputs give the same bytes."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sign(payload: bytes, *, payload_type: str, key: SigningKey) -> bytes:
    """The envelope's bytes, with one signature."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise MalformedError(f"a payload of {len(payload)} bytes is over the limit of {MAX_PAYLOAD_BYTES}")
    return canonical.dump(
        {
            "payload": to_base64(payload),
            "payloadType": payload_type,
            "signatures": [{"keyid": key.public.key_id, "sig": to_base64(key.sign(pae(payload_type, payload)))}],
        }
    )


def verify(envelope: bytes, *, payload_type: str, ring: KeyRing) -> tuple[bytes, str]:
    """The payload and the id of the trusted key that signed it.

    Checks, in this order: 1 canonical form and size; 2 exactly one signature; 3 the payload type is the wanted one;
    4 the key is trusted; 5 the signature holds over the PAE of exactly these payload bytes.
    Raises `MalformedError` or `SignatureError`. The caller still has to parse the payload and check what it says.
    """
    fields = Fields(canonical.load(envelope, max_bytes=MAX_ENVELOPE_BYTES), "envelope")
    payload = fields.binary("payload", max_bytes=MAX_PAYLOAD_BYTES)
    found_type = fields.text("payloadType", max_chars=200)
    signatures = fields.items("signatures", max_items=1)
    fields.done()
    if not signatures:
        raise MalformedError("envelope: no signature")
    if found_type != payload_type:
        raise MalformedError(f"envelope: holds {found_type!r}, wanted is {payload_type!r}")
    entry = Fields(signatures[0], "signature")
    key_id = entry.text("keyid", max_chars=64)
    signature = entry.binary("sig", max_bytes=64)
    entry.done()
    ring.find(key_id).verify(signature, pae(payload_type, payload))
    return payload, key_id

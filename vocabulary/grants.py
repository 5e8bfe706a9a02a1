"""The grant: the secrets of one launch, sealed to one launcher, bound to one ticket and one claim.

The outer document is signed by the API; the inner one is canonical JSON under HPKE with
`info = "dagseal/grant/v1\\n" + ticket digest`. Only the launcher that the ticket names can open it, only for that
ticket; the agent between them sees ciphertext. Payload type `application/vnd.dagseal.grant.v1+json`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from integrity import canonical
from integrity.digests import Digest
from integrity.errors import OutOfScopeError
from integrity.fields import Fields, to_base64
from vocabulary import envelopes
from vocabulary.keys import KeyRing, SealingKey, SealTo, SigningKey

PAYLOAD_TYPE = "application/vnd.dagseal.grant.v1+json"
MAX_SECRET_BYTES = 1024 * 1024
_SEAL_OVERHEAD_BYTES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """What goes through the pipe: names to values. A connection's value is Airflow's JSON or URI, an upstream XCom's is
    the serialised JSON text; one of another dag says so by its `dag_id`. `run` holds what Airflow's context needs of the
    dag run (all text)."""

    connections: dict[str, str] = field(repr=False)
    variables: dict[str, str] = field(repr=False)
    xcoms: tuple[dict[str, Any], ...] = field(repr=False)
    run: dict[str, str]

    def to_bytes(self) -> bytes:
        return canonical.dump(
            {
                "v": 1,
                "connections": self.connections,
                "variables": self.variables,
                "xcoms": list(self.xcoms),
                "run": self.run,
            }
        )

    @classmethod
    def from_bytes(cls, payload: bytes) -> Secrets:
        """`xcoms` are objects with task_id, map_index, key, value, and of another dag dag_id."""
        fields = Fields(canonical.load(payload, max_bytes=MAX_SECRET_BYTES), "secrets")
        fields.version(1)
        secrets = cls(
            connections=_texts(fields.take("connections"), "connections"),
            variables=_texts(fields.take("variables"), "variables"),
            xcoms=tuple(_xcom(item) for item in fields.items("xcoms", max_items=10_000)),
            run=_texts(fields.take("run"), "run"),
        )
        fields.done()
        return secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The signed outer document."""

    launch_id: str
    ticket_digest: Digest
    claim_digest: Digest
    sealed: bytes = field(repr=False)

    def to_bytes(self) -> bytes:
        return canonical.dump(
            {
                "v": 1,
                "launch_id": self.launch_id,
                "ticket_digest": str(self.ticket_digest),
                "claim_digest": str(self.claim_digest),
                "sealed": to_base64(self.sealed),
            }
        )

    @classmethod
    def from_bytes(cls, payload: bytes) -> Grant:
        fields = Fields(canonical.load(payload, max_bytes=2 * MAX_SECRET_BYTES), "grant")
        fields.version(1)
        grant = cls(
            launch_id=fields.name("launch_id", "id"),
            ticket_digest=fields.digest("ticket_digest"),
            claim_digest=fields.digest("claim_digest"),
            sealed=fields.binary("sealed", max_bytes=MAX_SECRET_BYTES + _SEAL_OVERHEAD_BYTES),
        )
        fields.done()
        return grant


def seal(
    secrets: Secrets, *, launch_id: str, ticket_digest: Digest, claim_digest: Digest, to: SealTo, key: SigningKey
) -> bytes:
    """The signed envelope's bytes. Raises `OutOfScopeError` when the secrets are over `MAX_SECRET_BYTES`."""
    plaintext = secrets.to_bytes()
    if len(plaintext) > MAX_SECRET_BYTES:
        raise OutOfScopeError(
            f"the grant has {len(plaintext)} bytes, the limit is {MAX_SECRET_BYTES}: grant less, or push smaller XComs"
        )
    grant = Grant(
        launch_id=launch_id,
        ticket_digest=ticket_digest,
        claim_digest=claim_digest,
        sealed=to.seal(plaintext, info=_info(ticket_digest)),
    )
    return envelopes.sign(grant.to_bytes(), payload_type=PAYLOAD_TYPE, key=key)


def open_sealed(
    envelope: bytes, ring: KeyRing, *, ticket_digest: Digest, claim_digest: Digest, key: SealingKey
) -> bytes:
    """The plaintext for the pipe. 1 signed by a trusted API key; 2 for this ticket; 3 for this claim; 4 sealed to us
    for this ticket; 5 canonical secrets. Raises `SignatureError`, `OutOfScopeError` or `MalformedError`."""
    payload, _ = envelopes.verify(envelope, payload_type=PAYLOAD_TYPE, ring=ring)
    grant = Grant.from_bytes(payload)
    if grant.ticket_digest != ticket_digest or grant.claim_digest != claim_digest:
        raise OutOfScopeError("the grant belongs to another ticket or claim")
    plaintext = key.open(grant.sealed, info=_info(ticket_digest))
    Secrets.from_bytes(plaintext)
    return plaintext


def _info(ticket_digest: Digest) -> bytes:
    return b"dagseal/grant/v1\n" + str(ticket_digest).encode()


def _texts(value: Any, what: str) -> dict[str, str]:
    fields = Fields(value, what)
    return {key: fields.text(key, max_chars=MAX_SECRET_BYTES) for key in fields.keys()}


def _xcom(value: Any) -> dict[str, Any]:
    fields = Fields(value, "xcom")
    xcom = {
        "task_id": fields.name("task_id", "task_id"),
        "map_index": fields.integer("map_index", least=-1),
        "key": fields.text("key", max_chars=512),
        "value": fields.text("value", max_chars=MAX_SECRET_BYTES),
    }
    if "dag_id" in fields.keys():
        xcom["dag_id"] = fields.name("dag_id", "dag_id")
    fields.done()
    return xcom

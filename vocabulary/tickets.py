"""The ticket: the API's signed, expiring, single-use permission to launch one task instance.

It names who asked, which bytes, which task, as which unix user and by which rule, and the one launcher that may use it. No
secret is in it. Payload type `application/vnd.dagseal.ticket.v1+json`; canonical JSON; times in seconds since 1970 (UTC).

>>> ticket = Ticket(
...     ticket_id="1" * 32, launch_id="2" * 32, audience="a" * 64, queue="default", archive="etl.py", release=3,
...     digest=Digest("c" * 128), manifest_digest=Digest("d" * 128), dag_id="etl", task_id="load", run_id="manual__1",
...     map_index=-1, try_number=1, task_digest=None, unix_user="etl", rule="3" * 32, owner="ann", principal="ci",
...     issued_at=1800000000, expires_at=1800000060, timeout_seconds=600,
... )
>>> print(ticket.to_bytes().decode().replace("c" * 128, "c…").replace("d" * 128, "d…"))
{"archive":"etl.py","audience":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",\
"dag_id":"etl","digest":"sha512:c…","expires_at":1800000060,"issued_at":1800000000,\
"launch_id":"22222222222222222222222222222222","manifest_digest":"sha512:d…","map_index":-1,"owner":"ann",\
"principal":"ci","queue":"default","release":3,"rule":"33333333333333333333333333333333","run_id":"manual__1",\
"supervised":false,"task_digest":null,"task_id":"load","ticket_id":"11111111111111111111111111111111",\
"timeout_seconds":600,"try_number":1,"unix_user":"etl","v":1}
"""

from __future__ import annotations

from dataclasses import dataclass

from integrity import canonical
from integrity.digests import Digest
from integrity.errors import ExpiredError, MalformedError, OutOfScopeError
from integrity.fields import Fields
from vocabulary import envelopes
from vocabulary.keys import KeyRing, SigningKey

PAYLOAD_TYPE = "application/vnd.dagseal.ticket.v1+json"
MAX_LIFETIME_SECONDS = 3600
MAX_BYTES = 16 * 1024
CLOCK_SKEW_SECONDS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """`audience` is the key id of the launcher; `task_digest` is None where the release declares task_check=archive;
    a `supervised` launch has a process of Airflow at its side, which the task may ask (ADR-0025)."""

    ticket_id: str
    launch_id: str
    audience: str
    queue: str
    archive: str
    release: int
    digest: Digest
    manifest_digest: Digest
    dag_id: str
    task_id: str
    run_id: str
    map_index: int
    try_number: int
    task_digest: Digest | None
    unix_user: str
    rule: str
    owner: str
    principal: str
    issued_at: int
    expires_at: int
    timeout_seconds: int
    supervised: bool = False

    def to_bytes(self) -> bytes:
        return canonical.dump(
            {
                "v": 1,
                "ticket_id": self.ticket_id,
                "launch_id": self.launch_id,
                "audience": self.audience,
                "queue": self.queue,
                "archive": self.archive,
                "release": self.release,
                "digest": str(self.digest),
                "manifest_digest": str(self.manifest_digest),
                "dag_id": self.dag_id,
                "task_id": self.task_id,
                "run_id": self.run_id,
                "map_index": self.map_index,
                "try_number": self.try_number,
                "task_digest": str(self.task_digest) if self.task_digest else None,
                "unix_user": self.unix_user,
                "rule": self.rule,
                "owner": self.owner,
                "principal": self.principal,
                "issued_at": self.issued_at,
                "expires_at": self.expires_at,
                "timeout_seconds": self.timeout_seconds,
                "supervised": self.supervised,
            }
        )

    @classmethod
    def from_bytes(cls, payload: bytes) -> Ticket:
        """Raises `MalformedError` for anything but one canonical ticket."""
        fields = Fields(canonical.load(payload, max_bytes=MAX_BYTES), "ticket")
        fields.version(1)
        ticket = cls(
            ticket_id=fields.name("ticket_id", "id"),
            launch_id=fields.name("launch_id", "id"),
            audience=fields.text("audience", max_chars=64),
            queue=fields.name("queue", "queue"),
            archive=fields.name("archive", "archive"),
            release=fields.integer("release", least=1),
            digest=fields.digest("digest"),
            manifest_digest=fields.digest("manifest_digest"),
            dag_id=fields.name("dag_id", "dag_id"),
            task_id=fields.name("task_id", "task_id"),
            run_id=fields.name("run_id", "run_id"),
            map_index=fields.integer("map_index", least=-1),
            try_number=fields.integer("try_number", least=1),
            task_digest=fields.optional("task_digest", fields.digest),
            unix_user=fields.name("unix_user", "unix user"),
            rule=fields.name("rule", "id"),
            owner=fields.name("owner", "principal"),
            principal=fields.name("principal", "principal"),
            issued_at=fields.integer("issued_at"),
            expires_at=fields.integer("expires_at"),
            timeout_seconds=fields.integer("timeout_seconds", least=1),
            supervised=fields.boolean("supervised"),
        )
        fields.done()
        if not 0 < ticket.expires_at - ticket.issued_at <= MAX_LIFETIME_SECONDS:
            raise MalformedError(f"ticket: its lifetime is to be 1 to {MAX_LIFETIME_SECONDS} seconds")
        return ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedTicket:
    """A ticket whose signature, audience and time held. `digest`, of the signed payload, is what grants are bound to."""

    ticket: Ticket
    digest: Digest


def sign(ticket: Ticket, key: SigningKey) -> bytes:
    """The envelope's bytes."""
    return envelopes.sign(ticket.to_bytes(), payload_type=PAYLOAD_TYPE, key=key)


def verify(envelope: bytes, ring: KeyRing, *, audience: str, now: int) -> VerifiedTicket:
    """1 signature of a trusted API key; 2 meant for this launcher; 3 not before its time; 4 not after it.

    Raises `SignatureError`, `MalformedError`, `OutOfScopeError` or `ExpiredError`. Not checked here: that it was not
    used before (the launcher's replay store) and that local policy allows the unix user.
    """
    payload, _ = envelopes.verify(envelope, payload_type=PAYLOAD_TYPE, ring=ring)
    ticket = Ticket.from_bytes(payload)
    if ticket.audience != audience:
        raise OutOfScopeError(f"the ticket is for launcher {ticket.audience[:16]}…, this is {audience[:16]}…")
    if now < ticket.issued_at - CLOCK_SKEW_SECONDS:
        raise ExpiredError(f"the ticket is valid from {ticket.issued_at}, it is {now}: check the clocks")
    if now >= ticket.expires_at:
        raise ExpiredError(f"the ticket expired at {ticket.expires_at}, it is {now}: launch again")
    return VerifiedTicket(ticket=ticket, digest=Digest.of(payload))

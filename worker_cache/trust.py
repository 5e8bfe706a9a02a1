"""What an offer must be before the agent works for it: the rules, on bytes, without any I/O.

The launcher checks all of this again and more; here it is checked so that nothing unsigned costs a fetch, and so that a
forged offer is refused by the first process that sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from integrity import names
from integrity.digests import Digest
from integrity.errors import DigestMismatchError, MalformedError, OutOfScopeError
from integrity.fields import Fields
from vocabulary import envelopes, manifest, tickets
from vocabulary.keys import KeyRing, VerifyKey
from vocabulary.manifest import MAX_XCOM_DAGS, VerifiedManifest
from vocabulary.tickets import Ticket, VerifiedTicket


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the API's `take` answered: parsed, not verified. Both documents are envelopes. `xcom_dags`: of which other dags the
    task may read XComs, where a supervisor reads them for it."""

    launch_id: str
    archive: str
    digest: Digest
    ticket: bytes
    manifest: bytes
    xcom_dags: tuple[str, ...]

    @classmethod
    def from_json(cls, value: Any) -> Offer:
        """Raises `MalformedError`."""
        fields = Fields(value, "offer")
        offer = cls(
            launch_id=fields.name("launch_id", "id"),
            archive=fields.name("archive", "archive"),
            digest=fields.digest("digest"),
            ticket=fields.binary("ticket", max_bytes=tickets.MAX_BYTES * 2),
            manifest=fields.binary("manifest", max_bytes=envelopes.MAX_ENVELOPE_BYTES),
            xcom_dags=_xcom_dags(fields),
        )
        fields.done()
        return offer


def _xcom_dags(fields: Fields) -> tuple[str, ...]:
    return tuple(names.check("dag_id", dag) for dag in fields.items("xcom_dags", max_items=MAX_XCOM_DAGS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """Which try of which task a supervisor asks for."""

    dag_id: str
    task_id: str
    run_id: str
    map_index: int
    try_number: int

    @classmethod
    def of(cls, ticket: Ticket) -> Instance:
        return cls(
            dag_id=ticket.dag_id,
            task_id=ticket.task_id,
            run_id=ticket.run_id,
            map_index=ticket.map_index,
            try_number=ticket.try_number,
        )

    def __str__(self) -> str:
        return f"{self.dag_id}.{self.task_id}, run {self.run_id}, map index {self.map_index}, try {self.try_number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedOffer:
    """An offer whose documents are signed and say the same. Not checked yet: the archive's bytes."""

    offer: Offer
    ticket: VerifiedTicket
    manifest: VerifiedManifest


def launch_id_of(value: Any) -> str | None:
    """The id of an offer that may be malformed otherwise, so that it can be refused by name."""
    found = value.get("launch_id") if isinstance(value, dict) else None
    try:
        return names.check("id", found)
    except MalformedError:
        return None


def verify(
    offer: Offer,
    keys: Sequence[VerifyKey],
    *,
    audience: str,
    queues: frozenset[str],
    asked: Instance | None,
    now: int,
) -> VerifiedOffer:
    """The checks, in this order; `keys` are the API's, of which the last one signs now; `asked`, what a supervisor asks for:

    1 the ticket is signed by the API's newest key, for this launcher, and in time (a forged or re-addressed ticket);
    2 it is for the launch that was offered, and for a queue that this agent serves (a mixed-up answer);
    3 it is supervised where a supervisor asks, and then for exactly that try, and else it is not (a socket under, or kept from,
      a launch that was not meant);
    4 the manifest is signed by a key of the API;
    5 it is the one manifest that the ticket names (an older or other release's manifest);
    6 archive, release and bytes are the same in both and in the offer (mix and match);
    7 the manifest knows the task, with the digest of the ticket and the task check that it declares, and lets it read the XComs
      that the offer says.

    Not checked here: that the ticket was not used before and that its unix user may be impersonated. Both are the
    launcher's, who keeps the replay store and the policy.
    """
    ticket = tickets.verify(offer.ticket, KeyRing([keys[-1]]), audience=audience, now=now)
    body = ticket.ticket
    if body.launch_id != offer.launch_id:
        raise OutOfScopeError(f"the ticket is for launch {body.launch_id}, offered was {offer.launch_id}")
    if body.queue not in queues:
        raise OutOfScopeError(f"the ticket is for queue {body.queue!r}, which this agent does not serve")
    if body.supervised != (asked is not None):
        raise OutOfScopeError(f"launch {body.launch_id} is {'' if body.supervised else 'not '}a supervised one")
    if asked is not None and asked != Instance.of(body):
        raise OutOfScopeError(f"the ticket is for {Instance.of(body)}; asked was for {asked}")
    found = manifest.verify(offer.manifest, KeyRing(list(keys)))
    body.manifest_digest.require(found.digest, f"the manifest of {body.archive}@{body.release}")
    stated = found.manifest
    if (stated.archive, stated.number, offer.archive) != (body.archive, body.release, body.archive):
        raise OutOfScopeError(
            f"ticket, manifest and offer name different releases: {body.archive}@{body.release}, "
            f"{stated.archive}@{stated.number}, {offer.archive}"
        )
    if not stated.digest == body.digest == offer.digest:
        raise DigestMismatchError(f"ticket, manifest and offer name different bytes for {body.archive}@{body.release}")
    task = stated.task(body.dag_id, body.task_id)
    expected = task.digest if stated.task_check == "task" else None
    if body.task_digest != expected:
        raise DigestMismatchError(f"the ticket's digest of {body.dag_id}.{body.task_id} is not the manifest's")
    if not set(offer.xcom_dags) <= set(task.xcom_dags):
        raise OutOfScopeError(f"the offer lets {body.dag_id}.{body.task_id} read XComs that its manifest does not name")
    return VerifiedOffer(offer=offer, ticket=ticket, manifest=found)

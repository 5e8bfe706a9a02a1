"""T02 forged-ticket: the agent makes a ticket, alters one, or hands in another document in its place.

Seen to fail when weakened: `envelopes.verify` that does not verify, or takes every payload type; a key ring that
finds a key for every id, whose `verify` returns.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from integrity import canonical
from tests.attacks.attacker import (
    LyingAgent,
    Offer,
    Traces,
    api_key,
    launcher_keys,
    opened,
    other_manifest,
    other_ticket,
    slug_of,
    ticket_of,
    traced_dag,
    used_tickets,
)
from tests.live import Live
from vocabulary import envelopes, tickets
from vocabulary.keys import SigningKey

FIELDS: dict[str, Any] = {
    "unix_user": "root",
    "dag_id": "another",
    "task_id": "another",
    "run_id": "another",
    "map_index": 7,
    "try_number": 7,
    "queue": "default",
    "principal": "somebody",
    "owner": "somebody",
    "timeout_seconds": 1_000_000,
    "release": 999_999,
    "task_digest": None,
    "launch_id": "0" * 32,
    "ticket_id": "0" * 32,
}


@pytest.fixture
def offer(live: Live, agent: LyingAgent, traces: Traces) -> Offer:
    answer = live.push("t02.py", traced_dag("t02", traces))
    assert answer.status == 201, answer.body
    return agent.offer("t02")


def refused_with(live: Live, agent: LyingAgent, traces: Traces, offer: Offer, ticket: bytes) -> str:
    """The launcher's slug for a run with this ticket, of which nothing may be left but a line in its journal."""
    before, used, lines = traces.all(), used_tickets(live), len(live.journal())
    with agent.connect() as peer, opened(offer.blob) as fd:
        said = peer.run(ticket, offer.manifest, fd)
        assert said.kind == "refused", "a ticket that nobody signed is no reason to sign a result"
        slug = slug_of(live, said)
        assert peer.closed()
    assert (traces.all(), used_tickets(live)) == (before, used)
    (line,) = live.journal()[lines:]
    assert (line["event"], line["request"], line["error"]) == ("refused", "run", slug)
    return slug


def test_signed_by_somebody_else(live: Live, agent: LyingAgent, traces: Traces, offer: Offer) -> None:
    for key in (SigningKey.generate(), launcher_keys(live)[0]):
        assert refused_with(live, agent, traces, offer, other_ticket(live, offer.ticket, key=key)) == "signature"


def test_signed_by_somebody_else_in_the_apis_name(live: Live, agent: LyingAgent, traces: Traces, offer: Offer) -> None:
    forged = json.loads(other_ticket(live, offer.ticket, key=SigningKey.generate()))
    forged["signatures"][0]["keyid"] = api_key(live).public.key_id
    assert refused_with(live, agent, traces, offer, canonical.dump(forged)) == "signature"


def test_each_field_altered_under_the_true_signature(
    live: Live, agent: LyingAgent, traces: Traces, offer: Offer
) -> None:
    true = json.loads(offer.ticket)
    for name, value in FIELDS.items():
        altered = dict(true)
        payload = json.loads(base64.b64decode(true["payload"]))
        assert payload[name] != value
        payload[name] = value
        altered["payload"] = base64.b64encode(canonical.dump(payload)).decode()
        assert refused_with(live, agent, traces, offer, canonical.dump(altered)) == "signature", name


def test_another_genuine_document_in_its_place(live: Live, agent: LyingAgent, traces: Traces, offer: Offer) -> None:
    ticket = ticket_of(live, offer.ticket).to_bytes()
    as_a_grant = envelopes.sign(ticket, payload_type="application/vnd.dagseal.grant.v1+json", key=api_key(live))
    not_a_ticket = envelopes.sign(b"{}", payload_type=tickets.PAYLOAD_TYPE, key=api_key(live))
    for document in (offer.manifest, as_a_grant, not_a_ticket):
        assert refused_with(live, agent, traces, offer, document) == "malformed"


def test_envelopes_that_can_be_read_in_two_ways(live: Live, agent: LyingAgent, traces: Traces, offer: Offer) -> None:
    true = json.loads(offer.ticket)
    (signature,) = true["signatures"]
    twice = offer.ticket.replace(b'"payload":', b'"payload":"e30=","payload":', 1)
    variants = {
        "no signature": canonical.dump(true | {"signatures": []}),
        "two signatures": canonical.dump(true | {"signatures": [signature, signature]}),
        "one more field": canonical.dump(true | {"extra": 1}),
        "spaces": json.dumps(true).encode(),
        "a field twice": twice,
        "a newline after it": offer.ticket + b"\n",
        "base64 without its last character": canonical.dump(true | {"payload": true["payload"][:-1]}),
        "nothing": b"{}",
        "empty": b"",
        "not JSON": b"\xff" * 100,
    }
    for name, envelope in variants.items():
        assert refused_with(live, agent, traces, offer, envelope) == "malformed", name


def test_a_manifest_of_the_agents_own(live: Live, agent: LyingAgent, traces: Traces, offer: Offer) -> None:
    """The same for the second signed document: nothing but a refusal that the launcher signs."""
    before, used = traces.all(), used_tickets(live)
    forged = other_manifest(live, offer.manifest, key=SigningKey.generate())
    for document, slug in ((forged, "signature"), (offer.ticket, "malformed"), (b"{}", "malformed")):
        with agent.connect() as peer, opened(offer.blob) as fd:
            assert slug_of(live, peer.run(offer.ticket, document, fd)) == slug
    assert (traces.all(), used_tickets(live)) == (before, used)

"""T11 forged-grant: the agent answers a claim with another grant than the one that the API gave for it.

In every case the task was imported and waits; it gets nothing and is killed, its body does not run.

Seen to fail when weakened: `grants.open_sealed` without the comparison of ticket and claim, without its signature, or
with an empty `info` on both sides.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from integrity import canonical
from integrity.digests import Digest
from tests.attacks.attacker import (
    LyingAgent,
    Offer,
    Peer,
    Traces,
    api_key,
    launcher_keys,
    opened,
    result_of,
    ticket_of,
    traced_dag,
)
from tests.live import Live
from vocabulary import claims, envelopes, grants
from vocabulary.grants import Secrets
from vocabulary.keys import SealingKey, SigningKey

SECRETS = Secrets(connections={"planted": "http://evil.example.com"}, variables={}, xcoms=(), run={})


@contextmanager
def waiting(live: Live, agent: LyingAgent) -> Iterator[tuple[Offer, Peer, bytes]]:
    """A task that waits for its grant: its offer, its launcher, its claim."""
    offer = agent.offer("t11")
    with agent.connect() as peer, opened(offer.blob) as fd:
        said = peer.run(offer.ticket, offer.manifest, fd)
        assert said.kind == "claim"
        yield offer, peer, said.envelope


@pytest.fixture(autouse=True)
def pushed(live: Live, traces: Traces) -> None:
    answer = live.push("t11.py", traced_dag("t11", traces))
    assert answer.status == 201, answer.body


def refused(live: Live, peer: Peer, offer: Offer, envelope: bytes, slug: str, what: str = "") -> None:
    peer.grant(envelope)
    result = result_of(live, peer.hear_end()[0])
    assert (result.state, result.error, result.exit_code, result.xcoms) == ("refused", slug, 77, ()), what
    events = [line["event"] for line in live.journal() if line.get("launch_id") == offer.launch_id]
    assert events == ["launch", "claim", "result"], "a grant was recorded"


def sealed(
    live: Live,
    offer: Offer,
    claim: bytes,
    *,
    ticket: Digest | None = None,
    claimed: Digest | None = None,
    to: SealingKey | None = None,
    key: SigningKey | None = None,
) -> bytes:
    """A grant for this offer and claim but for what is given."""
    signing, sealing = launcher_keys(live)
    return grants.seal(
        SECRETS,
        launch_id=offer.launch_id,
        ticket_digest=ticket or Digest.of(ticket_of(live, offer.ticket).to_bytes()),
        claim_digest=claimed or claims.verify_claim(claim, signing.public).digest,
        to=(to or sealing).public,
        key=key or api_key(live),
    )


def test_the_true_one_is_taken(live: Live, agent: LyingAgent, traces: Traces) -> None:
    """Made by the same function as the forged ones below, with the API's key and everything as it is to be."""
    with waiting(live, agent) as (offer, peer, claim):
        peer.grant(sealed(live, offer, claim))
        assert result_of(live, peer.hear_end()[0]).state == "success"
    assert traces.of("ran")


def test_of_another_launch(live: Live, agent: LyingAgent, traces: Traces) -> None:
    """Genuine, for the same task, launcher and user; used already, or not yet."""
    with waiting(live, agent) as (first, one, claim), waiting(live, agent) as (second, other, claim_of_other):
        grant = agent.claim(first.launch_id, claim)
        assert grant.status == 200
        refused(live, other, second, grant.body, "out-of-scope")
        one.grant(grant.body)
        assert result_of(live, one.hear_end()[0]).state == "success"
        assert claim != claim_of_other
    with waiting(live, agent) as (third, peer, _):
        refused(live, peer, third, grant.body, "out-of-scope")
    assert len(traces.of("ran")) == 1


def test_made_by_somebody_else(live: Live, agent: LyingAgent, traces: Traces) -> None:
    """The launcher's sealing key is public, so anybody can seal to it: what counts is who signed."""
    for name, key in (("own key", SigningKey.generate()), ("the launcher's", launcher_keys(live)[0])):
        with waiting(live, agent) as (offer, peer, claim):
            refused(live, peer, offer, sealed(live, offer, claim, key=key), "signature", name)
    with waiting(live, agent) as (offer, peer, claim):
        forged = json.loads(sealed(live, offer, claim, key=SigningKey.generate()))
        forged["signatures"][0]["keyid"] = api_key(live).public.key_id
        refused(live, peer, offer, canonical.dump(forged), "signature", "in the API's name")
    assert not traces.of("ran")


def test_with_other_secrets_inside(live: Live, agent: LyingAgent, traces: Traces) -> None:
    """The sealed part of one grant in the signed envelope of another."""
    with waiting(live, agent) as (offer, peer, claim):
        grant = agent.claim(offer.launch_id, claim)
        payload = json.loads(base64.b64decode(json.loads(grant.body)["payload"]))
        own = json.loads(base64.b64decode(json.loads(sealed(live, offer, claim))["payload"]))
        assert payload["sealed"] != own["sealed"]
        payload["sealed"] = own["sealed"]
        mixed = json.loads(grant.body) | {"payload": base64.b64encode(canonical.dump(payload)).decode()}
        refused(live, peer, offer, canonical.dump(mixed), "signature")
    assert not traces.of("ran")


def test_bound_to_something_else(live: Live, agent: LyingAgent, traces: Traces) -> None:
    """Signed by the API itself: for another ticket, another claim, or sealed to another launcher or ticket."""
    other = Digest.of(b"another")
    with waiting(live, agent) as (offer, peer, claim):
        refused(live, peer, offer, sealed(live, offer, claim, ticket=other), "out-of-scope", "ticket")
    with waiting(live, agent) as (offer, peer, claim):
        refused(live, peer, offer, sealed(live, offer, claim, claimed=other), "out-of-scope", "claim")
    with waiting(live, agent) as (offer, peer, claim):
        refused(live, peer, offer, sealed(live, offer, claim, to=SealingKey.generate()), "signature", "launcher")
    with waiting(live, agent) as (offer, peer, claim):
        # The outside names this ticket, the inside was sealed for another one.
        inside = json.loads(base64.b64decode(json.loads(sealed(live, offer, claim, ticket=other))["payload"]))
        outside = json.loads(base64.b64decode(json.loads(sealed(live, offer, claim))["payload"]))
        payload = canonical.dump(outside | {"sealed": inside["sealed"]})
        moved = envelopes.sign(payload, payload_type=grants.PAYLOAD_TYPE, key=api_key(live))
        refused(live, peer, offer, moved, "signature", "info")
    assert not traces.of("ran")


def test_documents_that_are_no_grant(live: Live, agent: LyingAgent, traces: Traces) -> None:
    for name in ("ticket", "manifest", "claim", "nothing", "empty"):
        with waiting(live, agent) as (offer, peer, claim):
            documents = {
                "ticket": offer.ticket,
                "manifest": offer.manifest,
                "claim": claim,
                "nothing": b"{}",
                "empty": b"",
            }
            refused(live, peer, offer, documents[name], "malformed", name)
    assert not traces.of("ran")

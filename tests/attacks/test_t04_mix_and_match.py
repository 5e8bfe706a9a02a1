"""T04 mix-and-match: genuine tickets, manifests and archives that do not belong together.

Seen to fail when weakened: `check_request` without `wanted.manifest_digest.require`, without the comparison of
archive, release and owner, or without that of the task digest; `Run._converse` that does not compare what the child
reported.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from integrity.digests import Digest
from tests.attacks.attacker import (
    LyingAgent,
    Offer,
    Traces,
    manifest_of,
    opened,
    other_manifest,
    other_ticket,
    slug_of,
    traced_dag,
    used_tickets,
)
from tests.live import Live


@pytest.fixture
def offers(live: Live, agent: LyingAgent, traces: Traces) -> list[Offer]:
    """Of two releases of one archive, and of another archive."""
    found = []
    for name, more in (("t04a", ""), ("t04a", "# the second release\n"), ("t04b", "")):
        answer = live.push(f"{name}.py", traced_dag(name, traces) + more)
        assert answer.status in (200, 201), answer.body
        found.append(agent.offer(name))
    assert len({offer.digest for offer in found}) == 3
    return found


def refuse(live: Live, agent: LyingAgent, ticket: bytes, manifest_envelope: bytes, blob: bytes) -> str:
    with agent.connect() as peer, opened(blob) as fd:
        return slug_of(live, peer.run(ticket, manifest_envelope, fd))


def test_every_combination(live: Live, agent: LyingAgent, traces: Traces, offers: list[Offer]) -> None:
    before, used = traces.all(), used_tickets(live)
    for ticket, stated, blob in itertools.product(offers, repeat=3):
        if ticket is stated is blob:
            continue
        assert refuse(live, agent, ticket.ticket, stated.manifest, blob.blob) == "digest-mismatch"
    assert (traces.all(), used_tickets(live)) == (before, used)
    for offer in offers:
        result, _ = agent.run_honestly(offer)
        assert result.state == "success", "the true three of a kind run"


def test_a_ticket_that_says_other_than_its_manifest(
    live: Live, agent: LyingAgent, traces: Traces, offers: list[Offer]
) -> None:
    """Signed by the API, and contradicting itself: the launcher compares every field that both have."""
    offer = offers[0]
    before, used = traces.all(), used_tickets(live)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"archive": "t04b.py"}, "out-of-scope"),
        ({"release": 2}, "out-of-scope"),
        ({"owner": "somebody"}, "out-of-scope"),
        ({"dag_id": "t04b"}, "out-of-scope"),
        ({"task_id": "another"}, "out-of-scope"),
        ({"digest": offers[1].digest}, "digest-mismatch"),
        ({"task_digest": Digest.of(b"another")}, "digest-mismatch"),
        ({"task_digest": None}, "digest-mismatch"),
        ({"manifest_digest": Digest.of(b"another")}, "digest-mismatch"),
    ]
    for change, slug in changes:
        ticket = other_ticket(live, offer.ticket, **change)
        assert refuse(live, agent, ticket, offer.manifest, offer.blob) == slug, change
    assert (traces.all(), used_tickets(live)) == (before, used)


def test_a_manifest_that_says_other_than_its_ticket(
    live: Live, agent: LyingAgent, traces: Traces, offers: list[Offer]
) -> None:
    """Also where the ticket names this very manifest."""
    offer = offers[0]
    before, used = traces.all(), used_tickets(live)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"archive": "t04b.py"}, "out-of-scope"),
        ({"number": 2}, "out-of-scope"),
        ({"owner": "somebody"}, "out-of-scope"),
        ({"digest": offers[1].digest}, "digest-mismatch"),
        ({"dags": ()}, "out-of-scope"),
        ({"task_check": "archive"}, "digest-mismatch"),
    ]
    for change, slug in changes:
        stated = other_manifest(live, offer.manifest, **change)
        digest = Digest.of(manifest_of(live, stated).to_bytes())
        assert refuse(live, agent, offer.ticket, stated, offer.blob) == "digest-mismatch", change
        ticket = other_ticket(live, offer.ticket, manifest_digest=digest)
        assert refuse(live, agent, ticket, stated, offer.blob) == slug, change
    assert (traces.all(), used_tickets(live)) == (before, used)


def test_a_task_whose_digest_is_another_is_given_nothing(
    live: Live, agent: LyingAgent, traces: Traces, offers: list[Offer]
) -> None:
    """Ticket and manifest agree on a task digest that the archive does not have: it is imported, and no claim is made."""
    offer = offers[0]
    stated = manifest_of(live, offer.manifest)
    (dag,) = stated.dags
    (task,) = dag.tasks
    wrong = Digest.of(b"another task")
    dags = (dataclasses.replace(dag, tasks=(dataclasses.replace(task, digest=wrong),)),)
    envelope = other_manifest(live, offer.manifest, dags=dags)
    digest = Digest.of(manifest_of(live, envelope).to_bytes())
    ticket = other_ticket(live, offer.ticket, manifest_digest=digest, task_digest=wrong)
    assert refuse(live, agent, ticket, envelope, offer.blob) == "digest-mismatch"
    assert not traces.of("ran")
    events = [line["event"] for line in live.journal() if line.get("launch_id") == offer.launch_id]
    assert events[-2:] == ["launch", "result"]
    assert "claim" not in events[-2:]

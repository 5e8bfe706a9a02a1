"""T03 stale-ticket: a genuine ticket is used twice, too late, too early, or at another launcher.

Seen to fail when weakened: `Journal.use` that does not raise, or forgets at a restart; `tickets.verify`
without the comparison of the audience, or without that of `expires_at`.
"""

from __future__ import annotations

import signal
import threading
import time

from tests.attacks.attacker import (
    LyingAgent,
    Offer,
    Peer,
    Said,
    Traces,
    opened,
    other_ticket,
    slug_of,
    ticket_of,
    traced_dag,
    used_tickets,
)
from tests.live import Live
from vocabulary.keys import SealingKey, SigningKey


def offered(live: Live, agent: LyingAgent, traces: Traces, dag_id: str) -> Offer:
    answer = live.push(f"{dag_id}.py", traced_dag(dag_id, traces))
    assert answer.status == 201, answer.body
    return agent.offer(dag_id)


def ask(agent: LyingAgent, offer: Offer, ticket: bytes | None = None) -> Said:
    with agent.connect() as peer, opened(offer.blob) as fd:
        return peer.run(ticket or offer.ticket, offer.manifest, fd)


def test_replayed_after_it_ran(live: Live, agent: LyingAgent, traces: Traces) -> None:
    offer = offered(live, agent, traces, "t03replay")
    result, _ = agent.run_honestly(offer)
    assert result.state == "success"
    assert ticket_of(live, offer.ticket).ticket_id in used_tickets(live)
    before = traces.all()
    for _ in range(3):
        assert slug_of(live, ask(agent, offer)) == "replay"
    assert traces.all() == before
    events = [line["event"] for line in live.journal() if line.get("launch_id") == offer.launch_id]
    assert events == ["launch", "claim", "grant", "result", "result", "result", "result"]


def test_replayed_after_the_agent_went_away(live: Live, agent: LyingAgent, traces: Traces) -> None:
    """Imported once and no further: the ticket is used all the same."""
    offer = offered(live, agent, traces, "t03away")
    assert ask(agent, offer).kind == "claim"
    before = traces.all()
    assert slug_of(live, ask(agent, offer)) == "replay"
    assert traces.all() == before
    assert not traces.of("ran")


def test_used_at_once_by_many(live: Live, agent: LyingAgent, traces: Traces) -> None:
    offer = offered(live, agent, traces, "t03many")
    imported = len(traces.of("import"))
    peers = [agent.connect() for _ in range(8)]
    words: list[Said] = []

    def run(peer: Peer) -> None:
        with opened(offer.blob) as fd:
            words.append(peer.run(offer.ticket, offer.manifest, fd))

    threads = [threading.Thread(target=run, args=[peer]) for peer in peers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for peer in peers:
        with peer:
            pass
    assert sorted(word.kind for word in words) == ["claim"] + ["result"] * 7
    assert {slug_of(live, word) for word in words if word.kind == "result"} == {"replay"}
    assert len(traces.of("import")) == imported + 1
    assert not traces.of("ran")


def test_replayed_at_a_launcher_that_was_killed(fragile: Live, traces: Traces) -> None:
    """That a ticket was used is on disk before its task is forked."""
    agent = LyingAgent.enrol(fragile)
    offer = offered(fragile, agent, traces, "t03killed")
    with agent.connect() as peer, opened(offer.blob) as fd:
        assert peer.run(offer.ticket, offer.manifest, fd).kind == "claim"
        fragile.stack.stop("launcher", number=signal.SIGKILL)
    fragile.stack.start_launcher()
    before = traces.all()
    assert slug_of(fragile, ask(agent, offer)) == "replay"
    assert traces.all() == before
    assert not traces.of("ran")


def test_out_of_its_time(live: Live, agent: LyingAgent, traces: Traces) -> None:
    offer = offered(live, agent, traces, "t03time")
    before, used, now = traces.all(), used_tickets(live), int(time.time())
    windows = {
        "just over": (now - 60, now),
        "long over": (now - 86_400 * 365, now - 86_400 * 365 + 60),
        "not yet": (now + 300, now + 360),
        "from 1970": (0, 60),
    }
    for name, (issued, expires) in windows.items():
        ticket = other_ticket(live, offer.ticket, issued_at=issued, expires_at=expires)
        said = ask(agent, offer, ticket)
        assert (said.kind, slug_of(live, said)) == ("refused", "expired"), name
    for name, (issued, expires) in {"for a year": (now, now + 86_400 * 365), "backwards": (now, now - 1)}.items():
        said = ask(agent, offer, other_ticket(live, offer.ticket, issued_at=issued, expires_at=expires))
        assert (said.kind, slug_of(live, said)) == ("refused", "malformed"), name
    assert (traces.all(), used_tickets(live)) == (before, used)


def test_for_another_launcher(live: Live, traces: Traces) -> None:
    """Genuine in all: minted by the API for a worker whose launcher is another one."""
    elsewhere = LyingAgent.enrol(live, launcher=SigningKey.generate(), sealing=SealingKey.generate())
    offer = offered(live, elsewhere, traces, "t03elsewhere")
    before, used = traces.all(), used_tickets(live)
    said = ask(elsewhere, offer)
    assert (said.kind, slug_of(live, said)) == ("refused", "out-of-scope")
    assert (traces.all(), used_tickets(live)) == (before, used)
    assert live.journal()[-1]["error"] == "out-of-scope"

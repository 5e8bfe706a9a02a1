"""T01 tampered-bytes: one bit is changed in a cached blob, a stored blob, a manifest, a ticket or a grant.

Every byte of each is tried. Blob, manifest and ticket go to the real launcher one flip at a time; of the grant every byte is
tried against the rule, and a sample against a real task, which has been imported and waits for its secrets.

Seen to fail when weakened: `Digest.require` that compares one digit; launcher and task that do not compare the
archive's digest; `envelopes.verify` that does not verify; all of these and an agent's `open_verified` that takes what
it hashed.
"""

from __future__ import annotations

import pytest

from integrity.digests import Digest
from integrity.errors import MalformedError, SecurityError, SignatureError
from tests.attacks.attacker import (
    LyingAgent,
    Offer,
    Peer,
    Traces,
    api_key,
    flip,
    launcher_keys,
    opened,
    result_of,
    slug_of,
    ticket_of,
    traced_dag,
    used_tickets,
)
from tests.live import Live
from vocabulary import claims, grants, manifest, tickets
from vocabulary.keys import KeyRing

NOT_THE_BYTES = {"malformed", "signature"}
SAMPLES = 16


def small_dag(dag_id: str, traces: Traces) -> bytes:
    """About 250 bytes that tell when they are imported and when they run."""
    return (
        "import os\n"
        "from airflow.sdk import DAG,task\n"
        "def m(w):\n"
        f' try:open(f"{traces.path}/{{w}}.{{os.getuid()}}.{{os.urandom(4).hex()}}","w")\n'
        " except OSError:0\n"
        'm("import")\n'
        f'with DAG("{dag_id}",schedule=None):\n'
        " @task\n"
        ' def t():m("ran")\n'
        " t()\n"
    ).encode()


def pushed(live: Live, dag_id: str, data: bytes) -> None:
    answer = live.push(f"{dag_id}.py", data)
    assert answer.status == 201, answer.body


def refuse_all(live: Live, agent: LyingAgent, offer: Offer, tries: list[tuple[bytes, bytes, bytes]]) -> set[str]:
    """Ask for a run with each ticket, manifest and blob; the slugs of the refusals."""
    slugs = set()
    for ticket, manifest_envelope, blob in tries:
        with agent.connect() as peer, opened(blob) as fd:
            slugs.add(slug_of(live, peer.run(ticket, manifest_envelope, fd)))
    return slugs


def fresh(live: Live, agent: LyingAgent, traces: Traces, dag_id: str) -> tuple[Offer, list[str], set[str]]:
    pushed(live, dag_id, small_dag(dag_id, traces))
    return agent.offer(dag_id), traces.all(), used_tickets(live)


def require_nothing_happened(live: Live, traces: Traces, before: list[str], used: set[str]) -> None:
    assert traces.all() == before, "something of the DAG ran"
    assert used_tickets(live) == used, "a ticket was used up"


def test_every_byte_of_the_blob(live: Live, agent: LyingAgent, traces: Traces) -> None:
    offer, before, used = fresh(live, agent, traces, "t01blob")
    assert len(offer.blob) < 300
    tries = [(offer.ticket, offer.manifest, flip(offer.blob, i)) for i in range(len(offer.blob))]
    tries += [(offer.ticket, offer.manifest, offer.blob + b"\n"), (offer.ticket, offer.manifest, offer.blob[:-1])]
    assert refuse_all(live, agent, offer, tries) == {"digest-mismatch"}
    require_nothing_happened(live, traces, before, used)
    lines = [line for line in live.journal() if line["event"] == "result" and line["launch_id"] == offer.launch_id]
    assert [line["error"] for line in lines] == ["digest-mismatch"] * len(tries)

    # The untouched bytes with the very same ticket: it was the flips that were refused.
    again = agent.offer("t01blob")
    result, _ = agent.run_honestly(again)
    assert result.state == "success"
    assert len(traces.of("ran")) == 1


def test_every_byte_of_the_manifest(live: Live, agent: LyingAgent, traces: Traces) -> None:
    offer, before, used = fresh(live, agent, traces, "t01manifest")
    tries = [(offer.ticket, flip(offer.manifest, i), offer.blob) for i in range(len(offer.manifest))]
    assert refuse_all(live, agent, offer, tries) == NOT_THE_BYTES
    require_nothing_happened(live, traces, before, used)
    ring = KeyRing([api_key(live).public])
    for bit in range(8):
        for i in range(len(offer.manifest)):
            changed = bytearray(offer.manifest)
            changed[i] ^= 1 << bit
            with pytest.raises((MalformedError, SignatureError)):
                manifest.verify(bytes(changed), ring)


def test_every_byte_of_the_ticket(live: Live, agent: LyingAgent, traces: Traces) -> None:
    offer, before, used = fresh(live, agent, traces, "t01ticket")
    tries = [(flip(offer.ticket, i), offer.manifest, offer.blob) for i in range(len(offer.ticket))]
    assert refuse_all(live, agent, offer, tries) == NOT_THE_BYTES
    require_nothing_happened(live, traces, before, used)
    refusals = [line for line in live.journal() if line["event"] == "refused" and line["request"] == "run"]
    assert len(refusals) >= len(tries)
    ring = KeyRing([api_key(live).public])
    ticket = ticket_of(live, offer.ticket)
    for bit in range(8):
        for i in range(len(offer.ticket)):
            changed = bytearray(offer.ticket)
            changed[i] ^= 1 << bit
            with pytest.raises((MalformedError, SignatureError)):
                tickets.verify(bytes(changed), ring, audience=ticket.audience, now=ticket.issued_at)


def claimed(agent: LyingAgent, peer: Peer, offer: Offer) -> tuple[bytes, bytes]:
    """The claim and its grant, with the task imported and waiting."""
    with opened(offer.blob) as fd:
        claim = peer.run(offer.ticket, offer.manifest, fd)
    assert claim.kind == "claim", claim
    grant = agent.claim(offer.launch_id, claim.envelope)
    assert grant.status == 200, grant.body
    return claim.envelope, grant.body


def test_every_byte_of_the_grant(live: Live, agent: LyingAgent, traces: Traces) -> None:
    pushed(live, "t01grant", small_dag("t01grant", traces))
    signing, sealing = launcher_keys(live)
    ring = KeyRing([api_key(live).public])
    offer = agent.offer("t01grant")
    with agent.connect() as peer:
        claim, grant = claimed(agent, peer, offer)
        bound = {
            "ticket_digest": Digest.of(ticket_of(live, offer.ticket).to_bytes()),
            "claim_digest": claims.verify_claim(claim, signing.public).digest,
        }
        for i in range(len(grant)):
            with pytest.raises(SecurityError):
                grants.open_sealed(flip(grant, i), ring, key=sealing, **bound)
        assert grants.open_sealed(grant, ring, key=sealing, **bound)
        # The task that waits for this grant gets a changed one …
        peer.grant(flip(grant, len(grant) // 2))
        assert slug_of(live, peer.hear()) in NOT_THE_BYTES

    # … and so do others, at positions over the whole envelope.
    for sample in range(1, SAMPLES):
        offer = agent.offer("t01grant")
        with agent.connect() as peer:
            _, grant = claimed(agent, peer, offer)
            peer.grant(flip(grant, (len(grant) - 1) * sample // SAMPLES))
            result = result_of(live, peer.hear_end()[0])
        assert (result.state, result.exit_code) == ("refused", 77)
        assert result.error in NOT_THE_BYTES
        lines = [line["event"] for line in live.journal() if line.get("launch_id") == offer.launch_id]
        assert lines == ["launch", "claim", "result"], "a grant was taken"
    assert len(traces.of("import")) == SAMPLES, "each task was imported"
    assert not traces.of("ran"), "a task ran with a grant that was changed"


@pytest.mark.parametrize("where", [0, 100, -1])
def test_the_agents_cache_through_the_whole_stack(live: Live, traces: Traces, where: int) -> None:
    dag_id = f"t01cache{where % 1000}"
    digest = live.push(f"{dag_id}.py", traced_dag(dag_id, traces)).json["digest"].partition(":")[2]
    assert live.launch(dag_id, "t", "first")["state"] == "success"
    before = traces.all()
    cached = live.stack.cache / "sha512" / digest[:2] / digest
    data = cached.read_bytes()
    cached.chmod(0o600)
    cached.write_bytes(flip(data, where % len(data)))

    answer = live.cli("launch", dag_id, "t", "--run-id", "second", "--follow")
    assert answer.returncode == 7, answer.stderr
    assert "digest-mismatch" in answer.stderr
    assert traces.all() == before
    (launch,) = [
        one for one in live.http("GET", f"/v1/launches?dag_id={dag_id}").json["launches"] if one["run_id"] == "second"
    ]
    assert (launch["state"], launch["error"], launch["log_bytes"]) == ("refused", "digest-mismatch", 0)
    events = live.audit(object=f"launch:{launch['id']}")
    assert [(event["action"], event["verdict"]) for event in events][-1] == ("launch.state", "refused")
    assert events[-1]["detail"].startswith("digest-mismatch: ")

    assert live.launch(dag_id, "t", "third")["state"] == "success", "the damaged copy was not fetched again"
    assert len(traces.of("ran")) == 2


def test_the_apis_store_through_the_whole_stack(live: Live, traces: Traces) -> None:
    source = traced_dag("t01store", traces)
    digest = live.push("t01store.py", source).json["digest"].partition(":")[2]
    before = traces.all()
    (stored,) = (live.stack.folder / "api").rglob(digest)
    data = stored.read_bytes()
    stored.write_bytes(flip(data, 10))

    answer = live.cli("launch", "t01store", "t", "--run-id", "first", "--follow")
    assert answer.returncode == 7, answer.stderr
    (launch,) = live.http("GET", "/v1/launches?dag_id=t01store").json["launches"]
    assert (launch["state"], launch["error"], launch["worker"]) == ("refused", "digest-mismatch", None)
    last = live.audit(object=f"launch:{launch['id']}")[-1]
    assert (last["action"], last["verdict"]) == ("launch.offer", "refused")
    assert traces.all() == before

    # Whoever has the true bytes repairs it by sending them once more.
    assert live.push("t01store.py", source).status == 200
    assert stored.read_bytes() == data
    assert live.launch("t01store", "t", "second")["state"] == "success"

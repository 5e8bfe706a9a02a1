"""T34 supervised-socket: who holds the socket between a task and Airflow, and for which launches.

The lying agent puts a socket of its own under a launch that has no supervisor, keeps it away from one that has, or puts
another task's there; an archive reaches for it while it is imported; a task lets what it starts have it, or tells the launcher
of XComs. The supervisor is played here: it stands for Airflow, and answers with nothing.

Seen to fail when weakened: `require_descriptors` that counts nothing, or takes any descriptor; `Run` that gives the socket
before the import, or keeps it; `supervised._startup_details` that compares nothing; `supervised.receive` that lets the socket
be inherited; `Run._finished` that takes XComs of a supervised launch; `Run._let_end` that waits for nothing, or hears nothing.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from integrity import messages
from integrity.digests import Digest
from integrity.fields import to_base64
from tests.attacks.attacker import (
    PROBES,
    LyingAgent,
    Offer,
    Peer,
    Said,
    Traces,
    api_key,
    dag,
    launcher_keys,
    opened,
    other_ticket,
    result_of,
    slug_of,
    ticket_of,
    traced_dag,
    until,
    used_tickets,
)
from tests.live import Live
from vocabulary import claims, grants
from vocabulary.claims import Result

PROFILES = ("standard", "minimal", "strict")
MOMENT = "2026-01-31T00:00:00+00:00"


class Supervisor:
    """Airflow's end: says what is to be run, notes what is asked, answers each question with nothing."""

    def __init__(self, live: Live, offer: Offer, **changes: Any) -> None:
        self.ours, self.theirs = socket.socketpair()
        ticket = ticket_of(live, offer.ticket)
        names = {name: getattr(ticket, name) for name in ("dag_id", "task_id", "run_id", "map_index", "try_number")}
        run = {
            "dag_id": ticket.dag_id, "run_id": ticket.run_id, "logical_date": MOMENT, "data_interval_start": MOMENT,
            "data_interval_end": MOMENT, "run_after": MOMENT, "start_date": MOMENT, "end_date": None, "conf": {},
            "run_type": "manual", "state": "running", "consumed_asset_events": [], "partition_key": None,
        }  # fmt: skip
        self._send(
            {
                "type": "StartupDetails", "dag_rel_path": "d.py", "bundle_info": {"name": "dagseal", "version": "1"},
                "start_date": MOMENT, "sentry_integration": "",
                "ti": {"id": "0" * 31 + "1", "dag_version_id": "0" * 31 + "2", **names, **changes},
                "ti_context": {"dag_run": run, "max_tries": 0, "should_retry": False, "task_reschedule_count": 0},
            }
        )  # fmt: skip
        self.asked: list[str] = []
        self._serving = threading.Thread(target=self._serve, daemon=True)
        self._serving.start()

    def _send(self, body: Any, number: int = 0) -> None:
        frame = msgspec.msgpack.encode([number, body, None])
        self.ours.sendall(len(frame).to_bytes(4, "big") + frame)

    def _serve(self) -> None:
        with contextlib.suppress(OSError), self.ours.makefile("rb") as reading:
            while header := reading.read(4):
                number, body, *_ = msgspec.msgpack.decode(reading.read(int.from_bytes(header, "big")))
                self.asked.append(body["type"])
                self._send(None, number)

    def heard(self) -> list[str]:
        """What was asked, once nobody holds the other end any more."""
        self._serving.join(10)
        assert not self._serving.is_alive(), "somebody holds the task's end still"
        return self.asked


@contextlib.contextmanager
def supervised(live: Live, offer: Offer, **changes: Any) -> Iterator[Supervisor]:
    supervisor = Supervisor(live, offer, **changes)
    try:
        yield supervisor
    finally:
        supervisor.theirs.close()
        supervisor.ours.close()


def ask(peer: Peer, ticket: bytes, offer: Offer, *fds: int) -> Said:
    """A run with these descriptors behind the archive's; the launcher's first word."""
    with opened(offer.blob) as archive:
        fields = {name: to_base64(data) for name, data in (("ticket", ticket), ("manifest", offer.manifest))}
        peer.send("run", pass_fds=[archive, *fds], **fields)
        return peer.hear()


def grant(live: Live, ticket: bytes, claim: Said) -> bytes:
    """As the API would make it for this ticket, which it does not know."""
    signing, sealing = launcher_keys(live)
    verified = claims.verify_claim(claim.envelope, signing.public)
    return grants.seal(
        grants.Secrets(connections={}, variables={}, xcoms=(), run={}),
        launch_id=ticket_of(live, ticket).launch_id,
        ticket_digest=Digest.of(ticket_of(live, ticket).to_bytes()),
        claim_digest=verified.digest,
        to=sealing.public,
        key=api_key(live),
    )


def run(live: Live, agent: LyingAgent, offer: Offer, supervisor: Supervisor) -> Result:
    """A supervised launch to its end, as an honest agent does it."""
    ticket = other_ticket(live, offer.ticket, supervised=True)
    with agent.connect() as peer:
        said = ask(peer, ticket, offer, supervisor.theirs.fileno())
        supervisor.theirs.close()
        assert said.kind == "claim", said
        peer.grant(grant(live, ticket, said))
        return result_of(live, peer.hear_end()[0])


def offered(live: Live, agent: LyingAgent, traces: Traces, body: str, top: str = "", arguments: str = "") -> Offer:
    dag_id = f"t34{secrets.token_hex(4)}"
    source = dag(dag_id, body, top=PROBES + traces.source() + top, arguments=arguments)
    assert live.push(f"{dag_id}.py", source).status == 201
    return agent.offer(dag_id)


def test_a_supervised_launch_runs_beside_its_supervisor(live: Live, agent: LyingAgent, traces: Traces) -> None:
    """What the rest of this is held against; and nobody holds the socket when the task is gone."""
    offer = offered(live, agent, traces, 'trace("ran")\nreturn 1')
    with supervised(live, offer) as supervisor:
        result = run(live, agent, offer, supervisor)
        assert (result.state, result.error, result.xcoms) == ("success", "", ()), result
        assert supervisor.heard()[-2:] == ["SetXCom", "SucceedTask"]
    assert traces.of("ran")


def test_sockets_that_the_ticket_does_not_name(live: Live, agent: LyingAgent, traces: Traces) -> None:
    """Under a launch without a supervisor; with a ticket that somebody else signed; and a supervised launch without one."""
    offer = offered(live, agent, traces, 'trace("ran")', top='\ntrace("import")')
    used, before = used_tickets(live), traces.all()
    forged = other_ticket(live, offer.ticket, supervised=True, key=launcher_keys(live)[0])
    with supervised(live, offer) as supervisor:
        fd = supervisor.theirs.fileno()
        for ticket, fds, error in (
            (offer.ticket, [fd], "malformed"),
            (other_ticket(live, offer.ticket, supervised=True), [], "malformed"),
            (other_ticket(live, offer.ticket, supervised=True), [fd, fd], "malformed"),
            (forged, [fd], "signature"),
        ):
            with agent.connect() as peer:
                assert slug_of(live, ask(peer, ticket, offer, *fds)) == error
        supervisor.theirs.close()
        assert supervisor.heard() == []
    assert (used_tickets(live), traces.all()) == (used, before)


def test_what_is_no_connected_stream_socket(live: Live, agent: LyingAgent, traces: Traces, tmp_path: Path) -> None:
    offer = offered(live, agent, traces, 'trace("ran")', top='\ntrace("import")')
    used, before = used_tickets(live), traces.all()
    with contextlib.ExitStack() as stack:
        read, write = os.pipe()
        listening, unconnected = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        tcp = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(tcp.getsockname())
        datagrams, packets = (
            socket.socketpair(socket.AF_UNIX, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)
        )
        for sock in (listening, unconnected, tcp, client, *datagrams, *packets):
            stack.enter_context(sock)
        kinds = {
            "pipe": read,
            "archive": stack.enter_context(opened(offer.blob)),
            "listening": listening.fileno(),
            "unconnected": unconnected.fileno(),
            "tcp": client.fileno(),
            "datagrams": datagrams[0].fileno(),
            "packets": packets[0].fileno(),
        }
        for name, fd in kinds.items():
            with agent.connect() as peer:
                said = ask(peer, other_ticket(live, offer.ticket, supervised=True), offer, fd)
                assert slug_of(live, said) == "malformed", name
        os.close(read)
        os.close(write)
    assert (used_tickets(live), traces.all()) == (used, before)


@pytest.mark.parametrize(
    "changes", [{"dag_id": "other"}, {"task_id": "u"}, {"run_id": "other"}, {"map_index": 3}, {"try_number": 2}]
)
def test_the_socket_of_another_task(live: Live, agent: LyingAgent, traces: Traces, changes: dict[str, Any]) -> None:
    offer = offered(live, agent, traces, 'trace("ran")')
    with supervised(live, offer, **changes) as supervisor:
        result = run(live, agent, offer, supervisor)
        assert (result.state, result.error, result.exit_code) == ("failed", "security", 77), result
        assert "the supervisor is that of task" in result.detail
        assert supervisor.heard() == []
    assert not traces.of("ran")


REACH = """
import os, socket, stat
control = os.fstat(3)
for fd in range(4, 64):
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode) and os.fstat(fd) != control:
            socket.socket(fileno=os.dup(fd)).sendall(b"\\0\\0\\0\\1x")
    except OSError:
        pass
os.path.exists("/proc/self/fd/7") and os.write(7, b"\\0\\0\\0\\1x")
"""


def test_an_archive_that_reaches_for_it_at_import(live: Live, agent: LyingAgent, traces: Traces) -> None:
    """It speaks on every socket that it finds. The claim is denied then: what it said has reached nobody."""
    offer = offered(live, agent, traces, "pass", top=REACH)
    ticket = other_ticket(live, offer.ticket, supervised=True)
    with supervised(live, offer) as supervisor, agent.connect() as peer:
        said = ask(peer, ticket, offer, supervisor.theirs.fileno())
        supervisor.theirs.close()
        assert said.kind == "claim", said
        peer.send("deny", detail="no")
        assert slug_of(live, peer.hear_end()[0]) == "unauthorized"
        assert supervisor.heard() == []


def test_what_the_task_starts_has_it_not(live: Live, agent: LyingAgent, traces: Traces) -> None:
    """Also when it closes no descriptors before it starts something."""
    body = """
        import subprocess, sys
        look = "import os; print(sorted(fd for fd in os.listdir('/proc/self/fd')))"
        trace("own", str(os.path.exists("/proc/self/fd/7")))
        trace("started", subprocess.run([sys.executable, "-c", look], close_fds=False, capture_output=True, text=True).stdout)
    """
    offer = offered(live, agent, traces, body)
    with supervised(live, offer) as supervisor:
        assert run(live, agent, offer, supervisor).state == "success"
    assert traces.text("own") == "True"
    assert traces.text("started").strip() == "['0', '1', '2', '3']"  # 3 is the folder that it lists


def test_nobody_between_keeps_it(live: Live, agent: LyingAgent, traces: Traces) -> None:
    """The supervisor knows by its end that the task has it no more, while the launch goes on."""
    offer = offered(live, agent, traces, 'os.close(7)\ntrace("closed")\ntime.sleep(1000)', top="\nimport time")
    ticket = other_ticket(live, offer.ticket, supervised=True)
    with supervised(live, offer) as supervisor, agent.connect() as peer:
        said = ask(peer, ticket, offer, supervisor.theirs.fileno())
        supervisor.theirs.close()
        peer.grant(grant(live, ticket, said))
        until("the task has closed it", lambda: traces.of("closed"))
        assert "SucceedTask" not in supervisor.heard()


def test_xcoms_that_a_supervised_task_tells_the_launcher(live: Live, agent: LyingAgent, traces: Traces) -> None:
    lie = {"state": "success", "exit_code": 0, "detail": "", "timings_us": {}}
    lie["xcoms"] = [{"key": "return_value", "value": "1"}]
    frame = messages.encode("finished", **lie)
    body = f"import socket, time\nsocket.socket(fileno=os.dup(3)).sendall({frame!r})\ntime.sleep(1000)"
    offer = offered(live, agent, traces, body)
    with supervised(live, offer) as supervisor:
        result = run(live, agent, offer, supervisor)
    assert (result.state, result.error, result.xcoms) == ("failed", "malformed", ())


TERMINATED = """
from airflow.sdk import BaseOperator, DAG
import time
class Stays(BaseOperator):
    def execute(self, context):
        trace("task")
        while {stays}:
            time.sleep(0.01)
    def on_kill(self):
        trace("killed")
        global ended
        ended = True
ended = False
with DAG("{dag_id}", schedule=None):
    Stays(task_id="t")
"""


@pytest.mark.parametrize("how", ["it ends", "it stays", "no grace", "twice"])
def test_a_cancelled_task_is_told_first(live: Live, agent: LyingAgent, traces: Traces, how: str) -> None:
    """It has as long as the caller gives it, and not longer; what its `on_kill` wrote is in the log."""
    dag_id = f"t34{secrets.token_hex(4)}"
    stays = "not ended" if how == "it ends" else "True"
    source = traces.source() + TERMINATED.format(stays=stays, dag_id=dag_id)
    assert live.push(f"{dag_id}.py", source).status == 201
    offer = agent.offer(dag_id)
    with supervised(live, offer) as supervisor, agent.connect() as peer:
        ticket = other_ticket(live, offer.ticket, supervised=True)
        said = ask(peer, ticket, offer, supervisor.theirs.fileno())
        supervisor.theirs.close()
        peer.grant(grant(live, ticket, said))
        until("the task is there", lambda: traces.of("task"))
        begun = time.monotonic()
        peer.send("cancel", grace_seconds={"it ends": 60, "it stays": 2, "no grace": 0, "twice": 60}[how])
        if how == "twice":
            until("it was told", lambda: traces.of("killed"))
            peer.send("cancel", grace_seconds=60)
        result, took = result_of(live, peer.hear_end()[0]), time.monotonic() - begun
        assert (result.state, result.error, result.exit_code) == ("cancelled", "cancelled", 137)
        assert bool(traces.of("killed")) == (how != "no grace")
        assert (2 <= took < 20) if how == "it stays" else took < 20
        assert ("SucceedTask" in supervisor.heard()) == (how == "it ends")


@pytest.mark.parametrize("fields", [{}, {"grace_seconds": 61}, {"grace_seconds": -1}, {"grace_seconds": "1"}])
def test_a_grace_that_nobody_may_ask_for(live: Live, agent: LyingAgent, traces: Traces, fields: dict[str, Any]) -> None:
    dag_id = f"t34{secrets.token_hex(4)}"
    assert live.push(f"{dag_id}.py", traced_dag(dag_id, traces)).status == 201
    offer = agent.offer(dag_id)
    with agent.connect() as peer, opened(offer.blob) as fd:
        assert peer.run(offer.ticket, offer.manifest, fd).kind == "claim"
        peer.send("cancel", **fields)
        assert slug_of(live, peer.hear_end()[0]) == "malformed"

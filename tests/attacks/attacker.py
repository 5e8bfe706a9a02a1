"""What the attack tests share: an agent that lies, a folder in which a DAG leaves its traces, and bits to flip.

The lying agent is a worker of its own at the real API, enrolled with the real launcher's keys for a queue of its own: the
tickets, manifests and grants that it gets are genuine and for that launcher, and the honest agent is not in its way. As root
it connects to the launcher under the agent's account, as SO_PEERCRED is what the launcher goes by.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import pwd
import secrets
import shutil
import socket
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dagseal.airflow import asking
from integrity import messages
from integrity.digests import Digest
from tests.live import Answer, Live
from vocabulary import claims, envelopes, manifest, tickets
from vocabulary.claims import Result
from vocabulary.keys import KeyRing, SealingKey, SigningKey, fingerprint
from vocabulary.manifest import Manifest
from vocabulary.tickets import Ticket

DSSE = "application/vnd.dsse+json"
ANSWER_SECONDS = 30.0
PR_SET_NAME = 15
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Traces:
    """A folder that every account may write, among those that the launcher's policy leaves writable to tasks. What a DAG did
    is seen by the files it left: `<word>.<uid>.<name>`. Who left it calls itself by that name (`outer_pid`), as a process does
    not know its number outside of its pid namespace. A description may write nowhere: it leaves none."""

    path: Path

    def source(self) -> str:
        """Python that defines `trace(word, text="")`, for the top of a DAG."""
        return (
            "import os,ctypes\n"
            "_names={}\n"
            'def trace(w,t=""):\n'
            " n=_names.setdefault(os.getpid(),os.urandom(6).hex())\n"
            f" ctypes.CDLL(None).prctl({PR_SET_NAME},n.encode(),0,0,0)\n"
            f' p=f"{self.path}/{{w}}.{{os.getuid()}}.{{n}}"\n'
            " try:\n"
            '  with open(p+"~","w") as f:f.write(t)\n'
            '  os.rename(p+"~",p)\n'
            " except OSError:pass\n"
        )

    def all(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir() if not path.name.endswith("~"))

    def of(self, word: str) -> list[Path]:
        return sorted(path for path in self.path.glob(f"{word}.*") if not path.name.endswith("~"))

    def text(self, word: str) -> str:
        (found,) = self.of(word)
        return found.read_text()

    def json(self, word: str) -> Any:
        return json.loads(self.text(word))

    def uids(self, word: str) -> set[int]:
        return {int(path.name.split(".")[-2]) for path in self.of(word)}

    def pid(self, word: str) -> int:
        """The process that left it, which is alive."""
        (found,) = self.of(word)
        return outer_pid(found)

    def allow(self, word: str) -> None:
        """Let a task go on that waits for this word."""
        path = self.path / word
        path.touch()
        path.chmod(0o644)


@contextlib.contextmanager
def new_traces(live: Live) -> Iterator[Traces]:
    folder = Path(tempfile.mkdtemp(prefix="", dir=live.shared))
    folder.chmod(0o777)
    try:
        yield Traces(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def dag(dag_id: str, body: str, *, top: str = "", arguments: str = "") -> str:
    """A DAG file with one task `t`, whose body this is; `top` stands before everything."""
    return (
        f"{textwrap.dedent(top)}\n"
        "from airflow.sdk import DAG, task\n"
        f"with DAG({dag_id!r}, schedule=None):\n"
        f"    @task({arguments})\n"
        "    def t():\n"
        f"{textwrap.indent(textwrap.dedent(body).strip(), ' ' * 8)}\n"
        "    t()\n"
    )


def traced_dag(dag_id: str, traces: Traces) -> str:
    """Says when it is imported and when its task runs, and nothing else."""
    return dag(dag_id, 'trace("ran")', top=traces.source() + 'trace("import")\n')


def require_traces(live: Live) -> None:
    """That nothing was left means something only where something can be left."""
    with new_traces(live) as traces:
        name = f"traces{secrets.token_hex(4)}"
        assert live.push(f"{name}.py", traced_dag(name, traces)).status == 201
        left = 2 if live.stack.describe == "minimal" else 0
        assert len(traces.of("import")) == left, "what descriptions leave: nothing, if they are confined"
        assert live.launch(name, "t", "r")["state"] == "success"
        assert (len(traces.of("import")), len(traces.of("ran"))) == (left + 1, 1)


PROBES = Path(__file__).with_name("probes.py").read_text(encoding="utf-8")


def until(what: str, condition: Callable[[], T | None]) -> T:
    """Wait for what other processes do; its value once it is true."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.01)
    return found


def flip(data: bytes, position: int) -> bytes:
    """One bit of one byte; which one depends on the position, so that all eight are tried."""
    changed = bytearray(data)
    changed[position] ^= 1 << position % 8
    return bytes(changed)


@contextlib.contextmanager
def acting_as(account: str) -> Iterator[None]:
    """As root: with the effective ids of this account. Else nothing changes, as there is one account only."""
    if os.geteuid() != 0:
        yield
        return
    entry = pwd.getpwnam(account)
    os.setegid(entry.pw_gid)
    os.seteuid(entry.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@dataclass(frozen=True, slots=True)
class Said:
    """One word of the launcher."""

    kind: str
    fields: dict[str, Any]

    @property
    def envelope(self) -> bytes:
        return base64.b64decode(self.fields["envelope"])


class Peer:
    """One connection to the launcher's socket, by an account of our choice."""

    def __init__(self, live: Live, account: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with acting_as(account):
            self._sock.connect(str(live.stack.launcher_socket))  # blocking: it may have to wait for its place
        self._sock.settimeout(ANSWER_SECONDS)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        asking.send(self._sock, data, *fds)

    def ancillary(self, data: bytes, beside: Sequence[tuple[int, int, bytes]]) -> None:
        """One sendmsg(2) with what is not for `raw`."""
        assert self._sock.sendmsg([data], beside) == len(data)

    def send(self, kind: str, *, pass_fds: Sequence[int] = (), **fields: Any) -> None:
        self.raw(messages.encode(kind, fds=len(pass_fds), **fields), pass_fds)

    def run(self, ticket: bytes, manifest_envelope: bytes, fd: int) -> Said:
        """Ask for a run; the launcher's first word."""
        self.send("run", pass_fds=[fd], ticket=_text(ticket), manifest=_text(manifest_envelope))
        return self.hear()

    def grant(self, envelope: bytes) -> None:
        self.send("grant", envelope=_text(envelope))

    def hear(self) -> Said:
        """The next word. Raises `EOFError` when the launcher closed the connection."""
        body = json.loads(self._exactly(messages.body_length(self._exactly(messages.HEADER_BYTES))))
        return Said(body.pop("kind"), body)

    def hear_end(self) -> tuple[Said, bytes]:
        """The word that ends the run, and the log before it."""
        log = b""
        while (said := self.hear()).kind == "log":
            log += base64.b64decode(said.fields["data"])
        return said, log

    def closed(self) -> bool:
        """Whether the launcher ends the connection without another word."""
        try:
            return self._sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                chunk = self._sock.recv(count - len(data))
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                raise EOFError("the launcher closed the connection")
            data += chunk
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the API gave to the lying agent: all of it genuine."""

    launch_id: str
    digest: Digest
    ticket: bytes
    manifest: bytes
    blob: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LyingAgent:
    """A worker with a token of its own, in nobody's way."""

    live: Live
    name: str
    token: str

    @classmethod
    def enrol(cls, live: Live, *, launcher: SigningKey | None = None, sealing: SealingKey | None = None) -> LyingAgent:
        """With the real launcher's keys, or with those given. Its queue is called like itself."""
        name = f"liar-{secrets.token_hex(4)}"
        keys = launcher_keys(live)
        verify, seal = (launcher or keys[0]).public, (sealing or keys[1]).public
        body = {
            "name": name,
            "verify_key": _text(verify.raw),
            "sealing_key": _text(seal.raw),
            "fingerprint": fingerprint(verify, seal),
            "queues": [name],
        }
        made = live.http("POST", "/v1/workers", body)
        assert made.status == 201, made.body
        return cls(live=live, name=name, token=made.json["token"])

    def connect(self) -> Peer:
        return Peer(self.live, self.live.stack.accounts.agent)

    def reserve(self, dag_id: str, **more: Any) -> str:
        """A queued launch of the DAG's task `t` in our queue; its id."""
        body = {"dag_id": dag_id, "task_id": "t", "run_id": secrets.token_hex(8), "queue": self.name, **more}
        made = self.live.http("POST", "/v1/launches", body)
        assert made.status == 201, made.body
        return str(made.json["id"])

    def take(self) -> Offer:
        found = self.live.http("POST", f"/v1/workers/{self.name}/take", {"queues": [self.name]}, token=self.token)
        assert found.status == 200, found.body
        digest = Digest.parse(found.json["digest"])
        blob = self.live.http("GET", f"/v1/blobs/sha512/{digest.hex}", token=self.token)
        assert blob.status == 200, blob.body
        return Offer(
            launch_id=found.json["launch_id"],
            digest=digest,
            ticket=base64.b64decode(found.json["ticket"]),
            manifest=base64.b64decode(found.json["manifest"]),
            blob=blob.body,
        )

    def offer(self, dag_id: str, **more: Any) -> Offer:
        launch_id = self.reserve(dag_id, **more)
        found = self.take()
        assert found.launch_id == launch_id
        return found

    def claim(self, launch_id: str, envelope: bytes) -> Answer:
        return self.live.http("POST", f"/v1/launches/{launch_id}/claim", envelope, token=self.token, headers=_DSSE)

    def state(self, launch_id: str, envelope: bytes) -> Answer:
        return self.live.http("POST", f"/v1/launches/{launch_id}/state", envelope, token=self.token, headers=_DSSE)

    def run_honestly(self, offer: Offer) -> tuple[Result, bytes]:
        """As an honest agent does it, but for the result, which nobody is told of; and the log."""
        with self.connect() as peer, opened(offer.blob) as fd:
            claim = peer.run(offer.ticket, offer.manifest, fd)
            assert claim.kind == "claim", claim
            grant = self.claim(offer.launch_id, claim.envelope)
            assert grant.status == 200, grant.body
            peer.grant(grant.body)
            said, log = peer.hear_end()
            return result_of(self.live, said), log


_DSSE = {"Content-Type": DSSE}


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[int]:
    """A descriptor of a file with these bytes, as the agent would pass one."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        yield file.fileno()


def result_of(live: Live, said: Said) -> Result:
    """The launcher's signed last word."""
    assert said.kind == "result", said
    return claims.verify_result(said.envelope, launcher_keys(live)[0].public).result


def slug_of(live: Live, said: Said) -> str:
    """Why the launcher refused, signed or not; an assertion fails when it did not."""
    if said.kind == "refused":
        assert said.fields["exit_code"] == 77
        return str(said.fields["error"])
    result = result_of(live, said)
    assert (result.state, result.exit_code) == ("refused", 77), result
    assert result.log_bytes == 0
    return result.error


def launcher_keys(live: Live) -> tuple[SigningKey, SealingKey]:
    """The launcher's private keys, which no attacker has: to make what an attacker would need them for."""
    folder = live.stack.folder / "launcher" / "keys"
    return SigningKey((folder / "signing.key").read_bytes()), SealingKey((folder / "sealing.key").read_bytes())


def api_key(live: Live) -> SigningKey:
    """The API's private key, which no attacker has: for documents that are genuine and wrong in one other thing."""
    text = (live.stack.folder / "api" / "keys" / "signing.key").read_text()
    return SigningKey(bytes.fromhex(text.strip()))


def ticket_of(live: Live, envelope: bytes) -> Ticket:
    ring = KeyRing([api_key(live).public])
    return Ticket.from_bytes(envelopes.verify(envelope, payload_type=tickets.PAYLOAD_TYPE, ring=ring)[0])


def manifest_of(live: Live, envelope: bytes) -> Manifest:
    return manifest.verify(envelope, KeyRing([api_key(live).public])).manifest


def other_ticket(live: Live, envelope: bytes, *, key: SigningKey | None = None, **changes: Any) -> bytes:
    """The same ticket but for `changes`, signed by the API's key or by the given one; its id is a new one."""
    fresh = {"ticket_id": secrets.token_hex(16), **changes}
    return tickets.sign(dataclasses.replace(ticket_of(live, envelope), **fresh), key or api_key(live))


def other_manifest(live: Live, envelope: bytes, *, key: SigningKey | None = None, **changes: Any) -> bytes:
    return manifest.sign(dataclasses.replace(manifest_of(live, envelope), **changes), key or api_key(live))


def warm_pids(live: Live, purpose: str) -> list[int]:
    """The launcher's warm processes of that purpose, `run` or `describe`. With namespaces each is below two that only wait for
    it: the launcher's child, and process 1 of the namespace."""
    children = children_of(live.stack.processes["launcher"].pid)
    started = [pid for pid in children if purpose.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
    return [_innermost(pid) for pid in started]


def notary_pid(live: Live) -> int:
    """The launcher's unprivileged half."""
    return notary_pid_of(live.stack.processes["launcher"].pid)


def notary_pid_of(launcher: int) -> int:
    """The child that is no warm process."""
    (found,) = [pid for pid in children_of(launcher) if b"become.py" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return found


def _innermost(pid: int) -> int:
    """Down to the last that is one pid namespace deep; where there is none, itself."""
    for child in children_of(pid):
        if depth(child) == 2:
            return _innermost(child)
    return pid


def spares_of(warm: int) -> list[int]:
    """Its live children: where nothing is launched, the forks that wait for their job."""
    return [pid for pid in children_of(warm) if is_alive(pid)]


def depth(pid: int) -> int:
    """In how many pid namespaces it is, the host's included."""
    return len(status_of(pid)["NSpid"].split())


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def outer_pid(trace: Path) -> int:
    """The live process that left this trace, by the host's numbers."""
    name = trace.name.rpartition(".")[2]
    named = {pid for pid in all_pids() if name_of(pid) == name}
    (found,) = named - {child for pid in named for child in children_of(pid)}  # a fork has its parent's name at first
    return found


def all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except OSError:
        return ""


def tree_of(pid: int) -> set[int]:
    """It and all that came of it and is alive: of a task, all its processes, as orphans come back to it."""
    return {one for one in {pid, *descendants(pid)} if is_alive(one)}


def descendants(pid: int) -> set[int]:
    found = set(children_of(pid))
    return found.union(*(descendants(child) for child in found))


def children_of(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


def is_alive(pid: int) -> bool:
    """A zombie runs nothing any more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def used_tickets(live: Live) -> set[str]:
    """The ids that the launcher recorded, before it gave away their job."""
    return {line["ticket_id"] for line in live.journal() if line["event"] == "launch"}


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()

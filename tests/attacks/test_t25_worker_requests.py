"""T25 worker-requests: somebody without a worker's key asks as a worker, by what was captured, bent, kept back or stolen.

The API is the real one, in a process of its own. The attacker reads and changes all that an agent sends, as a proxy on the way
could, and has tokens that were good once. Each attempt is told why it is refused, and the database is what it was.

Seen to fail when weakened: `signed.read` and `accept` without any one of their steps; `vocabulary.signedrequests` without any
one of its components; `bodies.chunks` that does not compare; `people.worker_of_key` that finds a revoked worker;
`joining.join` without `_invited` or `_require_open`, that does not use the invitation up, or that leaves the bearer tokens.
"""

from __future__ import annotations

import base64
import json
import secrets
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest

from integrity.digests import Digest
from tests import live as stacks
from tests.attacks.attacker import dag, launcher_keys, until
from tests.attacks.conftest import EVERY_REFUSAL
from tests.live import Answer, Live
from tests.signing import Hand, join_body
from vocabulary import claims, tickets
from vocabulary.claims import Claim
from vocabulary.keys import KeyRing, SigningKey, VerifyKey, fingerprint

LOG, DSSE = "application/octet-stream", "application/vnd.dsse+json"
Fields = dict[str, str]


@dataclass
class Worker:
    """An honest one, which has joined, in a queue of its own."""

    live: Live
    name: str
    hand: Hand

    @property
    def queues(self) -> list[str]:
        return [self.name]

    def take(self) -> tuple[str, bytes]:
        """Target and body of what an idle agent asks all day."""
        return f"/v1/workers/{self.name}/take?wait_seconds=0", json.dumps({"queues": self.queues}).encode()

    def ask(self, target: str, body: bytes | None, method: str = "POST", **how: Any) -> Answer:
        return send(self.live, method, target, body, self.hand.sign(method, target, body, **how))


def send(live: Live, method: str, target: str, body: bytes | None, fields: Fields) -> Answer:
    return live.http(method, target, body, token="", headers=fields)


def epoch(live: Live) -> str:
    return live.http("GET", "/healthz", token="").headers["dagseal-epoch"]


def public_key(live: Live) -> bytes:
    return bytes.fromhex((live.stack.folder / "api" / "keys" / "signing.pub").read_text().strip())


def invite(live: Live, name: str, **more: Any) -> str:
    verify, seal = (key.public for key in launcher_keys(live))
    body = {"queues": [name], "fingerprint": fingerprint(verify, seal), **more}
    made = live.http("POST", f"/v1/workers/{name}/invite", body)
    assert made.status == 201, made.body
    return str(made.json["token"])


def join(live: Live, name: str, token: str, hand: Hand, *, launcher: VerifyKey | None = None) -> Answer:
    verify, seal = (key.public for key in launcher_keys(live))
    target = f"/v1/workers/{name}/join"
    body = json.dumps(join_body(token, hand.key.public, launcher or verify, seal)).encode()
    return send(live, "POST", target, body, hand.sign("POST", target, body))


def new_hand(live: Live) -> Hand:
    return Hand(server=VerifyKey(public_key(live)).key_id, epoch=epoch(live))


def joined(live: Live) -> Worker:
    worker = Worker(live, f"t25-{secrets.token_hex(4)}", new_hand(live))
    answer = join(live, worker.name, invite(live, worker.name), worker.hand)
    assert answer.status == 201, answer.body
    return worker


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    """One of its own: no launch of another test ends, and none of these is found lost, between two looks at the tables."""
    with stacks.running(more_api_toml="lost_after_seconds = 86400\n" + EVERY_REFUSAL) as started:
        yield started


@pytest.fixture
def worker(live: Live) -> Worker:
    return joined(live)


def tables(live: Live) -> dict[str, list[Any]]:
    """Every row of every table but the audit log and the times of last use, as the disk has them."""
    found: dict[str, list[Any]] = {}
    with closing(sqlite3.connect(f"file:{live.stack.folder}/api/dagseal.db?mode=ro", uri=True)) as database:
        database.execute("BEGIN")  # all tables as they are at one time
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({name})") if row[1] != "last_used_at"]
            if name != "audit_events":
                quoted = ", ".join(f'"{column}"' for column in columns)
                found[name] = sorted(database.execute(f'SELECT {quoted} FROM "{name}"').fetchall(), key=repr)
    assert found["workers"] and found["tokens"]
    return found


def refused(live: Live, answer: Answer, problem: str, why: str, *, status: int = 401, principal: str = "") -> None:
    """Said so, and audited: under nobody's name where nobody proved to be somebody."""
    assert (answer.status, answer.problem) == (status, problem), answer.body
    assert why in answer.json["detail"], answer.json["detail"]
    last = live.audit(verdict="refused")[-1]
    assert (last["rule"], last["principal"]) == (problem, principal), last


def running(live: Live, worker: Worker) -> str:
    """A launch of this worker that runs, so that its log could be written; nobody carries it out."""
    dag_id = worker.name.replace("-", "_")
    assert live.push(f"{dag_id}.py", dag(dag_id, "pass")).status == 201
    made = live.http(
        "POST", "/v1/launches", {"dag_id": dag_id, "task_id": "t", "run_id": secrets.token_hex(4), "queue": worker.name}
    )
    assert made.status == 201, made.body
    offer = worker.ask(*worker.take())
    assert offer.status == 200, offer.body
    launcher, now = launcher_keys(live)[0], time.time_ns() // 1000
    ring = KeyRing([VerifyKey(public_key(live))])
    envelope = base64.b64decode(offer.json["ticket"])
    ticket = tickets.verify(envelope, ring, audience=launcher.public.key_id, now=now // 1_000_000)
    claim = Claim(
        ticket_id=ticket.ticket.ticket_id,
        launch_id=ticket.ticket.launch_id,
        ticket_digest=ticket.digest,
        task_digest=ticket.ticket.task_digest or Digest.of(b""),
        attestation={},
        claimed_at=now,
    )
    about = f"/v1/launches/{made.json['id']}"
    granted = worker.ask(f"{about}/claim", claims.sign_claim(claim, launcher), content_type=DSSE)
    assert granted.status == 200, granted.body
    return str(made.json["id"])


def test_the_true_ones_pass(live: Live, worker: Worker) -> None:
    """Else every refusal below could be for another reason."""
    launch_id = running(live, worker)
    assert worker.ask(f"/v1/launches/{launch_id}/log?offset=0", b"line\n", content_type=LOG).json == {"next_offset": 5}
    assert worker.ask(f"/v1/launches/{launch_id}/state", b'{"state": "running"}').json["state"] == "running"
    assert worker.ask("/v1/blobs/sha512/" + "0" * 128, None, "GET").status == 404
    assert worker.ask(*worker.take()).status == 204


def test_a_captured_request_is_sent_again(live: Live, worker: Worker) -> None:
    launch_id = running(live, worker)
    target, body = f"/v1/launches/{launch_id}/log?offset=0", b"line\n"
    fields = worker.hand.sign("POST", target, body, content_type=LOG)
    assert send(live, "POST", target, body, fields).status == 200
    before = tables(live)
    for _ in range(3):
        refused(live, send(live, "POST", target, body, fields), "replayed-request", "its nonce is good for one")
    get = worker.hand.sign("GET", "/v1/blobs/sha512/" + "0" * 128)
    assert send(live, "GET", "/v1/blobs/sha512/" + "0" * 128, None, get).status == 404
    answer = send(live, "GET", "/v1/blobs/sha512/" + "0" * 128, None, get)
    refused(live, answer, "replayed-request", "its nonce is good for one")
    assert tables(live) == before


def test_a_body_that_is_another(live: Live, worker: Worker) -> None:
    """Changed, cut, made longer, taken away; and one that was put where none was."""
    launch_id = running(live, worker)
    target = f"/v1/launches/{launch_id}/log?offset=0"
    before = tables(live)
    for body in (b"lime\n", b"line", b"line\n\n", b""):
        fields = worker.hand.sign("POST", target, b"line\n", content_type=LOG)
        answer = send(live, "POST", target, body, fields)
        refused(live, answer, "digest-mismatch", "the digest of the body that came", status=422, principal=worker.name)
    for body in (b"lime\n", b""):
        fields = worker.hand.sign("POST", target, b"line\n", content_type=LOG)
        fields["Content-Digest"] = Digest.of(body).repr_digest
        refused(live, send(live, "POST", target, body, fields), "request-signature", "did not sign this request")
    fields = worker.hand.sign("POST", target, None) | {"Content-Type": LOG}
    refused(
        live, send(live, "POST", target, b"line\n", fields), "request-signature", "covers no body, and there is one"
    )
    fields["Content-Digest"] = Digest.of(b"line\n").repr_digest
    refused(
        live, send(live, "POST", target, b"line\n", fields), "request-signature", "does not cover the Content-Digest"
    )
    assert tables(live) == before
    assert live.log(launch_id) == ""


def test_a_signature_that_is_for_something_else(live: Live, worker: Worker) -> None:
    """Another launch, another offset, another route, another method, another kind of body."""
    launch_id, other = running(live, worker), running(live, joined(live))
    body = b'{"state": "running"}'
    signed = f"/v1/launches/{launch_id}/log?offset=0"
    before = tables(live)
    for method, target in (
        ("POST", f"/v1/launches/{launch_id}/log?offset=1"),
        ("POST", f"/v1/launches/{launch_id}/log"),
        ("POST", f"/v1/launches/{launch_id}/log?offset=0&offset=0"),
        ("POST", f"/v1/launches/{launch_id}/lo%67?offset=0"),
        ("POST", f"/v1/launches/{launch_id}/state"),
        ("POST", f"/v1/launches/{launch_id}/claim"),
        ("POST", f"/v1/launches/{other}/log?offset=0"),
        ("POST", f"/v1/workers/{worker.name}/take"),
        ("GET", f"/v1/launches/{launch_id}/log?offset=0"),
        ("PUT", "/v1/archives/t25.py"),
    ):
        fields = worker.hand.sign("POST", signed, body, content_type=LOG)
        answer = send(live, method, target, body, fields)
        refused(live, answer, "request-signature", "did not sign this request as it came")
    fields = worker.hand.sign("POST", f"/v1/launches/{launch_id}/state", body) | {"Content-Type": LOG}
    answer = send(live, "POST", f"/v1/launches/{launch_id}/state", body, fields)
    refused(live, answer, "request-signature", "did not sign this request as it came")
    assert tables(live) == before


def test_another_server_or_another_process_of_it(live: Live, worker: Worker) -> None:
    target, body = worker.take()
    before = tables(live)
    elsewhere = Hand(server=SigningKey.generate().public.key_id, epoch=worker.hand.epoch, key=worker.hand.key)
    answer = send(live, "POST", target, body, elsewhere.sign("POST", target, body))
    refused(live, answer, "request-signature", "for another server")
    bent = elsewhere.sign("POST", target, body) | {"Dagseal-Server": worker.hand.server}
    refused(live, send(live, "POST", target, body, bent), "request-signature", "did not sign this request")
    earlier = Hand(server=worker.hand.server, epoch=secrets.token_hex(16), key=worker.hand.key)
    answer = send(live, "POST", target, body, earlier.sign("POST", target, body))
    refused(live, answer, "request-epoch", "for another process of this service")
    bent = earlier.sign("POST", target, body) | {"Dagseal-Epoch": worker.hand.epoch}
    refused(live, send(live, "POST", target, body, bent), "request-signature", "did not sign this request")
    assert tables(live) == before


def test_what_was_kept_back_or_signed_ahead(live: Live, worker: Worker) -> None:
    """It names both clocks, so that an honest agent's administrator knows which one to set."""
    target, body = worker.take()
    before, now = tables(live), int(time.time())
    for created, seconds in ((now - 130, 60), (now - 3, 1), (now + 130, 60), (now - 10**9, 60), (99_999_999_939, 60)):
        answer = worker.ask(target, body, created=created, seconds=seconds)
        refused(live, answer, "clock-skew", "by the worker's clock")
        shown = time.strftime("signed at %Y-%m-%dT%H:%M:%SZ", time.gmtime(created))
        assert shown in answer.json["detail"] and "by this service's clock" in answer.json["detail"]
    answer = worker.ask(target, body, created=now - 130, seconds=200)
    refused(live, answer, "request-signature", "at most 60 seconds")
    fields = worker.hand.sign("POST", target, body, created=now - 130)
    fields["Signature-Input"] = (
        fields["Signature-Input"].replace(str(now - 130), str(now)).replace(str(now - 70), str(now + 60))
    )
    refused(live, send(live, "POST", target, body, fields), "request-signature", "did not sign this request")
    assert tables(live) == before


def test_keys_that_are_nobodys_or_anothers(live: Live, worker: Worker) -> None:
    """Unknown; the launcher's and the API's own; another worker's; a worker's that was revoked."""
    other = joined(live)
    target, body = worker.take()
    before = tables(live)
    api_key = SigningKey(bytes.fromhex((live.stack.folder / "api" / "keys" / "signing.key").read_text().strip()))
    for key in (SigningKey.generate(), launcher_keys(live)[0], api_key):
        refused(live, worker.ask(target, body, key=key), "request-signature", "no worker that is enrolled has key")
    answer = worker.ask(target, body, key=other.hand.key)
    refused(live, answer, "out-of-scope", f"this is worker {other.name}", status=403, principal=other.name)
    fields = worker.hand.sign("POST", target, body, key=SigningKey.generate())
    mine, theirs = (
        part.partition('keyid="')[2][:64]
        for part in (worker.hand.sign("GET", "/")["Signature-Input"], fields["Signature-Input"])
    )
    fields["Signature-Input"] = fields["Signature-Input"].replace(theirs, mine)
    refused(live, send(live, "POST", target, body, fields), "request-signature", "did not sign this request")
    assert tables(live) == before
    assert live.http("DELETE", f"/v1/workers/{other.name}").status == 204
    before = tables(live)
    for method, path, sent in (
        ("POST", *other.take()),
        ("GET", "/v1/blobs/sha512/" + "0" * 128, None),
        ("POST", f"/v1/launches/{'0' * 32}/claim", b"{}"),
    ):
        answer = other.ask(path, sent, method)
        refused(live, answer, "request-signature", "no worker that is enrolled has key")
    assert tables(live) == before


def test_an_invitation_that_was_stolen(live: Live) -> None:
    """After its use, after its end, for another name, with another launcher, and as a bearer token."""
    name, thief = f"t25-{secrets.token_hex(4)}", new_hand(live)
    token = invite(live, name)
    before = tables(live)
    answer = join(live, "quickstart", token, thief)
    refused(live, answer, "join-token", "is for another worker than quickstart")
    answer = join(live, name, token, thief, launcher=SigningKey.generate().public)
    refused(live, answer, "join-token", "is for another launcher")
    for method, path, body in (("POST", f"/v1/workers/{name}/take", b"{}"), ("GET", "/v1/archives", None)):
        refused(live, live.http(method, path, body, token=token), "unauthenticated", "not a dagseal token")
    assert tables(live) == before
    assert join(live, name, token, new_hand(live)).status == 201
    before = tables(live)
    refused(live, join(live, name, token, thief), "join-token", "was used already")
    assert tables(live) == before
    late = f"t25-{secrets.token_hex(4)}"
    token = invite(live, late, seconds=1)
    before, ends = tables(live), time.time() + 1
    until("it has expired", lambda: time.time() >= ends)
    refused(live, join(live, late, token, thief), "join-token", "has expired")
    assert tables(live) == before


def test_the_bearer_token_of_before(live: Live) -> None:
    """A worker that has joined is not spoken for by a token that it was given earlier."""
    name = f"t25-{secrets.token_hex(4)}"
    verify, seal = (key.public for key in launcher_keys(live))
    body = join_body("", verify, verify, seal)
    ask = {"name": name, "queues": [name], "fingerprint": fingerprint(verify, seal)}
    made = live.http("POST", "/v1/workers", ask | {key: body[key] for key in ("verify_key", "sealing_key")})
    assert made.status == 201, made.body
    worker = Worker(live, name, new_hand(live))
    target, sent = worker.take()
    assert live.http("POST", target, sent, token=made.json["token"]).status == 204
    assert join(live, name, invite(live, name), worker.hand).status == 201
    before = tables(live)
    refused(live, live.http("POST", target, sent, token=made.json["token"]), "unauthenticated", "was revoked")
    both = worker.hand.sign("POST", target, sent) | {"Authorization": f"Bearer {made.json['token']}"}
    refused(live, send(live, "POST", target, sent, both), "request-signature", "a signature and a bearer token")
    again = live.http("POST", "/v1/workers", ask | {key: body[key] for key in ("verify_key", "sealing_key")})
    assert (again.status, again.problem) == (409, "conflict")
    assert tables(live) == before
    assert worker.ask(target, sent).status == 204


def raw(live: Live, target: str, body: bytes, lines: list[str]) -> Answer:
    """With fields that no HTTP library sends, such as one twice."""
    head = [f"POST {target} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(body)}", *lines, "", ""]
    with socket.create_connection(("127.0.0.1", live.stack.port), 30) as sock:
        sock.sendall("\r\n".join(head).encode("utf-8", "surrogateescape") + body)
        answer = b""
        while part := sock.recv(65536):
            answer += part
    top, _, rest = answer.partition(b"\r\n\r\n")
    return Answer(int(top.split()[1]), {}, rest)


def put(name: str, old: str, new: str) -> Callable[[Fields], list[tuple[str, str]]]:
    def bend(fields: Fields) -> list[tuple[str, str]]:
        assert old in fields[name]
        return [*(fields | {name: fields[name].replace(old, new)}).items()]

    return bend


def add(name: str, value: str = "") -> Callable[[Fields], list[tuple[str, str]]]:
    return lambda fields: [*fields.items(), (name, value or fields[name])]


def label(fields: Fields) -> list[tuple[str, str]]:
    return [
        (name, value.replace("dagseal=", "sig1=") if name.startswith("Sig") else value)
        for name, value in fields.items()
    ]


def double(fields: Fields) -> list[tuple[str, str]]:
    return [(name, f"{value}, b{value}" if name.startswith("Sig") else value) for name, value in fields.items()]


BENT: dict[str, Callable[[Fields], list[tuple[str, str]]]] = {
    "two signatures, each in a field": add("Signature"),
    "two inputs, each in a field": add("Signature-Input"),
    "two signatures in one field": double,
    "two digests": add("Content-Digest", Digest.of(b"").repr_digest),
    "two servers": add("Dagseal-Server", "0" * 64),
    "two epochs": add("Dagseal-Epoch", "0" * 32),
    "a signature alone": lambda fields: [("Signature", fields["Signature"])],
    "an input alone": lambda fields: [("Signature-Input", fields["Signature-Input"])],
    "garbage": lambda fields: [("Signature", ")=;,((((\x80"), ("Signature-Input", "=" * 4000)],
    "bytes": lambda fields: [*(fields | {"Signature": "dagseal=:\udcff\udcfe:"}).items()],
    "another label": label,
    "HMAC": put("Signature-Input", "ed25519", "hmac-sha256"),
    "less is covered": put("Signature-Input", ' "content-digest"', ""),
    "no nonce": put("Signature-Input", ";nonce=", ";once="),
    "another tag": put("Signature-Input", 'tag="dagseal"', 'tag="x"'),
}


@pytest.mark.parametrize("name", BENT)
def test_fields_that_are_not_the_agents(live: Live, worker: Worker, name: str) -> None:
    target, body = worker.take()
    before = tables(live)
    fields = BENT[name](worker.hand.sign("POST", target, body))
    answer = raw(live, target, body, [f"{field}: {value}" for field, value in fields])
    refused(live, answer, "request-signature", "")
    assert tables(live) == before
    good = worker.hand.sign("POST", target, body)
    assert raw(live, target, body, [f"{field}: {value}" for field, value in good.items()]).status == 204

"""The API on loopback with a real database and real files; around it simulators of its two peers, which speak the
protocol: a launcher that describes (unix socket), and a worker's launcher that claims and signs (keys)."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from contextlib import AsyncExitStack
from typing import Any

import aiohttp

from integrity import messages
from integrity.digests import Digest
from integrity.fields import from_base64, to_base64
from submit_api import audit, identity, keyfiles, transparency
from submit_api.findings import Finding
from submit_api.fsck import fsck
from submit_api.issuing import issue
from submit_api.registry import migrate, rows
from submit_api.registry.database import Database
from submit_api.running import opened, serving
from submit_api.service import Service
from submit_api.settings import Settings, load
from vocabulary import claims, grants, manifest, tickets
from vocabulary.claims import Claim, Result
from vocabulary.keys import KeyRing, SealingKey, SigningKey, fingerprint
from vocabulary.manifest import DagEntry, TaskEntry

T0 = 1_800_000_000_000_000
SOURCE = b"from airflow.sdk import DAG\nwith DAG('etl'):\n    pass\n"


class FakeClock:
    """Stands still until told."""

    def __init__(self) -> None:
        self.at = T0

    def now_us(self) -> int:
        return self.at

    def forward(self, seconds: float) -> None:
        self.at += int(seconds * 1_000_000)


def task_entry(task_id: str = "t", **changes: Any) -> TaskEntry:
    fields: dict[str, Any] = {
        "task_id": task_id,
        "digest": Digest.of(f"task {task_id}".encode()),
        "operator": "PythonOperator",
        "run_as_user": "nobody",
        "queue": "default",
        "connections": (),
        "mapped": False,
    }
    return TaskEntry(**{**fields, **changes})


def dag_entry(dag_id: str, *tasks: TaskEntry, member: str = "etl.py") -> DagEntry:
    return DagEntry(dag_id=dag_id, member=member, tasks=tasks or (task_entry(),))


class DescribingPeer:
    """The launcher's side of `describe`. It answers with the dags it was given for an archive's name; before that it
    checks that descriptor, digest and frame are what the protocol says."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.dags: dict[str, list[DagEntry]] = {}
        self.answers: dict[str, bytes] = {}
        self.hold = asyncio.Event()
        self.hold.set()
        self.seen: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(self.path)
        self._listening.listen(16)
        self._listening.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())

    async def stop(self) -> None:
        for task in (self._accepting, *self._tasks):
            task.cancel()
        await asyncio.gather(self._accepting, *self._tasks, return_exceptions=True)
        self._listening.close()
        os.unlink(self.path)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            peer, _ = await loop.sock_accept(self._listening)
            task = asyncio.create_task(self._serve(peer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, peer: socket.socket) -> None:
        with peer:
            data, fds = await asyncio.to_thread(_receive, peer)
            message = messages.decode(data[messages.HEADER_BYTES :])
            assert (message.kind, message.fds, len(fds)) == ("describe", 1, 1)
            name, digest = message.fields.text("name"), message.fields.digest("digest")
            assert message.fields.text("task_check") in manifest.TASK_CHECKS
            message.fields.done()
            with open(fds[0], "rb") as file:
                assert Digest.of(file.read()) == digest
            self.seen.append(name)
            await self.hold.wait()
            dags = self.dags.get(name, [dag_entry(name.rpartition(".")[0], member=name)])
            said = {"airflow_version": "3.3.2", "dags": [dag.to_json() for dag in dags]}
            answer = self.answers.get(name) or messages.encode("described", **said)
            await asyncio.get_running_loop().sock_sendall(peer, answer)


def _receive(peer: socket.socket) -> tuple[bytes, list[int]]:
    peer.setblocking(True)
    data, fds, _, _ = socket.recv_fds(peer, 65536, 4)
    peer.setblocking(False)
    return data, fds


def refused(error: str, rule: str, detail: str, entry: str = "") -> bytes:
    return messages.encode("refused", error=error, rule=rule, detail=detail, entry=entry)


class WorkerPeer:
    """An agent with its launcher: takes, claims, reports. It has the launcher's keys, the API only their public halves."""

    def __init__(self, api: Api, name: str, token: str, queues: list[str]) -> None:
        self.api, self.name, self.token, self.queues = api, name, token, queues
        self.signing = SigningKey.generate()
        self.sealing = SealingKey.generate()

    async def take(self, wait: float = 0) -> dict[str, Any] | None:
        path = f"/v1/workers/{self.name}/take?wait_seconds={wait}"
        answer = await self.api.call("POST", path, token=self.token, json={"queues": self.queues})
        assert answer.status in (200, 204), answer.body
        return answer.json if answer.status == 200 else None

    def ticket(self, offer: dict[str, Any]) -> tickets.VerifiedTicket:
        envelope = from_base64(offer["ticket"], "ticket", max_bytes=2**20)
        now = self.api.clock.at // 1_000_000
        return tickets.verify(envelope, self.api.ring, audience=self.signing.public.key_id, now=now)

    def claim_envelope(self, offer: dict[str, Any], **changes: Any) -> tuple[bytes, Digest]:
        ticket = self.ticket(offer)
        fields: dict[str, Any] = {
            "ticket_id": ticket.ticket.ticket_id,
            "launch_id": ticket.ticket.launch_id,
            "ticket_digest": ticket.digest,
            "task_digest": ticket.ticket.task_digest or Digest.of(b"unchecked"),
            "attestation": {"no_new_privs": True},
            "claimed_at": self.api.clock.at,
        }
        made = Claim(**{**fields, **changes})
        return claims.sign_claim(made, self.signing), Digest.of(made.to_bytes())

    async def claim(self, offer: dict[str, Any], **changes: Any) -> Answer:
        envelope, _ = self.claim_envelope(offer, **changes)
        return await self.post(offer["launch_id"], "claim", envelope)

    async def claimed(self, offer: dict[str, Any]) -> grants.Secrets:
        """Claim and open the grant."""
        envelope, digest = self.claim_envelope(offer)
        answer = await self.post(offer["launch_id"], "claim", envelope)
        assert answer.status == 200, answer.body
        ticket_digest = self.ticket(offer).digest
        plain = grants.open_sealed(
            answer.body, self.api.ring, ticket_digest=ticket_digest, claim_digest=digest, key=self.sealing
        )
        return grants.Secrets.from_bytes(plain)

    def result_envelope(self, offer: dict[str, Any], ticket_digest: Digest, state: str, **changes: Any) -> bytes:
        fields: dict[str, Any] = {
            "launch_id": offer["launch_id"],
            "ticket_digest": ticket_digest,
            "state": state,
            "exit_code": 0 if state == "success" else 1,
            "error": "",
            "detail": "",
            "started_at": self.api.clock.at,
            "ended_at": self.api.clock.at,
            "timings_us": {"run": 1000},
            "max_rss_kib": 4096,
            "log_digest": Digest.of(b""),
            "log_bytes": 0,
            "log_truncated": False,
            "xcoms": (),
        }
        return claims.sign_result(Result(**{**fields, **changes}), self.signing)

    async def finish(self, offer: dict[str, Any], state: str = "success", **changes: Any) -> Answer:
        ticket = tickets.Ticket.from_bytes(
            from_base64(json.loads(from_base64(offer["ticket"], "t", max_bytes=2**20))["payload"], "p", max_bytes=2**20)
        )
        envelope = self.result_envelope(offer, Digest.of(ticket.to_bytes()), state, **changes)
        return await self.post(offer["launch_id"], "state", envelope)

    async def post(self, launch_id: str, what: str, body: bytes, *, kind: str = "application/vnd.dsse+json") -> Answer:
        headers = {"Content-Type": kind}
        return await self.api.call(
            "POST", f"/v1/launches/{launch_id}/{what}", token=self.token, body=body, headers=headers
        )


class Answer:
    def __init__(self, status: int, body: bytes, headers: Any) -> None:
        self.status, self.body, self.headers = status, body, headers

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def slug(self) -> str:
        assert self.headers.get("Content-Type", "").startswith("application/problem+json"), (self.status, self.body)
        assert self.json["status"] == self.status
        return str(self.json["type"]).removeprefix("https://dagseal.dev/problems/")


_TABLES: list[bytes] = []


async def lay_tables(settings: Settings) -> None:
    """A new file of SQLite's is a copy of one with the tables in it, as PostgreSQL's are: to make them is most of a start."""
    url = settings.database_url
    path = url.removeprefix("sqlite+aiosqlite:///")
    if path == url or os.path.exists(path):
        return
    if not _TABLES:
        database = Database(settings.database_section)
        await migrate.upgrade(database)
        await database.settle()
        await database.close()
        with open(path, "rb") as made:
            _TABLES.append(made.read())
        return
    with open(path, "xb") as copy:
        copy.write(_TABLES[0])


class Api:
    """A running API. `admin` is an administrator's token; `user` makes others."""

    def __init__(self, folder: str, **sections: dict[str, Any]) -> None:
        given = {"port": 0, "state_folder": f"{folder}/state", "launcher_socket": f"{folder}/l.sock"}
        quiet = {"launches": {"watch_interval_seconds": 3600}, "failures": {"burst": 100_000}}
        self.settings: Settings = load(api=given, **{**quiet, **sections})
        self.clock = FakeClock()
        self.launcher = DescribingPeer(f"{folder}/l.sock")
        self.tokens: dict[str, str] = {}

    async def __aenter__(self) -> Api:
        keyfiles.create(self.settings)
        await lay_tables(self.settings)
        self._stack = AsyncExitStack()
        await self.launcher.start()
        self._stack.push_async_callback(self.launcher.stop)
        self.service: Service = await self._stack.enter_async_context(opened(self.settings, clock=self.clock))
        self.ring: KeyRing = self.service.keys.ring
        self.listener = await self._stack.enter_async_context(serving(self.service))
        self.session = await self._stack.enter_async_context(aiohttp.ClientSession())
        self.admin = await self.token("admin", admin=True)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._stack.aclose()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.port}"

    async def token(self, principal: str, *, kind: str = identity.USER, admin: bool = False) -> str:
        async with self.service.database.write() as tx:
            made = await issue(tx, self.service, audit.SERVICE, principal=principal, kind=kind, admin=admin)
        self.tokens[principal] = made.text
        return made.text

    async def call(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        body: Any = None,
        json: Any = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        async with self.session.request(method, self.url + path, data=body, json=json, headers=sent) as response:
            return Answer(response.status, await response.read(), response.headers)

    async def push(
        self, name: str, body: bytes, *, token: str | None = None, query: str = "", **headers: str
    ) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.call("PUT", f"/v1/archives/{name}{query}", token=token or self.admin, body=body, headers=sent)

    async def allow(self, owner: str, user: str = "nobody") -> None:
        """An impersonation rule for every dag and queue."""
        rule = {"subject_kind": "principal", "subject": owner, "unix_user": user}
        answer = await self.call("POST", "/v1/impersonation-rules", token=self.admin, json=rule)
        assert answer.status == 201, answer.body

    async def connection(self, name: str, value: Any, *, to: str | None = None) -> None:
        answer = await self.call("PUT", f"/v1/connections/{name}", token=self.admin, json={"value": value})
        assert answer.status in (200, 201), answer.body
        if to:
            grant = {"kind": "connection", "name": name, "to_kind": "principal", "to": to}
            assert (await self.call("POST", "/v1/grants", token=self.admin, json=grant)).status == 201

    async def worker(self, name: str = "w1", queues: list[str] | None = None) -> WorkerPeer:
        peer = WorkerPeer(self, name, "", queues or ["default"])
        body = {
            "name": name,
            "verify_key": to_base64(peer.signing.public.raw),
            "sealing_key": to_base64(peer.sealing.public.raw),
            "fingerprint": fingerprint(peer.signing.public, peer.sealing.public),
            "queues": peer.queues,
        }
        answer = await self.call("POST", "/v1/workers", token=self.admin, json=body)
        assert answer.status == 201, answer.body
        peer.token = answer.json["token"]
        return peer

    async def launch(self, *, token: str | None = None, **changes: Any) -> Answer:
        body = {"dag_id": "etl", "task_id": "t", "run_id": "r1", **changes}
        return await self.call("POST", "/v1/launches", token=token or self.admin, json=body)

    async def events(self) -> list[dict[str, Any]]:
        return list((await self.call("GET", "/v1/audit?limit=1000", token=self.admin)).json["events"])

    async def begin_log(self) -> None:
        """As a start does once the tables are there: for those who migrate below a running service."""
        async with self.service.database.write() as tx:
            await transparency.begin(tx, self.service.keys.signing, self.clock.now_us())

    async def fsck(self) -> list[Finding]:
        return await fsck(self.settings)

    async def at_rest(self) -> bytes:
        """What whoever takes the database has: SQLite's files, or every row of PostgreSQL's."""
        held = []
        if self.service.database.kind == "sqlite":
            for suffix in ("", "-wal"):
                with open(f"{self.settings.api.state_folder}/dagseal.db{suffix}", "rb") as file:
                    held.append(file.read())
            return b"".join(held)
        async with self.service.database.read() as tx:
            for table in await rows.tables(tx):
                held += [repr(tuple(row)).encode() for row in await tx.session.execute(table.select())]
        return b"".join(held)

    def files(self) -> list[str]:
        """Every file below the blob store."""
        top = self.settings.blobs_folder
        return sorted(os.path.relpath(os.path.join(at, name), top) for at, _, names in os.walk(top) for name in names)

    async def remains(self) -> tuple[list[str], list[str]]:
        """What a refused upload must not add to: files, and archives with their releases."""
        listed = (await self.call("GET", "/v1/archives", token=self.admin)).json["archives"]
        return self.files(), [f"{archive['name']}@{archive['latest']}" for archive in listed]

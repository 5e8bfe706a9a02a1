"""The agent's two peers for its tests: an API and a launcher that speak the real protocol over real sockets.

They sign with real keys and check what they are sent, so that the agent is tested against the protocol of
docs/protocol.md and not against itself. Faults are asked for by attributes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from integrity import messages
from integrity.digests import Digest
from integrity.fields import to_base64
from tests.logsim import Log, LogServer
from vocabulary import claims, grants, manifest, tickets
from vocabulary.claims import Claim, Result
from vocabulary.keys import KeyRing, SealingKey, SigningKey
from vocabulary.leaves import Released
from vocabulary.manifest import DagEntry, Manifest, Member, TaskEntry
from vocabulary.tickets import Ticket

ARCHIVE = b"from airflow.sdk import DAG\n" * 40
NAME = "etl.py"
TASK_DIGEST = Digest.of(b"the task")


def problem(status: int, slug: str, detail: str, **more: Any) -> web.Response:
    body = {"type": f"https://dagseal.dev/problems/{slug}", "title": slug, "status": status, "detail": detail, **more}
    return web.json_response(body, status=status, content_type="application/problem+json")


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


class LauncherSim:
    """Checks the ticket and the bytes like the launcher, claims, opens the grant, logs, and signs a result."""

    def __init__(self, path: str, api_ring: KeyRing, now: Any) -> None:
        self.path = path
        self.key = SigningKey.generate()
        self.sealing = SealingKey.generate()
        self._ring = api_ring
        self._now = now
        self.output = [b"hello\n", b"world\n"]
        self.hold: asyncio.Event | None = None
        self.say_nonsense = False
        self.die_after_claim = False
        self.seen_archives: list[bytes] = []
        self.plaintexts: list[bytes] = []
        self.denied: list[str] = []
        self.cancelled = 0
        self.graces: list[int] = []
        self.say_refused = False
        self.closed_early = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> LauncherSim:
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(self.path)
        self._listening.listen(64)
        self._listening.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (self._accepting, *self._tasks):
            task.cancel()
        await asyncio.gather(self._accepting, *self._tasks, return_exceptions=True)
        self._listening.close()
        os.unlink(self.path)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._listening)
            task = asyncio.create_task(self._serve(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _frame(self, sock: socket.socket) -> tuple[messages.Message, list[int]]:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(sock, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(sock)
        head, fds, _, _ = socket.recv_fds(sock, messages.HEADER_BYTES, messages.MAX_FDS)
        if not head:
            raise EOFError
        try:
            while len(head) < messages.HEADER_BYTES:
                head += await loop.sock_recv(sock, messages.HEADER_BYTES - len(head))
            length, body = messages.body_length(head), b""
            while len(body) < length:
                part = await loop.sock_recv(sock, length - len(body))
                if not part:
                    raise EOFError
                body += part
            message = messages.decode(body)
            assert message.fds == len(fds)
        except BaseException:
            _close(fds)
            raise
        return message, fds

    async def _serve(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        try:
            while True:
                message, fds = await self._frame(sock)
                if message.kind == "identity":
                    await self._send(
                        sock,
                        "identity",
                        verify_key=to_base64(self.key.public.raw),
                        sealing_key=to_base64(self.sealing.public.raw),
                        version="0.1.0",
                        privileged=False,
                        warnings=[],
                    )
                    continue
                assert message.kind == "run"
                await self._run(sock, message, fds)
                return
        except (EOFError, ConnectionError):
            self.closed_early += 1
        finally:
            sock.close()

    async def _send(self, sock: socket.socket, kind: str, **fields: Any) -> None:
        await asyncio.get_running_loop().sock_sendall(sock, messages.encode(kind, **fields))

    async def _run(self, sock: socket.socket, message: messages.Message, fds: list[int]) -> None:
        ticket_envelope = message.fields.binary("ticket", max_bytes=64_000)
        manifest_envelope = message.fields.binary("manifest", max_bytes=1_000_000)
        message.fields.done()
        try:
            data = os.pread(fds[0], 10_000_000, 0)
            ticket = tickets.verify(ticket_envelope, self._ring, audience=self.key.public.key_id, now=self._now())
            stated = manifest.verify(manifest_envelope, self._ring)
            assert stated.digest == ticket.ticket.manifest_digest
            assert Digest.of(data) == ticket.ticket.digest
            assert len(fds) == (2 if ticket.ticket.supervised else 1)
            if ticket.ticket.supervised:
                os.write(fds[1], b"the task's word")
        finally:
            _close(fds)
        self.seen_archives.append(data)
        if self.say_refused:
            await self._send(sock, "result", envelope=to_base64(self.sign_result(ticket, "refused", "not here", b"")))
            return
        if self.say_nonsense:
            await self._send(sock, "sing")
            return
        claim = claims.sign_claim(
            Claim(
                ticket_id=ticket.ticket.ticket_id,
                launch_id=ticket.ticket.launch_id,
                ticket_digest=ticket.digest,
                task_digest=TASK_DIGEST,
                attestation={"no_new_privs": True},
                claimed_at=1,
            ),
            self.key,
        )
        await self._send(sock, "claim", envelope=to_base64(claim))
        answer, _ = await self._frame(sock)
        state, detail = "success", ""
        log = b"".join(self.output)
        if answer.kind == "deny":
            self.denied.append(answer.fields.text("detail"))
            state, detail, log = "refused", "denied", b""
        else:
            assert answer.kind == "grant"
            self.plaintexts.append(
                grants.open_sealed(
                    answer.fields.binary("envelope", max_bytes=4_000_000),
                    self._ring,
                    ticket_digest=ticket.digest,
                    claim_digest=claims.verify_claim(claim, self.key.public).digest,
                    key=self.sealing,
                )
            )
            for piece in self.output:
                await self._send(sock, "log", data=to_base64(piece))
            if self.die_after_claim:
                return
            if self.hold is not None:
                state = await self._until_released(sock)
        await self._send(sock, "result", envelope=to_base64(self.sign_result(ticket, state, detail, log)))

    async def _until_released(self, sock: socket.socket) -> str:
        assert self.hold is not None
        released = asyncio.create_task(self.hold.wait())
        told = asyncio.create_task(self._frame(sock))
        try:
            await asyncio.wait({released, told}, return_when=asyncio.FIRST_COMPLETED)
            if not told.done():
                return "success"
            message, _ = told.result()
            assert message.kind == "cancel"
            self.graces.append(message.fields.integer("grace_seconds"))
            self.cancelled += 1
            return "cancelled"
        finally:
            released.cancel()
            told.cancel()
            await asyncio.gather(released, told, return_exceptions=True)

    def sign_result(self, ticket: tickets.VerifiedTicket, state: str, detail: str, log: bytes) -> bytes:
        return claims.sign_result(
            Result(
                launch_id=ticket.ticket.launch_id,
                ticket_digest=ticket.digest,
                state=state,
                exit_code=77 if state == "refused" else 0,
                error="unauthorized" if state == "refused" else "",
                detail=detail,
                started_at=1,
                ended_at=2,
                timings_us={},
                max_rss_kib=1,
                log_digest=Digest.of(log),
                log_bytes=len(log),
                log_truncated=False,
                xcoms=(),
            ),
            self.key,
        )


class ApiSim:
    """Signs manifests and tickets, keeps blobs, logs and states. `fail` maps an operation to how often it answers 503."""

    def __init__(self, now: Any) -> None:
        self.key = SigningKey.generate()
        self.ring = KeyRing([self.key.public])
        self.log = LogServer(Log(key=self.key))
        self.logged = True
        self._recorded = 0
        self.leaf: dict[str, Any] = {}  # what the leaves of offered releases say besides
        self._now = now
        self.blobs: dict[str, bytes] = {Digest.of(ARCHIVE).hex: ARCHIVE}
        self.queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.reserved: dict[str, asyncio.Queue[dict[str, Any] | web.Response]] = {}
        self.logs: dict[str, bytes] = {}
        self.states: dict[str, str] = {}
        self.refusals: dict[str, tuple[str, str]] = {}
        self.results: dict[str, Result] = {}
        self.ended: dict[str, asyncio.Event] = {}
        self.running = asyncio.Event()
        self.cancel: set[str] = set()
        self.fail: dict[str, int] = {}
        self.forget_answer: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        self.refuse_claims = False
        self.refuse_results = False
        self.takes_waiting = 0
        self.tokens = {"Bearer tok"}
        self.launcher: LauncherSim | None = None

    async def __aenter__(self) -> ApiSim:
        app = web.Application(middlewares=[self._faults])
        app.add_routes(self.log.routes())
        app.router.add_post("/v1/workers/{name}/take", self._take)
        app.router.add_post("/v1/workers/{name}/report", self._report)
        app.router.add_get("/v1/blobs/sha512/{hex}", self._blob)
        app.router.add_post("/v1/launches/{id}/claim", self._claim)
        app.router.add_post("/v1/launches/{id}/log", self._log)
        app.router.add_post("/v1/launches/{id}/state", self._state)
        self._runner = web.AppRunner(app, auto_decompress=False, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def offer(self, launcher: LauncherSim, launch_id: str = "1" * 32, **changes: Any) -> dict[str, Any]:
        """A launch, signed as the API signs it; `changes` go into the ticket."""
        self.launcher = launcher
        data = changes.pop("data", ARCHIVE)
        digest, number = Digest.of(data), changes.pop("number", 1)
        stated = Manifest(
            archive=NAME,
            number=number,
            digest=digest,
            size=changes.pop("size", len(data)),
            members=(Member(name=NAME, size=len(data), digest=digest),),
            owner="ann",
            group="data",
            submitted_by="ann",
            created_at=1,
            task_check="task",
            airflow_version="3.3.2",
            dags=(
                DagEntry(
                    dag_id="etl",
                    member=NAME,
                    tasks=(
                        TaskEntry(
                            task_id="load",
                            digest=TASK_DIGEST,
                            operator="PythonOperator",
                            run_as_user=None,
                            queue="default",
                            connections=(),
                            mapped=False,
                        ),
                    ),
                ),
            ),
        )
        envelope = manifest.sign(stated, self.key)
        if self.logged and number > self._recorded:
            self.record(stated, **self.leaf)
        now = self._now()
        fields: dict[str, Any] = {
            "ticket_id": "a" * 32,
            "launch_id": launch_id,
            "audience": launcher.key.public.key_id,
            "queue": "default",
            "archive": NAME,
            "release": number,
            "digest": digest,
            "manifest_digest": manifest.verify(envelope, self.ring).digest,
            "dag_id": "etl",
            "task_id": "load",
            "run_id": "manual__1",
            "map_index": -1,
            "try_number": 1,
            "task_digest": TASK_DIGEST,
            "unix_user": "etl",
            "rule": "b" * 32,
            "owner": "ann",
            "principal": "ann",
            "issued_at": now,
            "expires_at": now + 60,
            "timeout_seconds": 600,
        }
        ticket = tickets.sign(Ticket(**{**fields, **changes}), self.key)
        self.ended[launch_id] = asyncio.Event()
        self.states[launch_id] = "offered"
        return {
            "launch_id": launch_id,
            "archive": NAME,
            "digest": str(digest),
            "ticket": to_base64(ticket),
            "manifest": to_base64(envelope),
            "xcom_dags": [],
        }

    def record(self, stated: Manifest, **changes: Any) -> Released:
        """The release, in the log; `changes` go into its leaf."""
        given: dict[str, Any] = {
            "at": 1,
            "by": "ann",
            "archive": stated.archive,
            "number": stated.number,
            "digest": stated.digest,
            "size": stated.size,
            "manifest": Digest.of(stated.to_bytes()),
            "owner": stated.owner,
            "group": stated.group,
            "waits": False,
        }
        leaf = Released(**{**given, **changes})
        self.log.log.add(leaf)
        self._recorded = stated.number
        return leaf

    @web.middleware
    async def _faults(self, request: web.Request, handler: Any) -> web.StreamResponse:
        operation = "blob" if "/blobs/" in request.path else request.path.rpartition("/")[2]
        self.calls[operation] = self.calls.get(operation, 0) + 1
        if request.headers.get("Authorization") not in self.tokens and operation != "checkpoint":
            return problem(401, "unauthenticated", "the token is not valid here")
        if self.fail.get(operation, 0) > 0:
            self.fail[operation] -= 1
            return problem(503, "fetch", "not now")
        answer = await handler(request)
        if self.forget_answer.get(operation, 0) > 0:
            self.forget_answer[operation] -= 1
            assert request.transport is not None
            request.transport.abort()
        return answer

    async def _report(self, request: web.Request) -> web.Response:
        assert set(await request.json()) >= {"log_size", "log_root", "held_root", "missing", "damaged", "alarm"}
        return web.json_response({"state": "verified", "why": ""})

    async def _take(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        assert asked["queues"]
        queue = self.queue if "task_instance" not in asked else self.reserve(asked["task_instance"])
        self.takes_waiting += 1
        try:
            async with asyncio.timeout(float(request.query["wait_seconds"])):
                found = await queue.get()
                return found if isinstance(found, web.Response) else web.json_response(found)
        except TimeoutError:
            return web.Response(status=204)
        finally:
            self.takes_waiting -= 1

    def reserve(self, task_instance: str) -> asyncio.Queue[Any]:
        """What is answered to takes of this task instance."""
        return self.reserved.setdefault(task_instance, asyncio.Queue())

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        data = self.blobs.get(request.match_info["hex"])
        if data is None:
            return problem(404, "not-found", "no such blob")
        return web.Response(body=data)

    async def _claim(self, request: web.Request) -> web.StreamResponse:
        assert self.launcher is not None
        launch_id = request.match_info["id"]
        if self.refuse_claims:
            return problem(409, "conflict", "the launch was cancelled")
        verified = claims.verify_claim(await request.read(), self.launcher.key.public)
        assert verified.claim.launch_id == launch_id
        self.states[launch_id] = "running"
        self.running.set()
        secrets = grants.Secrets(connections={"db": "sqlite://"}, variables={}, xcoms=(), run={})
        grant = grants.seal(
            secrets,
            launch_id=launch_id,
            ticket_digest=verified.claim.ticket_digest,
            claim_digest=verified.digest,
            to=self.launcher.sealing.public,
            key=self.key,
        )
        return web.Response(body=grant, content_type="application/vnd.dsse+json")

    async def _log(self, request: web.Request) -> web.StreamResponse:
        launch_id, offset = request.match_info["id"], int(request.query["offset"])
        held = self.logs.get(launch_id, b"")
        data = await request.read()
        if offset == len(held):
            held += data
            self.logs[launch_id] = held
        return web.json_response({"next_offset": len(held)})

    async def _state(self, request: web.Request) -> web.StreamResponse:
        assert self.launcher is not None
        launch_id = request.match_info["id"]
        if request.content_type == "application/vnd.dsse+json":
            if self.refuse_results:
                return problem(409, "conflict", "the launch is lost")
            verified = claims.verify_result(await request.read(), self.launcher.key.public)
            self.results[launch_id] = verified.result
            self.states[launch_id] = verified.result.state
            self.ended[launch_id].set()
            return web.json_response({"state": verified.result.state, "cancel": False})
        body = await request.json()
        if body["state"] == "refused":
            self.refusals[launch_id] = (body["error"], body["detail"])
            self.states[launch_id] = "refused"
            self.ended[launch_id].set()
            return web.json_response({"state": "refused", "cancel": False})
        return web.json_response({"state": self.states[launch_id], "cancel": launch_id in self.cancel})


@contextlib.asynccontextmanager
async def raw_server(answer: bytes, *, endless: bytes = b"") -> AsyncIterator[str]:
    """A server that says exactly these bytes to whoever connects, then closes, or goes on with `endless` for ever."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            while endless:
                writer.write(endless)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


__all__ = ["ARCHIVE", "NAME", "TASK_DIGEST", "ApiSim", "LauncherSim", "problem", "raw_server"]

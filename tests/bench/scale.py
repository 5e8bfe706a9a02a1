"""`python -m tests.bench.scale [--count N] [--only WORD] [--folder F]`: requests with few rows, and with 100 times as many.

Two real servers, each a process with a SQLite database of its own: 1,000 releases of one archive and 1,000 archives beside it
with one each, 1,000 audit events, 1,000 launches; and 100,000, 100,000, 1,000,000, 100,000. They are asked in turns over one
kept connection each, in an order that chance gives, so that whatever else the machine does hits both. What describes archives
for a push is the tests' simulator, in the process that measures: a description costs the same with any number of rows. A ratio
is large by small; its range is where nine of ten lie when the samples are drawn again.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import math
import os
import platform
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dagseal.footing import free_port
from integrity.digests import Digest
from integrity.fields import from_base64, to_base64
from submit_api import keyfiles, settings
from tests.bench import scale_rows
from tests.bench.audit_pages import p99
from tests.bench.figures import median
from tests.bench.scale_rows import DEEP, FEW, HALF, Size, wide
from tests.integration.submit_api.api_rig import DescribingPeer
from vocabulary import claims, tickets
from vocabulary.claims import Claim, Result
from vocabulary.keys import KeyRing, SealingKey, SigningKey, fingerprint

SIZES = {
    "small": Size(releases=1000, events=1000, launches=1000),
    "large": Size(releases=100_000, events=1_000_000, launches=100_000),
}
ROOT = Path(__file__).resolve().parents[2]
WORKER, QUEUE = "bench-worker", "default"
JSON, BYTES, DSSE = "application/json", "application/octet-stream", "application/vnd.dsse+json"
DRAWN_AGAIN, WARMING = 300, 20


@dataclass(slots=True)
class Server:
    """One running API, its connection, and what the next request of a launch needs."""

    size: Size
    connection: http.client.HTTPConnection
    ring: KeyRing
    tokens: dict[str, str]
    signing: SigningKey = field(default_factory=SigningKey.generate)
    sealing: SealingKey = field(default_factory=SealingKey.generate)
    offer: dict[str, Any] = field(default_factory=dict)
    ticket: tickets.VerifiedTicket | None = None
    pushed: int = 0

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        by: str = "admin",
        kind: str = JSON,
        expect: int = 200,
    ) -> tuple[float, bytes]:
        """Seconds until the whole answer is there, and the answer. Raises `RuntimeError` for any other status."""
        headers = {"Authorization": f"Bearer {self.tokens[by]}", "Content-Type": kind}
        begun = time.perf_counter()
        self.connection.request(method, path, body=body, headers=headers)
        with self.connection.getresponse() as answer:
            data = answer.read()
        seconds = time.perf_counter() - begun
        if answer.status != expect:
            raise RuntimeError(f"{method} {path} answered {answer.status}: {data[:500]!r}")
        return seconds, data

    def post(self, path: str, value: Any, *, by: str = "admin", expect: int = 201) -> tuple[float, Any]:
        seconds, data = self.call("POST", path, json.dumps(value).encode(), by=by, expect=expect)
        return seconds, json.loads(data)


def push_deep(server: Server, rng: random.Random) -> float:
    return _push(server, DEEP, rng)


def push_new(server: Server, rng: random.Random) -> float:
    server.pushed += 1
    return _push(server, f"new{server.pushed}x{rng.getrandbits(40):x}.py", rng)


def _push(server: Server, name: str, rng: random.Random) -> float:
    body = f"# {rng.getrandbits(128):x}\n".ljust(1023, "#").encode() + b"\n"
    return server.call("PUT", f"/v1/archives/{name}", body, kind=BYTES, expect=201)[0]


def reserve(server: Server, rng: random.Random) -> float:
    wanted = {"dag_id": DEEP[:-3], "task_id": "t", "run_id": f"manual__{rng.getrandbits(64):x}"}
    return server.post("/v1/launches", wanted)[0]


def take(server: Server, _: random.Random) -> float:
    seconds, server.offer = server.post(f"/v1/workers/{WORKER}/take", {"queues": [QUEUE]}, by=WORKER, expect=200)
    envelope = from_base64(server.offer["ticket"], "ticket", max_bytes=2**20)
    key_id, now = server.signing.public.key_id, int(time.time())
    server.ticket = tickets.verify(envelope, server.ring, audience=key_id, now=now)
    return seconds


def claim(server: Server, _: random.Random) -> float:
    assert server.ticket is not None
    made = Claim(
        ticket_id=server.ticket.ticket.ticket_id,
        launch_id=server.offer["launch_id"],
        ticket_digest=server.ticket.digest,
        task_digest=server.ticket.ticket.task_digest or Digest.of(b""),
        attestation={"no_new_privs": True},
        claimed_at=time.time_ns() // 1000,
    )
    path = f"/v1/launches/{server.offer['launch_id']}/claim"
    return server.call("POST", path, claims.sign_claim(made, server.signing), by=WORKER, kind=DSSE)[0]


def finish(server: Server, _: random.Random) -> float:
    assert server.ticket is not None
    now = time.time_ns() // 1000
    made = Result(
        launch_id=server.offer["launch_id"], ticket_digest=server.ticket.digest, state="success", exit_code=0, error="",
        detail="", started_at=now, ended_at=now, timings_us={"run": 1}, max_rss_kib=1, log_digest=Digest.of(b""),
        log_bytes=0, log_truncated=False, xcoms=(),
    )  # fmt: skip
    path = f"/v1/launches/{server.offer['launch_id']}/state"
    return server.call("POST", path, claims.sign_result(made, server.signing), by=WORKER, kind=DSSE)[0]


def getting(
    path: Callable[[Server, random.Random], str], by: str = "admin"
) -> Callable[[Server, random.Random], float]:
    return lambda server, rng: server.call("GET", path(server, rng), by=by)[0]


def _archive(server: Server, rng: random.Random) -> str:
    """After it there is a whole page, also of who sees half."""
    return wide(rng.randrange(server.size.releases - 250))


def _event(server: Server, rng: random.Random) -> int:
    return rng.randrange(server.size.events // 2)


def _of_a_user(server: Server, rng: random.Random) -> str:
    """One of forty principals of a quarter of the events: of 1,000 events everyone has six, each in another place."""
    return f"after={rng.randrange(server.size.events - 990)}&principal=user-{rng.randrange(40)}&limit=6"


WORK: dict[str, Callable[[Server, random.Random], float]] = {
    "PUT: the next release of one archive": push_deep,
    "PUT: a new archive": push_new,
    "launch: reserve": reserve,
    "launch: take": take,
    "launch: claim": claim,
    "launch: result": finish,
    "archives": getting(lambda s, r: "/v1/archives"),
    "archives: a page within": getting(lambda s, r: f"/v1/archives?after={_archive(s, r)}"),
    "archives: of who sees 20": getting(lambda s, r: "/v1/archives", FEW),
    "archives: of who sees half": getting(lambda s, r: f"/v1/archives?after={_archive(s, r)}", HALF),
    "archive with its newest releases": getting(lambda s, r: f"/v1/archives/{DEEP}"),
    "releases: a page of 20 within": getting(
        lambda s, r: f"/v1/archives/{DEEP}/releases?limit=20&after={r.randrange(s.size.releases // 2)}"
    ),
    "launches": getting(lambda s, r: "/v1/launches"),
    "launches: failed": getting(lambda s, r: "/v1/launches?state=failed"),
    "launches: of a dag": getting(lambda s, r: f"/v1/launches?dag_id={DEEP[:-3]}"),
    "launches: of who sees 20 archives": getting(lambda s, r: "/v1/launches", FEW),
    "launches: of who sees half": getting(lambda s, r: "/v1/launches", HALF),
    "audit: a page within": getting(lambda s, r: f"/v1/audit?after={_event(s, r)}"),
    "audit: of an object": getting(lambda s, r: f"/v1/audit?object=launch:{_event(s, r) // 4:032x}"),
    "audit: of a principal, a whole page": getting(lambda s, r: f"/v1/audit?after={_event(s, r)}&principal=worker-1"),
    "audit: of a principal, six": getting(lambda s, r: f"/v1/audit?{_of_a_user(s, r)}"),
}


@contextmanager
def describing(path: str) -> Iterator[None]:
    """The simulated describer, in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    peer = DescribingPeer(path)
    asyncio.run_coroutine_threadsafe(peer.start(), loop).result(10)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(peer.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def serving(folder: Path, name: str, size: Size) -> Iterator[Server]:
    """A server of this size; its database is filled when it has no rows."""
    state, sock, port = folder / name, folder / f"{name}.sock", free_port()
    config = folder / f"{name}.toml"
    config.write_text(
        f'[api]\nport = {port}\nstate_folder = "{state}"\nlauncher_socket = "{sock}"\n[launches]\nticket_seconds = 600\n'
    )
    command = [sys.executable, "-m", "submit_api", "--config", str(config)]
    token = subprocess.run([*command, "--bootstrap"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    keys = keyfiles.load(settings.load(str(config)))
    if not _filled(state / "dagseal.db"):
        begun = time.monotonic()
        scale_rows.fill(str(state / "dagseal.db"), size, keys.signing)
        print(f"{name}: filled in {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    with describing(str(sock)), (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            server = Server(size, connection, keys.ring, {"admin": token.stdout.strip()})
            _ready(server, process)
            _enrol(server)
            yield server
        finally:
            process.terminate()
            process.wait()


def _filled(path: Path) -> bool:
    with sqlite3.connect(path) as connection:
        return bool(connection.execute("SELECT 1 FROM archives LIMIT 1").fetchall())


def _ready(server: Server, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        try:
            server.call("GET", "/readyz")
            return
        except OSError:
            server.connection.close()
            if process.poll() is not None:
                raise
            time.sleep(0.1)
    raise TimeoutError("the server does not answer")


def _enrol(server: Server) -> None:
    for person in (FEW, HALF):
        server.tokens[person] = server.post("/v1/tokens", {"principal": person})[1]["token"]
    workers = json.loads(server.call("GET", "/v1/workers")[1])["workers"]
    if any(worker["name"] == WORKER and worker["revoked_at"] is None for worker in workers):
        server.call("DELETE", f"/v1/workers/{WORKER}", expect=204)
    body = {
        "name": WORKER,
        "verify_key": to_base64(server.signing.public.raw),
        "sealing_key": to_base64(server.sealing.public.raw),
        "fingerprint": fingerprint(server.signing.public, server.sealing.public),
        "queues": [QUEUE],
    }
    server.tokens[WORKER] = server.post("/v1/workers", body)[1]["token"]
    rule = {"subject_kind": "principal", "subject": "admin", "unix_user": "nobody"}
    server.post("/v1/impersonation-rules", rule)


def measure(servers: dict[str, Server], count: int, only: str) -> dict[str, dict[str, list[float]]]:
    """Seconds of each request, by kind and size, without the first rounds. A launch goes through its states in order."""
    rng = random.Random()
    for server in servers.values():
        server.connection.close()  # the server has, when it was idle for long
        server.call("GET", "/healthz")
    found: dict[str, dict[str, list[float]]] = {what: {name: [] for name in servers} for what in WORK if only in what}
    names = list(servers)
    for number in range(-WARMING, count):
        for what, times in found.items():
            rng.shuffle(names)
            for name in names:
                seconds = WORK[what](servers[name], rng)
                if number >= 0:
                    times[name].append(seconds)
    return found


def ratio_range(small: list[float], large: list[float], of: Callable[[list[float]], float]) -> tuple[float, float]:
    """From the fifth to the 95th of a hundred ratios of samples that are drawn again."""
    rng = random.Random(1)
    ratios = sorted(
        of(rng.choices(large, k=len(large))) / of(rng.choices(small, k=len(small))) for _ in range(DRAWN_AGAIN)
    )
    return ratios[DRAWN_AGAIN // 20], ratios[DRAWN_AGAIN - 1 - DRAWN_AGAIN // 20]


def line(what: str, times: dict[str, list[float]]) -> str:
    small, large = times["small"], times["large"]
    cells = [f"{of(times[name]) * 1e3:>7.2f}" for of in (median, p99) for name in ("small", "large")]
    shown = []
    for of in (median, p99):
        low, high = ratio_range(small, large, of)
        shown.append(f"{of(large) / of(small):>6.2f} ({low:.2f}-{high:.2f})")
    return f"{what:<38}{cells[0]} {cells[1]} {shown[0]:>20}  {cells[2]} {cells[3]} {shown[1]:>20}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="requests of each kind to each server")
    parser.add_argument("--folder", type=Path, help="keep the databases there, and use those that are there")
    parser.add_argument("--only", default="", metavar="WORD", help="the kinds that have it in their name")
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        folder = asked.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dagseal-bench-")))
        folder.mkdir(exist_ok=True)
        servers = {name: stack.enter_context(serving(folder, name, size)) for name, size in SIZES.items()}
        begun = time.monotonic()
        found = measure(servers, asked.count, asked.only)
        took = math.ceil((time.monotonic() - begun) / 60)
    print(
        f"{os.cpu_count()} cores, {platform.system()} {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}; load {load:.1f} at start, {os.getloadavg()[0]:.1f} at the end; "
        f"{asked.count} requests of each kind to each server, in {took} minutes"
    )
    head = f"{'ms':<38}{'median':>7} {'':>7} {'ratio':>20}  {'p99':>7} {'':>7} {'ratio':>20}"
    print(head, "-" * len(head), *(line(what, times) for what, times in found.items()), sep="\n")


if __name__ == "__main__":
    main()

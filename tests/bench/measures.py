"""The measurements of dagseal itself. Each returns seconds, one per repetition, in the order in which they were taken."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from integrity.digests import Digest
from tests.bench.keepalive import Http
from tests.live import ENDED, Live
from vocabulary.keys import SigningKey, VerifyKey
from worker_cache.cache import Cache
from worker_cache.client import Client
from worker_cache.signing import Signer
from worker_cache.store import Store
from worker_cache.transport import Transport

ROOT = Path(__file__).resolve().parents[2]


@dataclass(slots=True)
class Uploads:
    """Seconds per upload, and what was stored, for the fetches afterwards."""

    seconds: list[float] = field(default_factory=list)
    stored: list[tuple[Digest, int]] = field(default_factory=list)


@dataclass(slots=True)
class Launches:
    """Seconds per launch as its caller sees it, with the wall clock at both ends and the launch as the API shows it."""

    seconds: list[float] = field(default_factory=list)
    sent_at: list[float] = field(default_factory=list)
    seen_at: list[float] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)


def upload(http: Http, archive: str, make: Callable[[], bytes], count: int) -> Uploads:
    """Releases of one archive, each of new bytes; until 201, which comes after the commit."""
    done = Uploads()
    http.fresh()
    for _ in range(count):
        data = make()
        begin = time.perf_counter()
        release = http.call("PUT", f"/v1/archives/{archive}", data, expect=201, kind="octet-stream")
        done.seconds.append(time.perf_counter() - begin)
        done.stored.append((Digest.parse(release["digest"]), len(data)))
    return done


def describe(live: Live, kind: str, count: int) -> list[float]:
    """The launcher's part of an upload, asked for as the API's account: the launcher listens to no other."""
    account = pwd.getpwnam(live.stack.accounts.api)
    who: dict[str, Any] = (
        {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if live.stack.privileged else {}
    )
    done = subprocess.run(
        [sys.executable, "-s", "-m", "tests.bench.describing", str(live.stack.launcher_socket), kind, str(count)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        **who,
    )
    return [float(value) for value in json.loads(done.stdout)]


def fetch(live: Live, stored: list[tuple[Digest, int]]) -> tuple[list[float], list[float]]:
    """By the agent's own cache, signed with the agent's key: from the API into an empty cache, then from that cache."""
    folder = Path(tempfile.mkdtemp(prefix="dagseal-bench-"))
    try:
        return asyncio.run(_fetch(live, stored, str(folder / "cache")))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _fetch(live: Live, stored: list[tuple[Digest, int]], folder: str) -> tuple[list[float], list[float]]:
    key = SigningKey(bytes.fromhex((live.stack.folder / "agent" / "request.key").read_text().strip()))
    server = VerifyKey(base64.b64decode(live.stack.environment()["DAGSEAL_API_KEY"]))
    store = Store.open(folder)
    try:
        async with Transport(live.stack.url, None, signer=Signer(lambda: key, server, time.time)) as transport:
            cache = Cache(store, Client(transport).blob, max_blob_bytes=64 * 1024 * 1024)
            await _open(cache, *stored[0])  # connects
            cold = [await _open(cache, *one) for one in stored[1:]]
            warm = [await _open(cache, *one) for one in stored[1:]]
    finally:
        store.close()
    return cold, warm


async def _open(cache: Cache, digest: Digest, size: int) -> float:
    begin = time.perf_counter()
    os.close(await cache.open(digest, size=size))
    return time.perf_counter() - begin


def launch(http: Http, dag_id: str, run_id: str, into: Launches) -> None:
    """One launch: from sending the request until a long poll shows `success`."""
    sent_at, begin = time.time(), time.perf_counter()
    shown = http.post("/v1/launches", {"dag_id": dag_id, "task_id": "noop", "run_id": run_id})
    while shown["state"] not in ENDED:
        shown = http.call("GET", f"/v1/launches/{shown['id']}?wait_seconds=30", expect=200)
    into.seconds.append(time.perf_counter() - begin)
    if shown["state"] != "success":
        raise RuntimeError(f"the launch ended as {shown['state']}: {shown['error']} {shown['detail']}")
    into.sent_at.append(sent_at)
    into.seen_at.append(time.time())
    into.shown.append(shown)


def command(arguments: list[str], count: int) -> list[float]:
    """A process from its start to its exit. Raises `CalledProcessError`."""
    seconds = []
    for _ in range(count):
        begin = time.perf_counter()
        subprocess.run(arguments, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - begin)
    return seconds

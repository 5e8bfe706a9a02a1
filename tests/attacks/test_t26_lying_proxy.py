"""T26 lying-log, second half: what launches make of it, with the real API, agent and launcher.

Between agent and API stands a proxy that passes everything on, but for what it says of the log; where it says so it has
the API's key. And the operator himself does what looks like an attack: he restores an older backup. Each refused launch is in
the API's audit log, and no byte of it ran.

Seen to fail when weakened: `launching.carry_out` that does not ask `require_launchable`.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import secrets
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from integrity.digests import Digest
from tests.attacks.attacker import Traces, new_traces, traced_dag, until
from tests.live import Live, running
from tests.logsim import Log, binary, note, released
from vocabulary import checkpoints, tiles
from vocabulary.keys import SigningKey
from vocabulary.leaves import Revoked

HOP = frozenset({"host", "content-length", "transfer-encoding", "connection", "keep-alive"})


class Proxy:
    """In a thread of its own. `note` and `entries` are of the log that it shows in place of the API's; while it is `deaf`, no
    report reaches the API, which then goes on to offer launches, as one that lies would."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self.note: bytes | None = None
        self.entries: list[bytes] | None = None
        self.deaf = True
        self.url = ""

    def truth(self) -> None:
        self.note, self.entries, self.deaf = None, None, True

    @contextmanager
    def serving(self) -> Iterator[Proxy]:
        loop, ready, ending = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

        async def serve() -> None:
            app = web.Application(client_max_size=2**30)
            app.router.add_route("*", "/{path:.*}", self._pass)
            runner = web.AppRunner(app, auto_decompress=False, shutdown_timeout=0.1, handler_cancellation=True)
            async with aiohttp.ClientSession(auto_decompress=False) as self._session:
                await runner.setup()
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
                ready.set()
                await ending.wait()
                await runner.cleanup()

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
        thread.start()
        ready.wait(30)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(ending.set)
            thread.join()
            loop.close()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/log/checkpoint" and self.note is not None:
            return note(self.note)
        if request.path == "/v1/log/entries" and self.entries is not None:
            start, end = int(request.query["start"]), int(request.query["end"])
            return binary(tiles.bundle(self.entries[start:end]))
        if self.deaf and request.path.endswith("/report"):
            return web.json_response({"state": "verified", "why": ""})
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
        url = URL(self._upstream + request.raw_path, encoded=True)
        try:
            async with self._session.request(
                request.method, url, headers=headers, data=await request.read(), allow_redirects=False
            ) as answer:
                kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP}
                return web.Response(status=answer.status, headers=kept, body=await answer.read())
        except aiohttp.ClientError:
            return web.Response(status=502)


class Between:
    """The running dagseal, its agent behind the proxy."""

    def __init__(self, live: Live, proxy: Proxy) -> None:
        self.live, self.proxy = live, proxy
        live.stack.stop("agent")
        config = live.stack.folder / "agent.toml"
        config.write_text(config.read_text().replace(live.stack.url, proxy.url))
        live.stack.start_agent()

    def anew(self) -> None:
        """The operator decides to trust the log as it is now: he moves the folder away."""
        self.live.stack.stop("agent")
        log = self.live.stack.cache / "log"
        if log.exists():
            log.rename(self.live.stack.folder / f"evidence{secrets.token_hex(4)}")
        self.live.stack.start_agent()

    def key(self) -> SigningKey:
        found = self.live.stack.folder / "api" / "keys" / "signing.key"
        return SigningKey(bytes.fromhex(found.read_text().strip()))

    def log(self) -> Log:
        """The true one, with the key that signs it."""
        held = checkpoints.Checkpoint.from_text(self.checkpoint().decode().split("\n\n")[0] + "\n")
        entries: list[bytes] = []
        while len(entries) < held.size:
            answer = self.live.http("GET", f"/v1/log/entries?start={len(entries)}&end={held.size}")
            entries += tiles.entries_of(answer.body)
        return Log(key=self.key(), entries=entries, origin=held.origin)

    def checkpoint(self) -> bytes:
        with urllib.request.urlopen(self.live.stack.url + "/v1/log/checkpoint", timeout=30) as answer:
            return bytes(answer.read())

    def agent_log(self, event: str, **fields: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.live.stack.log_of("agent").splitlines() if line.startswith("{")]
        return [line for line in lines if line.items() >= {"event": event, **fields}.items()]

    def heard(self, before: int, event: str, **fields: str) -> dict[str, Any]:
        """The newest such line of the agent's log, when there are more than before."""
        return until(f"the agent says {event}", lambda: self.agent_log(event, **fields)[before:])[-1]

    def followed(self, shown: Log | None = None) -> None:
        """Until the agent knows the API's whole log, or the one that it is shown."""
        size = len((shown or self.log()).entries)
        until("the agent follows", lambda: [e for e in self.agent_log("log followed") if e["size"] >= size])

    def worker(self) -> dict[str, Any]:
        (found,) = self.live.http("GET", "/v1/workers").json["workers"]
        return dict(found)

    def push(self, name: str, traces: Traces, more: str = "") -> None:
        pushed = self.live.push(f"{name}.py", traced_dag(name, traces) + more)
        assert pushed.status == 201, pushed.body

    def refused(self, name: str, slug: str, text: str) -> None:
        launch = self.live.launch(name, "t", secrets.token_hex(4))
        assert (launch["state"], launch["error"]) == ("refused", slug), launch["detail"]
        assert text in launch["detail"]
        assert launch["started_at"] is None
        event = self.live.audit(object=f"launch:{launch['id']}")[-1]
        assert (event["action"], event["verdict"], event["rule"]) == ("launch.state", "refused", slug)
        assert text in event["detail"]


@pytest.fixture(scope="module")
def between() -> Iterator[Between]:
    with (
        running(more_agent_toml="log_sync_seconds = 0.05\nreport_seconds = 0.5\n") as live,
        Proxy(live.stack.url).serving() as proxy,
    ):
        yield Between(live, proxy)


@pytest.fixture
def traces(between: Between) -> Iterator[Traces]:
    with new_traces(between.live) as fresh:
        yield fresh


@pytest.fixture
def name(between: Between) -> Iterator[str]:
    yield f"t26{secrets.token_hex(4)}"
    between.proxy.truth()
    between.proxy.deaf = False
    between.anew()
    until("the worker is mended", lambda: between.worker()["state"] != "drifted")
    between.proxy.deaf = True


def test_a_release_that_the_log_does_not_show(between: Between, traces: Traces, name: str) -> None:
    """The proxy keeps the log as it was before the push; or the API has a release that it does not log."""
    between.followed()
    between.proxy.note = between.log().note()
    between.push(name, traces)
    between.refused(name, "not-found", f"{name}.py@1 is not in the log")
    assert not traces.of("ran")
    between.proxy.truth()
    assert between.live.launch(name, "t", "later")["state"] == "success", "a launch right after is no trouble"


def test_a_release_that_the_log_has_revoked(between: Between, traces: Traces, name: str) -> None:
    """The API offers it all the same; it is the log that says so, in a leaf that the API's key signed for."""
    between.push(name, traces)
    between.followed()
    told = between.log()
    manifest = between.live.http("GET", f"/v1/archives/{name}.py/releases/1").json
    digest = Digest.parse(manifest["digest"])
    told.add(Revoked(at=1, by="admin", archive=f"{name}.py", number=1, digest=digest))
    between.proxy.note, between.proxy.entries = told.note(), told.entries
    between.followed(told)
    between.refused(name, "revoked", f"{name}.py@1 was revoked")
    assert not traces.of("ran")


def test_a_log_that_stands_still(between: Between, traces: Traces, name: str) -> None:
    """An agent that knows nothing yet is shown a genuine checkpoint of an hour ago."""
    said = len(between.agent_log("log not followed", slug="stale"))
    between.push(name, traces)
    between.proxy.note = between.log().note(at=time.time() - 3600)
    between.anew()
    between.refused(name, "stale", "the limit is 600 s")
    assert not traces.of("ran")
    assert "s old" in between.heard(said, "log not followed", slug="stale")["error"]


def test_two_logs(between: Between, traces: Traces, name: str) -> None:
    """A compromised server, which signs another past for this agent: nothing runs until somebody has decided."""
    forks = len(between.agent_log("the log forked"))
    between.push(name, traces)
    between.followed()
    told = between.log()
    size = len(told.entries)
    told.entries = told.entries[:-1]
    told.add(released("evil.py", 1))
    assert len(told.entries) == size
    between.proxy.note = told.note(at=time.time() + 1)
    evidence = between.live.stack.cache / between.heard(forks, "the log forked")["evidence"]
    for suffix in (".known", ".seen"):
        verified = checkpoints.verify(evidence.with_name(evidence.name + suffix).read_bytes(), [told.key.public])
        assert verified.checkpoint.size == size
    between.proxy.truth()
    between.refused(name, "fork", "the server showed two logs")
    between.live.stack.stop("agent")
    between.live.stack.start_agent()
    between.refused(name, "fork", "until somebody found out why and moved the folder log away")
    assert not traces.of("ran")
    between.anew()
    assert between.live.launch(name, "t", "decided")["state"] == "success"


def test_an_honest_server_offers_nothing_to_who_was_shown_another_log(
    between: Between, traces: Traces, name: str
) -> None:
    """It hears of it in the agent's report: the launch waits for another worker, or until somebody has decided."""
    between.push(name, traces)
    between.followed()
    told = between.log()
    told.entries = told.entries[:-1]
    told.add(released("evil.py", 1))
    between.proxy.note, between.proxy.deaf = told.note(at=time.time() + 1), False

    worker = between.worker
    until("the worker has drifted", lambda: worker()["state"] == "drifted")
    assert "two logs" in worker()["why"]
    ask = {"dag_id": name, "task_id": "t", "run_id": "waits"}
    waiting = between.live.http("POST", "/v1/launches", ask).json["id"]
    until("it is refused", lambda: [one for one in between.agent_log("nothing taken") if "drifted" in one["error"]])
    assert between.live.http("GET", f"/v1/launches/{waiting}").json["state"] == "queued"
    events = between.live.audit(object="worker:" + worker()["name"])
    assert ("worker.drift", "refused") in [(one["action"], one["verdict"]) for one in events]
    assert not traces.of("ran")
    between.proxy.note = None
    between.anew()
    assert between.live.wait(waiting)["state"] == "success"
    until("the worker is mended", lambda: worker()["state"] == "verified")


def test_an_older_backup_that_is_restored(between: Between, traces: Traces, name: str) -> None:
    """Seen as a rollback; and as a fork once the API records something else in place of what it forgot."""
    live, forks = between.live, len(between.agent_log("the log forked"))
    between.push(name, traces)
    out = live.stack.folder / "api" / f"{name}.backup"
    as_api(live, "backup", "--out", str(out))
    between.push(name, traces, "# of after the backup\n")
    between.followed()
    state = live.stack.folder / "api"
    live.stack.stop("api")
    aside = live.stack.folder / f"lost{secrets.token_hex(4)}"
    state.rename(aside)
    state.mkdir(mode=0o700)
    shutil.copytree(aside / "keys", state / "keys")
    shutil.move(aside / out.name, live.stack.folder / out.name)
    give(live, state, live.stack.folder / out.name)
    as_api(live, "restore", str(live.stack.folder / out.name))
    live.stack.start_api()
    found = between.heard(0, "log not followed", slug="rollback")
    assert "restored from an older backup" in found["error"]
    between.push(name, traces, "# another one, with the number of what was forgotten\n")
    live.stack.stop("agent")
    live.stack.start_agent()
    between.heard(forks, "the log forked")
    between.refused(name, "fork", "the server showed two logs")
    assert not traces.of("ran")
    between.anew()
    assert live.launch(name, "t", "decided")["state"] == "success"


def as_api(live: Live, *arguments: str) -> None:
    command = [sys.executable, "-s", "-P", "-m", "dagseal.cli.app", "--config", str(live.stack.folder / "api.toml")]
    who: dict[str, Any] = {}
    if live.stack.privileged:
        entry = pwd.getpwnam(live.stack.accounts.api)
        who = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    done = subprocess.run(
        [*command, *arguments], env=live.stack.environment(), cwd="/", capture_output=True, text=True, **who
    )
    assert done.returncode == 0, done.stdout + done.stderr


def give(live: Live, *paths: Path) -> None:
    if not live.stack.privileged:
        return
    entry = pwd.getpwnam(live.stack.accounts.api)
    for top in paths:
        for path in (top, *top.rglob("*")):
            os.chown(path, entry.pw_uid, entry.pw_gid)

"""A transparency log and its server in this process, for tests of those who follow it. It keeps any rule that it is not told to
break: `bend` changes an answer on its way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

import structlog
from aiohttp import web

from integrity.digests import Digest
from vocabulary import checkpoints, leaves, lognews, merkle, tiles
from vocabulary.checkpoints import Checkpoint
from vocabulary.keys import SigningKey, VerifyKey
from vocabulary.leaves import Activated, Approved, Keyed, Leaf, Owned, Released, Retired, Revoked
from vocabulary.logview import LogView
from vocabulary.manifest import Manifest, Member, VerifiedManifest
from vocabulary.merkle import Tree
from worker_cache.client import Client
from worker_cache.following import Follower
from worker_cache.logstore import LogStore
from worker_cache.store import Store
from worker_cache.transport import Transport

QUEUES = frozenset({"default"})  # of an agent here

PROBLEM = "application/problem+json"


def released(
    archive: str, number: int, *, data: bytes | None = None, waits: bool = False, **changes: object
) -> Released:
    raw = data if data is not None else f"{archive}@{number}".encode()
    given: dict[str, object] = {
        "at": 1,
        "by": "ann",
        "archive": archive,
        "number": number,
        "digest": Digest.of(raw),
        "size": len(raw),
        "manifest": Digest.of(b"manifest of " + raw),
        "owner": "ann",
        "group": "team",
        "waits": waits,
    }
    return Released(**{**given, **changes})  # type: ignore[arg-type]


def activated(archive: str, number: int) -> Activated:
    return Activated(at=1, by="ann", archive=archive, number=number)


def approved(release: Released, *, enough: bool = True) -> Approved:
    return Approved(
        at=1, by="bob", archive=release.archive, number=release.number, digest=release.digest, enough=enough
    )


def revoked(release: Released) -> Revoked:
    return Revoked(at=1, by="ann", archive=release.archive, number=release.number, digest=release.digest)


def retired(release: Released) -> Retired:
    return Retired(at=1, by="dagseal", archive=release.archive, number=release.number, digest=release.digest)


def owned(archive: str) -> Owned:
    return Owned(at=1, by="ann", archive=archive, owner="ann", group="team", mode=0o770)


@dataclass
class Log:
    """`key` signs; `entries` are what it says, from its first key on."""

    key: SigningKey = field(default_factory=SigningKey.generate)
    entries: list[bytes] = field(default_factory=list)
    origin: str = ""

    def __post_init__(self) -> None:
        self.origin = self.origin or checkpoints.origin_of(self.key.public)
        if not self.entries:
            self.add(Keyed(at=1, key=self.key.public, signature=None))

    def add(self, *found: Leaf) -> Log:
        self.entries += [leaves.to_bytes(leaf) for leaf in found]
        return self

    def push(self, archive: str, number: int) -> Released:
        """A release that becomes active."""
        release = released(archive, number)
        self.add(release, activated(archive, number))
        return release

    def hand_on(self, key: SigningKey | None = None, *, by: SigningKey | None = None) -> SigningKey:
        """The log has another key from here on."""
        new = key or SigningKey.generate()
        self.add(Keyed.handed_on(self.origin, new.public, by=by or self.key, at=1))
        self.key = new
        return new

    def copy(self, size: int | None = None) -> Log:
        """One that begins as this one does."""
        return Log(key=self.key, entries=self.entries[:size], origin=self.origin)

    def tree(self, size: int | None = None) -> Tree:
        return Tree().extended(map(merkle.leaf_hash, self.entries[:size]))

    def stated(self, size: int | None = None, *, at: float | None = None) -> Checkpoint:
        tree = self.tree(size)
        return Checkpoint(
            origin=self.origin, size=tree.size, root=tree.root, time=int(time.time() if at is None else at)
        )

    def note(self, size: int | None = None, *, at: float | None = None, key: SigningKey | None = None) -> bytes:
        return checkpoints.sign(self.stated(size, at=at), key or self.key)

    def bundle(self, start: int, end: int) -> bytes:
        return tiles.bundle(self.entries[start:end])


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class LogServer:
    """What the API serves of a log. `checkpoint` and `entries` may be replaced by who lies; `asked` are the calls."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.page = 4096
        self.blobs: list[lognews.Blob] = []  # sent with few leaves, right or wrong
        self.asked: list[str] = []
        self.checkpoint: Answer = self.true_checkpoint
        self.entries: Answer = self.true_entries

    def routes(self) -> Iterable[web.RouteDef]:
        """Whatever stands in the two attributes when it is asked."""

        async def checkpoint(request: web.Request) -> web.StreamResponse:
            self.asked.append("checkpoint")
            assert "Authorization" not in request.headers, "the checkpoint is for everybody: the token stays at home"
            return await self.checkpoint(request)

        async def entries(request: web.Request) -> web.StreamResponse:
            self.asked.append(f"entries {request.query['start']}-{request.query['end']}")
            return await self.entries(request)

        return [web.get("/v1/log/checkpoint", checkpoint), web.get("/v1/log/entries", entries)]

    async def true_checkpoint(self, request: web.Request) -> web.StreamResponse:
        return note(self.log.note())

    async def true_entries(self, request: web.Request) -> web.StreamResponse:
        start, end = int(request.query["start"]), int(request.query["end"])
        if start >= len(self.log.entries):
            return web.json_response({"status": 404, "detail": "no such leaf"}, status=404, content_type=PROBLEM)
        found = self.log.bundle(start, min(end, start + self.page))
        if self.blobs and "blobs" in request.query:
            return web.Response(body=lognews.encode(found, self.blobs), content_type=lognews.MEDIA_TYPE)
        return binary(found)

    def say(self, data: bytes) -> None:
        """This note from now on."""

        async def checkpoint(request: web.Request) -> web.StreamResponse:
            return note(data)

        self.checkpoint = checkpoint

    def give(self, data: bytes) -> None:
        """These entries, whatever is asked for."""

        async def entries(request: web.Request) -> web.StreamResponse:
            return binary(data)

        self.entries = entries

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Its address."""
        app = web.Application()
        app.add_routes(self.routes())
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


def note(data: bytes) -> web.Response:
    return web.Response(body=data, content_type="text/plain", charset="utf-8")


def binary(data: bytes) -> web.Response:
    return web.Response(body=data, content_type="application/octet-stream")


async def endless(request: web.Request) -> web.StreamResponse:
    """An answer that goes on for as long as somebody reads."""
    answer = web.StreamResponse()
    await answer.prepare(request)
    while True:
        await answer.write((b"\x00\x40" + b"a" * 64) * 1000)
        await asyncio.sleep(0)


async def silent(request: web.Request) -> web.StreamResponse:
    """One that never comes."""
    await asyncio.Event().wait()
    raise AssertionError


class Following:
    """A follower with its folder, against a server in this process, or any other."""

    def __init__(
        self, follower: Follower, kept: LogStore, folder: Path, log: structlog.testing.CapturingLogger
    ) -> None:
        self.follower, self.folder, self._kept, self._log = follower, folder, kept, log
        self.at = 0.0  # by how much this host's clock is ahead
        self.views: list[LogView] = []
        self.offered: list[lognews.Blob] = []  # what came with leaves, in the order in which it was passed on

    @property
    def wanted(self) -> list[dict[Digest, int]]:
        """What it was told to have, each time that it was told of a view."""
        return [view.wanted(QUEUES) for view in self.views]

    def files(self) -> dict[str, bytes]:
        """All that is on disk below the cache, when what is written beside has been."""
        self._kept.settle()
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in self.folder.rglob("*") if p.is_file()}

    def events(self, name: str) -> list[dict[str, object]]:
        return [dict(call.kwargs) for call in self._log.calls if call.args == (name,)]

    async def once(self) -> None:
        """As the agent asks, once: what is refused is in its log."""

        async def pause(seconds: float) -> bool:
            return False

        await self.follower.follow(pause, lambda: repeat(1.0), seconds=1.0)


@asynccontextmanager
async def following(
    folder: Path, url: str, pinned: VerifyKey, *, max_age_seconds: int = 600, token: str = "tok"
) -> AsyncIterator[Following]:
    store = Store.open(str(folder))
    kept, log = LogStore(store.log_folder()), structlog.testing.CapturingLogger()
    try:
        async with Transport(url, token) as transport:
            made: Following
            follower = Follower(
                Client(transport),
                kept,
                kept.load(pinned),
                pinned=pinned,
                max_age_seconds=max_age_seconds,
                now=lambda: time.time() + made.at,
                log=log,  # type: ignore[arg-type]
                changed=lambda view: made.views.append(view),
                offer=lambda blobs: made.offered.extend(blobs),
            )
            made = Following(follower, kept, folder, log)
            yield made
    finally:
        kept.close()
        store.close()


def stated(release: Released, *, digest: Digest | None = None, manifest: Digest | None = None) -> VerifiedManifest:
    """A release as a verified manifest names it; these may be others than its own."""
    named = Manifest(
        archive=release.archive,
        number=release.number,
        digest=digest or release.digest,
        size=release.size,
        members=(Member(name="etl.py", size=release.size, digest=digest or release.digest),),
        owner="ann",
        group="team",
        submitted_by="ann",
        created_at=1,
        task_check="archive",
        airflow_version="3.3.2",
        dags=(),
    )
    return VerifiedManifest(manifest=named, digest=manifest or release.manifest, key_id="f" * 64)

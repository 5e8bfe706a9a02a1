"""One agent's folder and the agent itself, all of it real, between the peers of `agent_peers`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from integrity.digests import Digest
from tests.integration.worker_cache.agent_peers import ARCHIVE, ApiSim, LauncherSim
from worker_cache import agent
from worker_cache.authors import ANYBODY
from worker_cache.cache import Cache
from worker_cache.client import Client
from worker_cache.following import Follower
from worker_cache.keeping import Keeper
from worker_cache.launchers import AtSocket
from worker_cache.logstore import LogStore
from worker_cache.spool import Spool
from worker_cache.store import Store
from worker_cache.tasksocket import TaskSocket
from worker_cache.transport import Transport
from worker_cache.workplace import Workplace


def now() -> int:
    return int(time.time())


async def tick(seconds: float) -> None:
    """The injected sleep: waits give way to whatever else can run, and cost next to nothing."""
    await asyncio.sleep(min(seconds, 0.002))


class Host:
    """One agent's folder, with its peers."""

    def __init__(self, folder: Path, api: ApiSim, launcher: LauncherSim) -> None:
        self.folder = folder
        self.api = api
        self.launcher = launcher
        self.tasks = str(folder / "tasks.sock")
        self.authors = ANYBODY
        self.log = structlog.testing.CapturingLogger()

    @asynccontextmanager
    async def agent(
        self,
        *,
        slots: int = 1,
        grace_seconds: float = 5.0,
        url: str | None = None,
        accounts: frozenset[int] | None = None,
        max_tasks: int = 4,
    ) -> AsyncIterator[Workplace]:
        store, spool = Store.open(str(self.folder / "cache")), Spool(str(self.folder / "spool"))
        kept, pinned = LogStore(store.log_folder()), self.api.log.log.key.public
        try:
            async with Transport(url or self.api.url, "tok") as transport:
                client = Client(transport)
                cache = Cache(store, client.blob, max_blob_bytes=1024 * 1024)
                place = Workplace(
                    api=client,
                    cache=cache,
                    follower=Follower(
                        client, kept, kept.load(pinned), pinned=pinned, max_age_seconds=600, now=now, log=self.log
                    ),
                    authors=self.authors,
                    # not told of the log: what is fetched here, a launch has asked for
                    keeper=Keeper(
                        cache=cache,
                        api=client,
                        authors=self.authors,
                        worker="host-1",
                        queues=frozenset(["default"]),
                        report_seconds=15.0,
                        log=self.log,
                    ),
                    spool=spool,
                    launcher=AtSocket(self.launcher.path),
                    worker="host-1",
                    queues=("default",),
                    heartbeat_seconds=10.0,
                    log_sync_seconds=2.0,
                    now=now,
                    sleep=tick,
                    jitter=lambda: 0.0,
                    log=self.log,
                )
                given = frozenset([os.geteuid()]) if accounts is None else accounts
                tasks = TaskSocket(self.tasks, place, accounts=given, max_tasks=max_tasks)
                running = asyncio.create_task(
                    agent.run(place, slots=slots, grace_seconds=grace_seconds, supervised=tasks.under_way)
                )
                try:
                    yield place
                    place.stopping.set()
                    await asyncio.wait_for(running, 20)
                finally:
                    running.cancel()
                    await asyncio.gather(running, return_exceptions=True)
                    await tasks.close()
                    await cache.close()
        finally:
            spool.close()
            kept.close()
            store.close()

    def spooled(self) -> list[str]:
        return sorted(name for name in os.listdir(self.folder / "spool") if name != "rejected")

    def blob(self) -> Path:
        digest = Digest.of(ARCHIVE).hex
        return self.folder / "cache" / "sha512" / digest[:2] / digest

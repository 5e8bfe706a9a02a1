"""Workers for measurements: the agent's own follower and cache against a real server, without slots and launchers."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from integrity.digests import Digest
from integrity.fields import to_base64
from tests.bench.keepalive import Http
from vocabulary.keys import SealingKey, SigningKey, VerifyKey, fingerprint
from worker_cache.cache import Cache
from worker_cache.client import Client
from worker_cache.following import Follower
from worker_cache.logrules import Followed
from worker_cache.logstore import LogStore
from worker_cache.store import Store
from worker_cache.transport import Transport

QUEUES = frozenset({"default"})
MAX_BLOB_BYTES = 64 * 1024 * 1024


def server_key(state: Path) -> VerifyKey:
    """Of the server with this state folder."""
    return VerifyKey(bytes.fromhex((state / "keys" / "signing.pub").read_text(encoding="ascii").strip()))


def enrolled(http: Http, name: str) -> str:
    """A worker's token. Its launcher never speaks."""
    signing, sealing = SigningKey.generate().public, SealingKey.generate().public
    body: dict[str, object] = {
        "name": name,
        "verify_key": to_base64(signing.raw),
        "sealing_key": to_base64(sealing.raw),
        "fingerprint": fingerprint(signing, sealing),
        "queues": sorted(QUEUES),
    }
    return str(http.call("POST", "/v1/workers", body, expect=201)["token"])


class Worker:
    """One agent's log and cache."""

    def __init__(self, api: Client, store: Store, kept: LogStore, known: Followed, pinned: VerifyKey) -> None:
        self.store, self._kept, self._pinned = store, kept, pinned
        self.cache = Cache(store, api.blob, max_blob_bytes=MAX_BLOB_BYTES, batch=api.blobs)
        log = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        self.follower = Follower(
            api, kept, known, pinned=pinned, max_age_seconds=600, now=time.time, log=log, offer=self.cache.offer
        )

    def load(self) -> Followed:
        """What an agent that starts anew reads of its log."""
        return self._kept.load(self._pinned)

    async def fetch(self) -> None:
        """Everything that the log has active, verified in the cache. Raises what kept one from it."""
        wanted = self.follower.known.view.wanted(QUEUES)
        for error in (await self.cache.prefetch(wanted.items())).values():
            raise error

    async def fetch_release(self, archive: str) -> Digest:
        """The active release of one archive."""
        view = self.follower.known.view
        entry = view.archives[archive]
        release = entry.releases[entry.active or 0]
        for error in (await self.cache.prefetch([(release.digest, release.size)])).values():
            raise error
        return release.digest

    def check(self, digest: Digest) -> float:
        """Seconds of what a launch does with a cached entry: open, and hash all of it."""
        begin = time.perf_counter()
        os.close(self.store.open_verified(digest))
        return time.perf_counter() - begin


@asynccontextmanager
async def worker(
    folder: Path,
    url: str,
    token: str,
    pinned: VerifyKey,
    *,
    known: Followed | None = None,
    transport: Callable[[str, str | None], Transport] = Transport,
) -> AsyncIterator[Worker]:
    """With `known` it begins with what another one of the same log knows."""
    store = Store.open(str(folder))
    kept = LogStore(store.log_folder())
    try:
        async with transport(url, token) as asked:
            made = Worker(Client(asked), store, kept, known or kept.load(pinned), pinned)
            try:
                yield made
            finally:
                await made.cache.close()
    finally:
        kept.close()
        store.close()

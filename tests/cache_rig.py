"""A cache of real parts over a server that does what it is told; after each test the folder is inspected."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from integrity.digests import Digest
from worker_cache import fsck
from worker_cache.cache import Cache
from worker_cache.client import Client
from worker_cache.sources import Source, mirror_source
from worker_cache.store import Store
from worker_cache.transport import Transport

MIB = 1024 * 1024


class Rig:
    """`damage` is what the cache has told."""

    def __init__(
        self, folder: Path, store: Store, cache: Cache, damage: list[Digest], mirrors: Sequence[Source]
    ) -> None:
        self.folder, self.store, self.cache, self.damage, self.mirrors = folder, store, cache, damage, mirrors

    def path(self, digest: Digest) -> Path:
        return self.folder / "sha512" / digest.hex[:2] / digest.hex

    @property
    def named(self) -> set[str]:
        return {path.name for path in (self.folder / "sha512").glob("??/*")}

    @property
    def incoming(self) -> list[str]:
        return sorted(os.listdir(self.folder / "incoming"))

    async def read(self, data: bytes) -> None:
        """What is opened is what was asked for."""
        fd = await self.cache.open(Digest.of(data), size=len(data))
        try:
            assert os.pread(fd, len(data) + 1, 0) == data
        finally:
            os.close(fd)


def open_files() -> set[str]:
    """Of this process, below any cache."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if "/sha512/" in target or "/incoming/" in target:
            found.add(target)
    return found


@asynccontextmanager
async def rig(
    folder: Path, url: str, *, mirrors: tuple[str, ...] = (), booted_at: float = 0.0, **more: Any
) -> AsyncIterator[Rig]:
    folder = folder / "cache"
    damage: list[Digest] = []
    store = Store.open(str(folder), booted_at=booted_at)
    try:
        async with AsyncExitStack() as stack:
            client = Client(await stack.enter_async_context(Transport(url, "secret-token")))
            sources = [
                mirror_source(mirror, await stack.enter_async_context(Transport(mirror, None, unsafe_http=True)))
                for mirror in mirrors
            ]
            given = {"max_blob_bytes": 64 * MIB, "on_damage": lambda digest, _: damage.append(digest), **more}
            cache = Cache(store, client.blob, batch=client.blobs, mirrors=sources, **given)
            stack.push_async_callback(cache.close)
            yield Rig(folder, store, cache, damage, sources)
        assert open_files() == set(), "a descriptor was leaked"
    finally:
        store.close()
        assert [finding for finding in fsck.check(str(folder)).findings if finding.is_damage] == []

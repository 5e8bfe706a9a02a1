"""What the log makes active is fetched before a launch asks; what an earlier agent left counts only after it was hashed.

Seen to fail when weakened: `look_through` that hashes nothing; `keep` that lets an `OSError` pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import repeat
from pathlib import Path

import pytest
import structlog

from integrity.digests import Digest
from tests import blob_server
from tests.blob_server import Blobs, until
from tests.cache_rig import Rig, rig
from tests.logsim import QUEUES, Log, released
from vocabulary import leaves
from vocabulary.logview import LogView
from worker_cache import authors
from worker_cache.keeping import Keeper

NAMES = ("a.py", "b.py", "c.py")
BODIES = [f"{name}@1".encode() for name in NAMES]  # as tests.logsim has them
DIGESTS = [Digest.of(body) for body in BODIES]


def view() -> LogView:
    log = Log()
    for name in NAMES:
        assert released(name, 1).digest in DIGESTS
        log.push(name, 1)
    return LogView().extended(leaves.from_bytes(entry) for entry in log.entries)


def delays() -> Iterator[float]:
    return repeat(0.01)


@asynccontextmanager
async def keeping(its: Rig, log: structlog.testing.CapturingLogger | None = None) -> AsyncIterator[Keeper]:
    keeper = Keeper(
        cache=its.cache,
        api=None,  # type: ignore[arg-type] # nothing is reported here
        authors=authors.ANYBODY,
        worker="host-1",
        queues=QUEUES,
        report_seconds=15.0,
        log=log or structlog.testing.CapturingLogger(),  # type: ignore[arg-type]
    )
    task = asyncio.create_task(keeper.keep(delays))
    try:
        yield keeper
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_all_of_it_is_there_and_what_was_left_is_hashed_first(tmp_path: Path) -> None:
    async with blob_server.running(Blobs(*BODIES)) as server:
        async with rig(tmp_path, server.url) as its, keeping(its) as keeper:
            keeper.changed(view())
            await until(lambda: its.cache.held(DIGESTS) == frozenset(DIGESTS))
        asked = len(server.paths)
        async with rig(tmp_path, server.url) as its:
            its.path(DIGESTS[1]).write_bytes(b"something else")
            async with keeping(its) as keeper:
                assert its.cache.held(DIGESTS) == frozenset()
                keeper.changed(view())
                await until(lambda: its.cache.held(DIGESTS) == frozenset(DIGESTS))
            assert its.damage == [DIGESTS[1]]
            assert its.path(DIGESTS[1]).read_bytes() == BODIES[1]
        assert len(server.paths) == asked + 1, "only what was damaged is fetched again"


async def test_a_folder_that_cannot_be_listed_now_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = structlog.testing.CapturingLogger()
    async with blob_server.running(Blobs(*BODIES)) as server, rig(tmp_path, server.url) as its:
        with monkeypatch.context() as patched:
            patched.setattr(its.store, "entries", _fails)
            async with keeping(its, log) as keeper:
                keeper.changed(view())
                await until(lambda: bool(log.calls))
        assert log.calls[0].args == ("not fetched ahead",)
        assert "cannot be read" in log.calls[0].kwargs["error"]
        async with keeping(its) as keeper:
            keeper.changed(view())
            await until(lambda: its.cache.held(DIGESTS) == frozenset(DIGESTS))


def _fails() -> Iterator[tuple[Digest, int, float]]:
    raise OSError(5, "Input/output error")

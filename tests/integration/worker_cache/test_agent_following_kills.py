"""kill -9 of the agent while it follows a log that grows all the time: what it has on disk is always a beginning of that log,
whole, and never less than what it said that it follows.

The moments are tied to what the agent did, not to time: so many updates were logged or asked for, then a random handful of
turns of a loop; one in four hits it while it starts. The seed is printed; DAGSEAL_FAULT_SEED sets it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from pathlib import Path

import pytest
from aiohttp import web

from integrity.fields import to_base64
from tests.logsim import Log, LogServer
from worker_cache import fsck
from worker_cache.logstore import LogStore
from worker_cache.store import Store


class Growing(LogServer):
    """With each question for its checkpoint it is larger, by one push or by many."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(Log())
        self.page = 7
        self._rng = rng
        self._pushed = 0

    async def grow(self, request: web.Request) -> web.StreamResponse:
        for _ in range(self._rng.choice((0, 1, 1, 1, 20))):
            self._pushed += 1
            self.log.push("etl.py", self._pushed)
        return await self.true_checkpoint(request)


def configured(folder: Path, url: str, server: LogServer) -> Path:
    (folder / "token").write_text("tok\n")
    (folder / "token").chmod(0o600)
    path = folder / "agent.toml"
    path.write_text(
        f'[agent]\nserver = "{url}"\ntoken_file = "{folder}/token"\nworker = "host-1"\nlog_sync_seconds = 0.001\n'
        f'api_key = "{to_base64(server.log.key.public.raw)}"\ncache_dir = "{folder}/cache"\n'
        f'spool_dir = "{folder}/spool"\nlauncher_socket = "{folder}/none.sock"\n'
    )
    return path


async def killed(config: Path, rng: random.Random, server: LogServer) -> int:
    """Run an agent and kill it; how many leaves it said last that it follows."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker_cache", "--config", str(config)), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    size = 0

    async def heard() -> None:
        nonlocal size
        assert process.stderr is not None
        line = await process.stderr.readline()
        assert line, "the agent ended by itself"
        event = json.loads(line)
        assert event["level"] != "error", event
        if event["event"] == "log followed":
            size = event["size"]

    try:
        if rng.random() < 0.25:
            await heard()  # that there is no launcher: it is about to follow
        else:
            for _ in range(rng.randint(2, 12)):
                await heard()
            asked = len(server.asked) + rng.randint(0, 3)
            while len(server.asked) < asked:
                await heard()
        for _ in range(rng.randint(0, 300)):
            await asyncio.sleep(0)
    finally:
        process.kill()
        rest = await process.stderr.read()
        await process.wait()
    for line in rest.splitlines(keepends=True):
        if line.endswith(b"\n") and json.loads(line)["event"] == "log followed":
            size = json.loads(line)["size"]
    return size


async def survive(folder: Path, kills: int) -> None:
    """So many kills, and more where they came too soon for the log to have grown."""
    seed = int(os.environ.get("DAGSEAL_FAULT_SEED", "20261126"))
    print(f"seed {seed}: {kills} kills")
    rng = random.Random(seed)
    server = Growing(rng)
    server.checkpoint = server.grow
    least, cut, done = 0, 0, 0
    async with server.serving() as url:
        config = configured(folder, url, server)
        while done < kills or (least <= kills and done < 10 * kills):
            done += 1
            least = max(least, await killed(config, rng, server))
            assert not [found for found in fsck.check(str(folder / "cache")).findings if found.is_damage]
            before = (folder / "cache" / "log" / "leaves").stat().st_size
            store = Store.open(str(folder / "cache"))
            kept = LogStore(store.log_folder())
            found = kept.load(server.log.key.public)
            assert found.tree.size >= least
            assert found.tree == server.log.tree(found.tree.size)
            assert found.view.size == found.tree.size
            cut += (folder / "cache" / "log" / "leaves").stat().st_size < before
            kept.close()
            store.close()
            least = found.tree.size
    print(f"{done} kills, {least} leaves; {cut} times a tail was cut off")
    assert least > kills


async def test_eight_kills(tmp_path: Path) -> None:
    """Two hundred in `make soak`."""
    await survive(tmp_path, 8)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_two_hundred_kills(tmp_path: Path) -> None:
    await survive(tmp_path, 200)

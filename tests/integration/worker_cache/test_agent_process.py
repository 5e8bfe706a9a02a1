"""The agent as a process: its configuration file, its JSON log, SIGTERM and SIGKILL."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from agent_peers import ApiSim, LauncherSim

from integrity.fields import to_base64

ID = "1" * 32


def now() -> int:
    return int(time.time())


class Process:
    """Starts `python -m worker_cache` against the peers."""

    def __init__(self, folder: Path, api: ApiSim, launcher: LauncherSim) -> None:
        self.folder = folder
        self.api = api
        self.launcher = launcher
        (folder / "token").write_text("tok\n")
        (folder / "token").chmod(0o600)
        (folder / "agent.toml").write_text(
            f'[agent]\nserver = "{api.url}"\ntoken_file = "{folder}/token"\nworker = "host-1"\n'
            f'api_key = "{to_base64(api.key.public.raw)}"\ncache_dir = "{folder}/cache"\n'
            f'spool_dir = "{folder}/spool"\nlauncher_socket = "{launcher.path}"\nslots = 2\nheartbeat_seconds = 0.05\n'
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "worker_cache", "--config", str(self.folder / "agent.toml")),
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    async with ApiSim(now) as api, LauncherSim(str(tmp_path / "l.sock"), api.ring, now) as launcher:
        yield Process(tmp_path, api, launcher)


async def test_it_works_until_sigterm_and_logs_json(process: Process) -> None:
    process.api.queue.put_nowait(process.api.offer(process.launcher))
    async with process.running() as agent:
        await asyncio.wait_for(process.api.ended[ID].wait(), 30)
        agent.send_signal(signal.SIGTERM)
        _, log = await asyncio.wait_for(agent.communicate(), 30)
    assert agent.returncode == 0
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert events[0] == "launcher found"
    assert events[-1] == "agent stopped"
    assert b"tok" not in log.replace(b"token", b"")


async def test_the_second_sigterm_cancels_what_runs(process: Process) -> None:
    process.launcher.hold = asyncio.Event()
    process.api.queue.put_nowait(process.api.offer(process.launcher))
    async with process.running() as agent:
        await asyncio.wait_for(process.api.running.wait(), 30)
        agent.send_signal(signal.SIGTERM)
        assert agent.stderr is not None
        async with asyncio.timeout(30):
            while b"agent stopping" not in await agent.stderr.readline():
                pass
        agent.send_signal(signal.SIGTERM)
        await asyncio.wait_for(agent.communicate(), 30)
    assert agent.returncode == 0
    assert process.api.states[ID] == "cancelled"


async def test_kill_9_ends_the_job_and_the_next_agent_starts_clean(process: Process) -> None:
    process.launcher.hold = asyncio.Event()
    process.api.queue.put_nowait(process.api.offer(process.launcher))
    async with process.running() as agent:
        await asyncio.wait_for(process.api.running.wait(), 30)
        agent.kill()
        await agent.wait()
    async with asyncio.timeout(10):
        while not process.launcher.closed_early:
            await asyncio.sleep(0.001)
    process.launcher.hold = None
    process.api.queue.put_nowait(process.api.offer(process.launcher, "2" * 32))
    async with process.running():
        await asyncio.wait_for(process.api.ended["2" * 32].wait(), 30)
    assert ID not in process.api.results
    assert not [name for name in os.listdir(process.folder / "spool") if name.startswith(ID)]

"""Five hundred agents and five thousand releases on one machine: how long until a changed DAG is verified on all, and what a
poll without change costs the API. Part of `make bench-distribution`.

The agents are the real follower and cache, each with folders of its own, in one process; they begin with what one of them
learned of the log, since to parse ten thousand leaves five hundred times would measure that. The server is the real one but for
`describe`, in its own process; its processor time is read from /proc.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

from integrity.digests import Digest
from tests.bench import inputs, workers
from tests.bench.keepalive import Http
from tests.bench.submitting import server
from tests.bench.workers import Worker, worker

AGENTS, ARCHIVES, RELEASES = 500, 1000, 5000
POLL_SECONDS, POLLS, CHANGES = 2.0, 4000, 5
QUICK = "--quick" in sys.argv


def main() -> int:
    agents, archives, releases = (50, 20, 60) if QUICK else (AGENTS, ARCHIVES, RELEASES)
    with tempfile.TemporaryDirectory(prefix="dagseal-bench-", dir="/var/tmp") as made:
        folder = Path(made)
        with server(folder / "api", "tests.bench.submit_server") as (port, token):
            http = Http(port, token)
            for number in range(releases):
                name = f"dag_{number % archives}"
                data = inputs.small_py(name, 1024)
                http.call("PUT", f"/v1/archives/{name}.py", data, expect=201, kind="octet-stream")
            asyncio.run(_fleet(folder, port, http, agents, archives, releases))
    return 0


async def _fleet(folder: Path, port: int, http: Http, agents: int, archives: int, releases: int) -> None:
    pinned, api = workers.server_key(folder / "api" / "state"), f"http://127.0.0.1:{port}"
    token, pid = workers.enrolled(http, "fleet"), _listener(port)
    async with AsyncExitStack() as stack:
        begin = time.perf_counter()
        first = await stack.enter_async_context(worker(folder / "a0", api, token, pinned))
        await first.follower.sync()
        print(
            f"\none agent learns {releases} releases of {archives} archives in {time.perf_counter() - begin:.2f} s",
            flush=True,
        )
        begin = time.process_time()
        first.load()
        spent, size = time.process_time() - begin, first.follower.known.tree.size
        print(f"an agent that starts reads its {size} leaves in {spent:.2f} s of processor time", flush=True)
        others = [
            await stack.enter_async_context(
                worker(folder / f"a{number}", api, token, pinned, known=first.follower.known)
            )
            for number in range(1, agents)
        ]
        fleet = [first, *others]
        await _polls(fleet, pid)
        for number in range(CHANGES):
            await _change(fleet, http, f"dag_{number}", pid)


async def _polls(fleet: list[Worker], pid: int) -> None:
    """So many polls, as fast as they come, on 32 connections at once."""
    queue = iter([one for _ in range(POLLS // len(fleet) + 1) for one in fleet][:POLLS])
    await asyncio.gather(*(one.follower.sync() for one in fleet[:32]))

    async def ask() -> None:
        for one in queue:
            await one.follower.sync()

    before, begin = _cpu(pid), time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(32)))
    spent, took = _cpu(pid) - before, time.perf_counter() - begin
    print(
        f"a poll without change: {spent / POLLS * 1e3:.3f} ms of the API's processor time ({POLLS / took:.0f}/s)",
        flush=True,
    )


async def _change(fleet: list[Worker], http: Http, name: str, pid: int) -> None:
    """Every agent polls every two seconds, at a moment of its own; the push comes at any."""
    data = inputs.small_py(name, 1024)
    digest = Digest.of(data)
    at, seconds = 0.0, []

    async def agent(one: Worker) -> None:
        await asyncio.sleep(random.random() * POLL_SECONDS)
        while True:
            await one.follower.sync()
            view = one.follower.known.view
            entry = view.archives[f"{name}.py"]
            if entry.releases[entry.active or 0].digest == digest:
                assert await one.fetch_release(f"{name}.py") == digest
                one.check(digest)
                seconds.append(time.perf_counter() - at)
                return
            await asyncio.sleep(POLL_SECONDS)

    tasks = [asyncio.create_task(agent(one)) for one in fleet]
    await asyncio.sleep(POLL_SECONDS * 1.5)
    before, at = _cpu(pid), time.perf_counter()  # from the push on: an agent may know of it before we have its answer
    await asyncio.to_thread(http.call, "PUT", f"/v1/archives/{name}.py", data, expect=201, kind="octet-stream")
    await asyncio.gather(*tasks)
    print(
        f"a changed DAG is verified on {len(fleet)} agents after {max(seconds):.2f} s (half of them "
        f"{statistics.median(seconds):.2f} s); {_cpu(pid) - before:.2f} s of the API's processor time",
        flush=True,
    )


def _cpu(pid: int) -> float:
    """Seconds that a process has computed so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _listener(port: int) -> int:
    """The process that listens there: a child of this one."""
    for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        if "tests.bench.submit_server" in Path(f"/proc/{child}/cmdline").read_text():
            return int(child)
    raise RuntimeError(f"no server of ours listens at {port}")


if __name__ == "__main__":
    sys.exit(main())

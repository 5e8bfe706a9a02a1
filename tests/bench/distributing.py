"""`make bench-distribution`: one changed DAG of a thousand, no change, and a cold start, beside git and rsync, in one run and
in turn; the check at a launch; SHA-512 beside `openssl speed` and `sha512sum`; and five hundred agents. About six minutes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path

from integrity.digests import Digest
from tests.bench import fleet, git_peers, inputs, taped, workers
from tests.bench.figures import Row, median, table
from tests.bench.keepalive import Http
from tests.bench.submitting import server
from tests.bench.workers import Worker, worker
from worker_cache import store as cache_store
from worker_cache.hashing import hash_files
from worker_cache.transport import Transport

DAGS, ROUNDS = 1000, 10
LARGE_BYTES, SMALL_FILES, SMALL_BYTES = 256 * 1024 * 1024, 10_000, 4096


def main() -> int:
    print(
        f"{os.cpu_count()} cores, {platform.system()} {platform.release()} {platform.machine()}, Python "
        f"{platform.python_version()}; load {os.getloadavg()[0]:.1f} at start",
        flush=True,
    )
    if missing := git_peers.missing():
        print(f"not measured: {', '.join(missing)} are not here", flush=True)
        return 1
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dagseal-bench-", dir="/var/tmp")))
        folder.chmod(0o755)
        port, token = stack.enter_context(server(folder / "api", "tests.bench.submit_server"))
        origin = git_peers.Origin(folder)
        url = stack.enter_context(git_peers.served(origin, folder / "http"))
        asyncio.run(_changes(folder, port, token, origin, url))
    with tempfile.TemporaryDirectory(prefix="dagseal-bench-", dir="/var/tmp") as made:
        _hashing(Path(made))
    return fleet.main()


async def _changes(folder: Path, port: int, token: str, origin: git_peers.Origin, url: str) -> None:
    http, names = Http(port, token), [f"dag_{number}" for number in range(DAGS)]
    files = {f"{name}.py": inputs.small_py(name) for name in names}
    origin.change(files)
    for name, data in files.items():
        http.call("PUT", f"/v1/archives/{name}", data, expect=201, kind="octet-stream")
    pinned, api = workers.server_key(folder / "api" / "state"), f"http://127.0.0.1:{port}"
    worker_token = workers.enrolled(http, "bench")
    fetch = git_peers.Fetch(url, folder / "fetch")
    git_sync, bundle = git_peers.GitSync(url, folder / "sync"), git_peers.Bundle(url, folder / "bundle")
    copy = folder / "copy"
    copy.mkdir()
    git_sync.sync()
    bundle.sync()
    git_peers.rsync(origin.tree, copy)
    took: dict[str, list[float]] = {}

    def timed(what: str, work: Callable[[], object], number: int) -> None:
        begin = time.perf_counter()
        work()
        if number:  # the first round is not counted
            took.setdefault(what, []).append(time.perf_counter() - begin)

    async with AsyncExitStack() as stack:
        tape: taped.Tape = {}
        recording, playing = partial(taped.Recording, tape=tape), partial(taped.Playing, tape=tape)

        async def begun(name: str, transport: Callable[[str, str | None], Transport]) -> Worker:
            made = await stack.enter_async_context(
                worker(folder / name, api, worker_token, pinned, transport=transport)
            )
            await made.follower.sync()
            await made.fetch()
            return made

        ours = await begun("cache", recording)
        again = await begun("again", playing)  # the same answers, of nobody
        for number in range(ROUNDS + 1):
            name = names[number * 7]
            changed = {f"{name}.py": inputs.small_py(name)}
            origin.change(changed)
            http.call("PUT", f"/v1/archives/{name}.py", changed[f"{name}.py"], expect=201, kind="octet-stream")
            timed("git fetch", fetch.sync, number)
            timed("git-sync", git_sync.sync, number)
            timed("bundle", bundle.sync, number)
            timed("rsync", lambda: git_peers.rsync(origin.tree, copy), number)
            await _ours(ours, took, "ours", f"{name}.py", changed[f"{name}.py"], number)
            await _ours(again, took, "alone", f"{name}.py", changed[f"{name}.py"], number)
            timed("git fetch, no change", fetch.poll, number)
            timed("clone", lambda number=number: git_peers.clone(url, folder / f"clone{number}"), number)
            for what, transport in (("ours, cold", recording), ("alone, cold", playing)):
                begin = time.perf_counter()
                async with worker(folder / f"{what} {number}", api, worker_token, pinned, transport=transport) as cold:
                    await cold.follower.sync()
                    await cold.fetch()
                    if number:
                        took.setdefault(what, []).append(time.perf_counter() - begin)
                    assert len(cold.cache.holdings().digests) == DAGS
            timed("bare", lambda number=number: _bare(folder / f"bare {number}", files), number)
        digest = Digest.of(changed[f"{name}.py"])
        took["check"] = [ours.check(digest) for _ in range(1001)][1:]
    _print(took)


def _bare(folder: Path, files: dict[str, bytes]) -> None:
    """What a thousand files cost that are hashed, written and given their names in Python, without anything else."""
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for data in files.values():
        file = os.open(".new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=fd)
        os.write(file, data)
        os.rename(".new", hashlib.sha512(data).hexdigest(), src_dir_fd=fd, dst_dir_fd=fd)
        os.close(file)
    os.close(fd)


async def _ours(ours: Worker, took: dict[str, list[float]], what: str, archive: str, data: bytes, number: int) -> None:
    begin = time.perf_counter()
    await ours.follower.sync()
    digest = await ours.fetch_release(archive)
    done = time.perf_counter()
    assert digest == Digest.of(data)
    await ours.follower.sync()
    if number:
        took.setdefault(what, []).append(done - begin)
        took.setdefault(f"{what}, no change", []).append(time.perf_counter() - done)


def _print(took: dict[str, list[float]]) -> None:
    change = took["git fetch"]
    rows = [
        Row(what="git fetch + reset, over HTTP", seconds=change),
        Row(what="git-sync's commands", seconds=took["git-sync"], of=change),
        Row(what="GitDagBundle's commands", seconds=took["bundle"], of=change),
        Row(what="rsync -ac, local", seconds=took["rsync"], of=change),
        Row(what="dagseal: checkpoint, leaves, blob, verified", seconds=took["ours"], of=change),
        Row(what="  the agent's own part, answered at once", seconds=took["alone"], of=change),
    ]
    print("\n" + table(f"one changed DAG of {DAGS}", rows))
    print(f"git fetch takes {median(change) / median(took['ours']):.1f} times as long")
    poll, cold = took["git fetch, no change"], took["clone"]
    rows = [
        Row(what="git fetch", seconds=poll),
        Row(what="dagseal: the log's checkpoint", seconds=took["ours, no change"], of=poll),
    ]
    print("\n" + table("no change", rows))
    print(f"git fetch takes {median(poll) / median(took['ours, no change']):.1f} times as long")
    rows = [
        Row(what="git clone --depth 1", seconds=cold),
        Row(what="dagseal: the whole log, every blob", seconds=took["ours, cold"], of=cold),
        Row(what="  the agent's own part, answered at once", seconds=took["alone, cold"], of=cold),
        Row(what="  the files alone: hash, write, rename, in Python", seconds=took["bare"], of=cold),
    ]
    print("\n" + table(f"cold start of {DAGS} DAGs", rows))
    print(f"git clone takes {median(cold) / median(took['ours, cold']):.1f} times as long")
    print(
        "\n" + table("a launch's check", [Row(what="open a cached 4 KiB DAG and hash it", seconds=took["check"])]),
        flush=True,
    )


def _hashing(folder: Path) -> None:
    large = folder / "large"
    large.write_bytes(os.urandom(LARGE_BYTES))
    small = folder / "small"
    small.mkdir()
    names = [f"{number:05}" for number in range(SMALL_FILES)]
    for name in names:
        (small / name).write_bytes(os.urandom(SMALL_BYTES))
    fd = os.open(small, os.O_RDONLY | os.O_DIRECTORY)
    took: dict[str, list[float]] = {}
    speeds = []
    listed = "\0".join(str(small / name) for name in names).encode()
    summing = ["xargs", "-0", "-n", "10000", "sha512sum"]
    for _ in range(ROUNDS // 2):
        speeds.append(_openssl())
        with open(large, "rb") as file:
            _timed(took, "large", lambda file=file: cache_store.hash_fd(file.fileno()))
        _timed(took, "sha512sum", lambda: subprocess.run(summing, input=listed, stdout=subprocess.DEVNULL, check=True))
        _timed(took, "one", lambda: list(hash_files(fd, names, processes=1)))
        _timed(took, "all", lambda: list(hash_files(fd, names)))
    os.close(fd)
    rate = LARGE_BYTES / median(took["large"]) / 1e6
    print(f"\nSHA-512 of {LARGE_BYTES >> 20} MiB: {rate:.0f} MB/s; openssl speed {median(speeds):.0f} MB/s", end="")
    print(f"; ratio {rate / median(speeds):.2f}")
    rows = [
        Row(what="sha512sum, one process", seconds=took["sha512sum"]),
        Row(what="dagseal, one process", seconds=took["one"], of=took["sha512sum"]),
        Row(what=f"dagseal, {os.cpu_count()} cores", seconds=took["all"], of=took["sha512sum"]),
    ]
    print("\n" + table(f"SHA-512 of {SMALL_FILES} files of 4 KiB", rows))
    one, every = median(took["one"]), median(took["all"])
    print(f"{median(took['sha512sum']) / one:.2f} x sha512sum on one core; {one / every:.2f} x ours on one", flush=True)


def _timed(took: dict[str, list[float]], what: str, work: Callable[[], object]) -> None:
    begin = time.perf_counter()
    work()
    took.setdefault(what, []).append(time.perf_counter() - begin)


def _openssl() -> float:
    """MB/s of pieces of 1 MiB, as `hash_fd` takes them."""
    program = shutil.which("openssl")
    assert program is not None
    command = [program, "speed", "-mr", "-seconds", "1", "-bytes", str(1024 * 1024), "-evp", "sha512"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"^\+F:[^:]*:sha512:([0-9.]+)$", said, re.MULTILINE | re.IGNORECASE)
    assert found, said
    return float(found[1]) / 1e6


if __name__ == "__main__":
    sys.exit(main())

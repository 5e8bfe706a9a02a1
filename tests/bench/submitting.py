"""`make bench-submit`: uploads beside what limits them, in one run, in turn. Two to three minutes.

1 KiB: append and fdatasync; nginx, which neither hashes nor syncs; dagseal with everything but the description; the whole of
dagseal, with its launcher. 1 MiB: an aiohttp handler that hashes, writes and syncs; dagseal but the description.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dagseal.footing import free_port
from tests.bench.load import Load, arguments
from tests.live import running

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 5
KIB, MIB = 1024, 1024 * 1024
NGINX = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error;
events {{ worker_connections 256; }}
http {{
    access_log off; client_body_temp_path {folder}/body; client_max_body_size 8m;
    server {{ listen 127.0.0.1:{port}; root {folder}/root; location / {{ dav_methods PUT; }} }}
}}
"""


@dataclass(slots=True)
class Series:
    """What the rounds of one peer gave: its rates, and every request's seconds."""

    rates: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """`once` does one round, of a number that no other round has. `of` is whose rate the ratio is to."""

    what: str
    once: Callable[[int], Series]
    of: str = ""


def main() -> int:
    print(
        f"{os.cpu_count()} cores, {platform.system()} {platform.release()} {platform.machine()}, Python "
        f"{platform.python_version()}; load {os.getloadavg()[0]:.1f} at start",
        flush=True,
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dagseal-bench-", dir="/var/tmp")))
        folder.chmod(0o755)
        ours = stack.enter_context(server(folder / "ours", "tests.bench.submit_server"))
        bare = stack.enter_context(server(folder / "bare", "tests.bench.bare_server"))
        nginx = stack.enter_context(_nginx(folder / "nginx"))
        live = stack.enter_context(running())
        whole = (live.stack.port, live.token)
        py, archives = "/{}.py", "/v1/archives/{}"
        small = [
            Peer(what="append + fdatasync, one after the other", once=lambda _: _append(folder, 2000)),
            *(
                [Peer(what="nginx PUT, 32 clients: no hash, no sync", once=_loads(nginx, py, KIB, 4000, 32))]
                if nginx
                else []
            ),
            Peer(what="dagseal but `describe` and HTTP, 32 at a time", once=_alone(folder, KIB, 2000), of="append"),
            Peer(
                what="dagseal but `describe`, 32 clients",
                once=_loads(ours, archives + ".py", KIB, 2000, 32),
                of="append",
            ),
            Peer(
                what="dagseal but `describe`, 1 client", once=_loads(ours, archives + ".py", KIB, 100, 1), of="append"
            ),
            Peer(what="dagseal, 32 clients", once=_loads(whole, archives + ".py", KIB, 64, 32)),
            Peer(what="dagseal, 2 clients", once=_loads(whole, archives + ".py", KIB, 50, 2)),
            Peer(what="dagseal, 1 client", once=_loads(whole, archives + ".py", KIB, 30, 1)),
        ]
        large = [
            Peer(
                what="a bare handler: hash, write, sync, rename, 4 clients", once=_loads(bare, "/{}.zip", MIB, 150, 4)
            ),
            Peer(
                what="  and a SHA-512 of the members",
                once=_loads(bare, "/members/{}.zip", MIB, 150, 4),
                of="a bare handler",
            ),
            Peer(
                what="dagseal but `describe`, 4 clients",
                once=_loads(ours, archives + ".zip", MIB, 150, 4),
                of="a bare handler",
            ),
        ]
        _table("1 KiB .py, new archives", small)
        _table("1 MiB .zip, new archives", large)
    return 0


def _table(title: str, peers: list[Peer]) -> None:
    """In turn, so that what disturbs one round disturbs all; the first round of each is not counted."""
    found = {peer.what: Series() for peer in peers}
    for number in range(ROUNDS + 1):
        for peer in peers:
            once = peer.once(number)
            if number:
                found[peer.what].rates += once.rates
                found[peer.what].seconds += once.seconds
    width = max(len(title), *(len(peer.what) for peer in peers))
    head = (
        f"{title:<{width}}  {'uploads/s':>9}  {'least':>7}  {'most':>7}  {'median':>10}  {'p99':>10}  {'n':>6}  ratio"
    )
    print(f"\n{head}\n{'-' * len(head)}")
    for peer in peers:
        one = found[peer.what]
        rate, slowest = statistics.median(one.rates), sorted(one.seconds)[math.ceil(len(one.seconds) * 0.99) - 1]
        line = f"{peer.what:<{width}}  {rate:>9.1f}  {min(one.rates):>7.1f}  {max(one.rates):>7.1f}"
        line += f"  {statistics.median(one.seconds) * 1e3:>7.2f} ms  {slowest * 1e3:>7.2f} ms  {len(one.seconds):>6}"
        for other, series in found.items():
            if peer.of and other.startswith(peer.of):
                line += f"  {rate / statistics.median(series.rates):.2f} of {peer.of}"
        print(line, flush=True)


def _loads(server: tuple[int, str], path: str, size: int, count: int, clients: int) -> Callable[[int], Series]:
    def once(number: int) -> Series:
        run = f"c{clients}_{number}"
        load = Load(port=server[0], token=server[1], path=path, run=run, size=size, count=count, clients=clients)
        done = subprocess.run(arguments(load), cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
        return _series(json.loads(done.stdout), count)

    return once


def _alone(folder: Path, size: int, count: int) -> Callable[[int], Series]:
    def once(number: int) -> Series:
        state = folder / f"alone{number}"
        state.mkdir()
        command = [sys.executable, "-s", "-m", "tests.bench.submit_alone", str(state), str(count), str(size)]
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True
        )
        return _series(json.loads(done.stdout), count)

    return once


def _series(found: dict[str, Any], count: int) -> Series:
    if found["statuses"] != {"201": count}:
        raise RuntimeError(f"the uploads were answered {found['statuses']}")
    return Series(rates=[count / found["took"]], seconds=found["seconds"])


def _append(folder: Path, count: int) -> Series:
    found, data = Series(), os.urandom(KIB)
    fd = os.open(folder / "appended", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for _ in range(count):
        begin = time.perf_counter()
        os.write(fd, data)
        os.fdatasync(fd)
        found.seconds.append(time.perf_counter() - begin)
    os.close(fd)
    found.rates.append(count / sum(found.seconds))
    return found


@contextmanager
def server(folder: Path, module: str) -> Iterator[tuple[int, str]]:
    """A server of ours in a process of its own, which prints its port and a token for it."""
    folder.mkdir()
    command = [sys.executable, "-s", "-m", module, str(folder)]
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        try:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            yield said["port"], said["token"]
        finally:
            process.terminate()


@contextmanager
def _nginx(folder: Path) -> Iterator[tuple[int, str] | None]:
    """As root on Debian it is installed when it is missing."""
    if os.geteuid() == 0 and not shutil.which("nginx") and (apt := shutil.which("apt-get")):
        more = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(
            [apt, "install", "-q", "-y", "--no-install-recommends", "nginx-light"],
            env=more,
            capture_output=True,
            check=False,
        )
    if not shutil.which("nginx"):
        print("nginx is not measured: it is not here", flush=True)
        yield None
        return
    (folder / "root").mkdir(parents=True)
    shutil.chown(folder / "root", "nobody") if os.geteuid() == 0 else None
    port = free_port()
    config = folder / "conf"
    config.write_text(("user nobody nogroup;" if os.geteuid() == 0 else "") + NGINX.format(folder=folder, port=port))
    with subprocess.Popen(["nginx", "-c", str(config)]) as process:
        try:
            yield port, "none"
        finally:
            process.terminate()


if __name__ == "__main__":
    sys.exit(main())

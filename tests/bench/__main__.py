"""Run everything once and print the tables. Under three minutes on two slow cores; as root, or as anybody else."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from functools import partial
from importlib.metadata import version

from tests.bench import inputs, measures
from tests.bench.figures import Row, table
from tests.bench.keepalive import Http
from tests.bench.measures import Launches
from tests.bench.peer_airflow import peer
from tests.bench.stages import stages
from tests.live import Live, running

UPLOADS = 30
ROUNDS, OURS_PER_ROUND = 10, 4
PEER_USER = "nobody"
PLAIN, IMPERSONATED = "noop_plain", "noop_impersonated"


def main() -> int:
    print(_machine(), flush=True)
    peer_dags = {PLAIN: inputs.noop(PLAIN), IMPERSONATED: inputs.noop(IMPERSONATED, run_as_user=PEER_USER)}
    with running() as live, peer(peer_dags) as airflow:
        _prepare(live)
        http = Http.to(live)
        first = Launches()
        measures.launch(http, "noop", "first", first)
        launches, plain, impersonated = Launches(), [], []
        no_sudo = _why_no_sudo()
        for run in (PLAIN, *(() if no_sudo else (IMPERSONATED,))):
            airflow.run(run)  # the first of each is not counted, as with ours
        for number in range(ROUNDS):
            http.fresh()
            for again in range(OURS_PER_ROUND):
                measures.launch(http, "noop", f"run-{number}-{again}", launches)
            plain.append(airflow.run(PLAIN))
            if not no_sudo:
                impersonated.append(airflow.run(IMPERSONATED))
        sudo = [] if no_sudo else measures.command(["sudo", "-n", "-u", PEER_USER, "true"], UPLOADS)
        _print_launches(live, first, launches, plain, impersonated, sudo, no_sudo)
        print("\n" + table(f"inside dagseal's {len(launches.seconds)} launches", stages(live, launches)), flush=True)
        _uploads_and_fetches(live, http)
    return 0


def _print_launches(
    live: Live,
    first: Launches,
    launches: Launches,
    plain: list[tuple[float, float]],
    impersonated: list[tuple[float, float]],
    sudo: list[float],
    no_sudo: str,
) -> None:
    ours = launches.seconds
    reported, returned = ([run[i] for run in plain] for i in (0, 1))
    sudo_reported, sudo_returned = ([run[i] for run in impersonated] for i in (0, 1))
    launcher = [shown["timings_us"]["finished"] / 1e6 for shown in launches.shown]
    a, b = "Airflow supervise_task + run_as_user (sudo)", "Airflow supervise_task, same user"
    rows = [
        Row(what=f"dagseal: request to success, as {live.user}", seconds=ours),
        Row(what="  of it between the launcher's first and last mark", seconds=launcher),
        Row(what="  the first after a start (imports Airflow)", seconds=first.seconds),
        Row(what=f"{a}: to success", seconds=sudo_reported, instead=no_sudo),
        Row(what="  dagseal beside it", seconds=ours if sudo_reported else (), of=sudo_reported, instead="-"),
        Row(what=f"{a}: to return", seconds=sudo_returned, instead=no_sudo),
        Row(what=f"{b}: to success", seconds=reported),
        Row(what="  dagseal beside it", seconds=ours, of=reported),
        Row(what=f"{b}: to return", seconds=returned),
        Row(what=f"floor: sudo -n -u {PEER_USER} true", seconds=sudo, instead=no_sudo),
    ]
    print("\n" + table("launch of a no-op task", rows), flush=True)


def _uploads_and_fetches(live: Live, http: Http) -> None:
    for kind, archive, make in (("small", "up.py", inputs.small_py), ("large", "upz.zip", inputs.large_zip)):
        size = "4 KiB .py" if kind == "small" else "1 MiB .zip"
        bytes_of = partial(make, archive.partition(".")[0])
        measures.upload(http, archive, bytes_of, 1)
        done = measures.upload(http, archive, bytes_of, UPLOADS + 1)
        described = measures.describe(live, kind, UPLOADS)
        cold, warm = measures.fetch(live, done.stored)
        rows = [
            Row(what="upload: PUT to 201, new bytes each time", seconds=done.seconds[1:]),
            Row(what="  of it the description, measured alone", seconds=described),
            Row(what="fetch into an empty cache: GET, SHA-512, fsync", seconds=cold),
            Row(what="open from the cache: SHA-512 again", seconds=warm),
        ]
        print("\n" + table(size, rows), flush=True)


def _prepare(live: Live) -> None:
    """The DAG, and one connection that its owner was granted: every launch delivers it."""
    assert live.push("noop.py", inputs.noop("noop")).status == 201
    value = {"value": "postgresql://reader:secret@db.example/sales"}
    assert live.http("PUT", "/v1/connections/sales", value).status in (200, 201)
    grant = {"kind": "connection", "name": "sales", "to_kind": "principal", "to": "admin"}
    assert live.http("POST", "/v1/grants", grant).status == 201


def _why_no_sudo() -> str:
    """Empty when `sudo` may be used without a password. As root on Debian it is installed when it is missing."""
    apt = shutil.which("apt-get")
    if os.geteuid() == 0 and apt and not shutil.which("sudo"):
        more = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run([apt, "install", "-q", "-y", "sudo"], env=more, check=False, capture_output=True)
    if not shutil.which("sudo"):
        return "not measured: there is no sudo here"
    done = subprocess.run(["sudo", "-n", "-u", PEER_USER, "true"], check=False, capture_output=True, text=True)
    return "" if done.returncode == 0 else f"not measured: {done.stderr.strip()}"


def _machine() -> str:
    return (
        f"{os.cpu_count()} cores, {platform.system()} {platform.release()} {platform.machine()}, "
        f"Python {platform.python_version()}, Airflow {version('apache-airflow')}, "
        f"{'root: every account its own' if os.geteuid() == 0 else 'not root: one account for all'}; "
        f"load {os.getloadavg()[0]:.1f} at start"
    )


if __name__ == "__main__":
    sys.exit(main())

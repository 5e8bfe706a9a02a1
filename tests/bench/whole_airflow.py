"""`python -m tests.bench.whole_airflow`: a no-op task from queued to finished, in whole Airflows: plain, and through dagseal.

One run: both installations stand side by side, as `make e2e-airflow` starts them, and each round has one run of each DAG on
each, in an order that changes, one at a time. The times are Airflow's own: queued_when, start_date and end_date of the task.
Then the mapped DAG of 200 tasks, alternately, and one of 20 with run_as_user, which takes plain Airflow seconds for each; and
how long a push takes until Airflow has the changed DAG. The load stands beside each figure: both sides share the machine with
whatever else it does. As root.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime

from tests.bench.__main__ import _machine
from tests.bench.figures import Row, median, table
from tests.whole_airflow import accounts, database, installation, plain, sealed, ways
from tests.whole_airflow.sealed import Sealed
from tests.whole_airflow.ways import Rig

ROUNDS, MAPPED_ROUNDS, PUSHES = 15, 3, 20
MAPPED = {"bench_mapped": 200, "bench_mapped_impersonated": 20}
LEAST_RATIO = 15.0
MOST_SECONDS = 2.0
_SECONDS = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Seconds of one task instance."""

    queued_to_running: float
    running_to_finished: float

    @property
    def whole(self) -> float:
        return self.queued_to_running + self.running_to_finished


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.whole_airflow", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--mapped-rounds", type=int, default=MAPPED_ROUNDS)
    arguments = parser.parse_args()
    print(_machine(), flush=True)
    with accounts.made(), installation.new_folder() as folder, database.running() as server, accounts.sudo():
        installation.migrated(server, folder)
        with plain.running(server, folder / "plain") as first, sealed.running(server, folder / "sealed") as second:
            rigs: dict[str, Rig] = {"plain": first, "dagseal": second}
            for name, rig in rigs.items():
                rig.put("bench", ways.source(rig, "bench"))
                print(f"{name}: {rig.airflow.seconds_to_start:.1f} s to start", flush=True)
            times = _tasks(rigs, arguments.rounds)
            print("\n" + _table(times), flush=True)
            rates = _mapped(rigs, arguments.mapped_rounds)
            pushes = _pushes(second)
    for (name, dag_id), found in rates.items():
        spread = f"{min(found):.0f} to {max(found):.0f}, n = {len(found)}"
        print(f"{name}: {median(found):.0f} tasks a minute of {dag_id}, {MAPPED[dag_id]} tasks ({spread})")
    print("\n" + table("a push", [Row(what="dagseal: 201 to stored by Airflow", seconds=pushes)]))
    return _goals(times, rates, pushes)


def _tasks(rigs: dict[str, Rig], rounds: int) -> dict[tuple[str, str], list[Timed]]:
    """By installation and DAG. The first round of each is not counted: imports and caches."""
    turns = [(name, dag_id) for name in rigs for dag_id in ("bench_impersonated", "bench_own")]
    found: dict[tuple[str, str], list[Timed]] = defaultdict(list)
    order = random.Random(0)
    for number in range(rounds + 1):
        order.shuffle(turns)
        for name, dag_id in turns:
            api = rigs[name].api
            assert api.run(dag_id, f"round-{number}").state == "success"
            (task,) = api.tasks(dag_id, f"round-{number}")
            queued, start, end = (
                datetime.fromisoformat(task[key]) for key in ("queued_when", "start_date", "end_date")
            )
            if number:
                timed = Timed(
                    queued_to_running=(start - queued).total_seconds(),
                    running_to_finished=(end - start).total_seconds(),
                )
                found[name, dag_id].append(timed)
        if number:
            last = ", ".join(f"{name} {dag_id} {found[name, dag_id][-1].whole:.3f} s" for name, dag_id in sorted(turns))
            print(f"round {number}: {last}; {_load()}", flush=True)
    return found


def _mapped(rigs: dict[str, Rig], rounds: int) -> dict[tuple[str, str], list[float]]:
    """Tasks a minute by installation and DAG, from the first that was queued to the last that ended."""
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(rounds):
        for dag_id, count in MAPPED.items():
            for name, rig in rigs.items():
                assert rig.api.run(dag_id, f"mapped-{number}", seconds=_SECONDS).state == "success"
                tasks = rig.api.tasks(dag_id, f"mapped-{number}")
                begin = min(datetime.fromisoformat(task["queued_when"]) for task in tasks)
                end = max(datetime.fromisoformat(task["end_date"]) for task in tasks)
                assert len(tasks) == count
                rates[name, dag_id].append(count / (end - begin).total_seconds() * 60)
                print(f"{name} {dag_id}: {rates[name, dag_id][-1]:.0f} tasks a minute; {_load()}", flush=True)
    return rates


def _pushes(rig: Sealed) -> list[float]:
    """Seconds from the answer to a push until Airflow has stored the DAG of its version. The first is not counted."""
    found = []
    for number in range(PUSHES + 1):
        digest = sealed.push(rig.live, "way_body.py", f"{ways.source(rig, 'way_body')}# {number}\n")
        begin = time.perf_counter()
        rig.api.until(lambda digest=digest: sealed.holds(rig.live, rig.api, "way_body", digest), "the pushed DAG")
        found.append(time.perf_counter() - begin)
    return found[1:]


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"


def _table(times: dict[tuple[str, str], list[Timed]]) -> str:
    rows = []
    for dag_id, what in (("bench_impersonated", "run_as_user"), ("bench_own", "no run_as_user")):
        of = times["dagseal", dag_id]
        for name in ("plain", "dagseal"):
            found = times[name, dag_id]
            rows.append(Row(what=f"{name}, {what}: queued to running", seconds=[t.queued_to_running for t in found]))
            rows.append(
                Row(what=f"{name}, {what}: running to finished", seconds=[t.running_to_finished for t in found])
            )
            rows.append(Row(what=f"{name}, {what}: whole", seconds=[t.whole for t in found], of=[t.whole for t in of]))
    return table("a no-op task; the ratio is to dagseal's", rows)


def _goals(
    times: dict[tuple[str, str], list[Timed]], rates: dict[tuple[str, str], list[float]], pushes: list[float]
) -> int:
    """1 when one is missed."""

    def whole(name: str, dag_id: str) -> float:
        return median([timed.whole for timed in times[name, dag_id]])

    impersonated = whole("plain", "bench_impersonated") / whole("dagseal", "bench_impersonated")
    own = whole("plain", "bench_own") / whole("dagseal", "bench_own")
    mapped = median(rates["dagseal", "bench_mapped"]) / median(rates["plain", "bench_mapped"])
    missed = 0
    for what, found, least in (
        (f"run_as_user, plain / dagseal at least {LEAST_RATIO:g}", impersonated, LEAST_RATIO),
        ("no run_as_user, plain / dagseal at least 1", own, 1.0),
        ("mapped tasks a minute, dagseal / plain at least 1", mapped, 1.0),
    ):
        missed += found < least
        print(f"{'met' if found >= least else 'MISSED':<7} {what}: {found:.2f}")
    late = max(pushes) > MOST_SECONDS
    print(f"{'MISSED' if late else 'met':<7} every push stored after at most {MOST_SECONDS:g} s: {max(pushes):.2f}")
    return min(missed + late, 1)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.bench.launching`: how long it takes until code runs as somebody else, beside the other ways to do it.

One run, everything interleaved: in each round every contender has one turn, in an order that changes, after a pause in
which the one before may finish what it does behind its answer. `--stages` shows where a launch's time goes, `--modules` what
a zip of 21 modules costs, `--count N` what N launches leave behind (exit code 1 when anything grew). As root, or as anybody
else: then without what needs root.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from typing import Any

from tests.bench import inputs
from tests.bench.__main__ import PEER_USER, _machine
from tests.bench.launch_caller import Timed
from tests.bench.launch_client import Client, client, clients
from tests.bench.launch_daemon import Daemon, daemon, profiles, usual
from tests.bench.launch_leaks import grown_by
from tests.bench.launch_modules import modules
from tests.bench.launch_peers import BWRAP, FORK, FORK_EXIT, SETPRIV, SUDO, Peers, peers
from tests.bench.launch_stages import stages
from tests.bench.launch_table import Goal, Row, goals, median, ms, p99, table
from tests.bench.peer_airflow import peer

ROUNDS, ROUNDS_PER_AIRFLOW = 200, 10
FIRST_LAUNCHES = 20  # of each profile, not counted: imports, caches, spares
PAUSE_SECONDS = 0.05
SUSTAINED_CLIENTS = (1, 2, 4)
AIRFLOW_DAG = "noop_impersonated"
_AIRFLOW = "Airflow supervise_task, run_as_user"


def main() -> int:
    known = profiles()
    parser = argparse.ArgumentParser(prog="python -m tests.bench.launching", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=60, help="how long each sustained measurement lasts")
    parser.add_argument("--profiles", default=",".join(known), help="isolation profiles, with commas between")
    parser.add_argument("--stages", action="store_true", help="only where our time goes")
    parser.add_argument("--count", type=int, help="only what this many launches leave behind")
    parser.add_argument("--modules", action="store_true", help="only a zip of 21 modules, through a whole dagseal")
    arguments = parser.parse_args()
    chosen = tuple(arguments.profiles.split(","))
    print(_machine(), flush=True)
    if arguments.count:
        return _leaks(arguments.count, usual(chosen))
    if arguments.modules:
        print("\n" + modules(arguments.rounds, usual(chosen)), flush=True)
        return 0
    with ExitStack() as stack:
        daemons = {name: stack.enter_context(daemon(name)) for name in chosen}
        callers = {name: stack.enter_context(client(one)) for name, one in daemons.items()}
        for caller in callers.values():
            for _ in range(FIRST_LAUNCHES):
                caller.launch()
        if arguments.stages:
            launches = _only_ours(callers, arguments.rounds)
        else:
            launches = _side_by_side(callers, arguments.rounds, daemons[usual(chosen)], arguments.seconds)
        for name in chosen:
            print("\n" + stages(f"inside {len(launches[name])} launches{_called(name)}", launches[name]), flush=True)
    return 0


def _leaks(count: int, profile: str) -> int:
    found = grown_by(count, profile=profile)
    print("\n" + ("\n".join(found) if found else "nothing grew"))
    return 1 if found else 0


def _only_ours(callers: dict[str, Client], rounds: int) -> dict[str, list[Timed]]:
    launches: dict[str, list[Timed]] = defaultdict(list)
    for _ in range(rounds):
        for name, caller in callers.items():
            time.sleep(PAUSE_SECONDS)
            launches[name].append(caller.launch())
    return launches


def _side_by_side(callers: dict[str, Client], rounds: int, standard: Daemon, seconds: float) -> dict[str, list[Timed]]:
    launches: dict[str, list[Timed]] = defaultdict(list)
    others: dict[str, list[list[float]]] = defaultdict(list)
    order = random.Random(0)
    with peers(PEER_USER) as found, peer({AIRFLOW_DAG: inputs.noop(AIRFLOW_DAG, run_as_user=PEER_USER)}) as airflow:
        no_airflow = found.missing.get(SUDO, "")
        if not no_airflow:
            airflow.run(AIRFLOW_DAG)  # the first is not counted, as with ours
        turns = [(launches[name].append, caller.launch, ()) for name, caller in callers.items()]
        turns += [(others[name].append, found.run, (name,)) for name in found.commands]
        for number in range(rounds):
            now: list[Any] = list(turns)
            if not no_airflow and number % ROUNDS_PER_AIRFLOW == 0:
                now.append((others[_AIRFLOW].append, airflow.run, (AIRFLOW_DAG,)))
            order.shuffle(now)
            for keep, act, what in now:
                time.sleep(PAUSE_SECONDS)
                keep(act(*what))
        _print_launchers(launches, others, found, no_airflow, usual(tuple(callers)))
    rates = _sustained(standard, seconds)
    print("\n" + goals(_goals(launches, others, rates, usual(tuple(callers)))), flush=True)
    return launches


def _print_launchers(
    launches: dict[str, list[Timed]],
    others: dict[str, list[list[float]]],
    found: Peers,
    no_airflow: str,
    compared: str,
) -> None:
    first = {name: [one.first_seconds for one in done] for name, done in launches.items()}
    whole = {name: [one.whole_seconds for one in done] for name, done in launches.items()}
    rows = [Row(what=f"dagseal{_called(name)}: first instruction of the DAG", seconds=first[name]) for name in first]
    for line in (SUDO, SETPRIV, BWRAP):
        seconds = [one[0] for one in others.get(line, [])]
        rows.append(Row(what=_short(line, found.user), seconds=seconds, instead=found.missing.get(line, "")))
    forks = others.get(FORK, [])
    for index, what in enumerate((FORK, FORK_EXIT)):
        rows.append(
            Row(what=f"floor: {what}", seconds=[one[index] for one in forks], instead=found.missing.get(FORK, ""))
        )
    print("\n" + table("request to code running as another unix user", rows, first[compared]), flush=True)
    rows = [Row(what=f"dagseal{_called(name)}: request to signed result", seconds=whole[name]) for name in whole]
    airflow = others.get(_AIRFLOW, [])
    for index, what in enumerate(("to success", "to return")):
        rows.append(Row(what=f"{_AIRFLOW}: {what}", seconds=[one[index] for one in airflow], instead=no_airflow))
    title = "a whole no-op task (ours fetches a connection)"
    print("\n" + table(title, rows, whole[compared]), flush=True)


def _sustained(standard: Daemon, seconds: float) -> dict[int, float]:
    """Print them; tasks per second by number of clients."""
    rates, rows = {}, []
    for count in SUSTAINED_CLIENTS:
        with clients(standard, count) as callers:
            for caller in callers:
                caller.launch()
            for caller in callers:
                caller.order(do="sustain", seconds=seconds)
            answers = [caller.answer() for caller in callers]
        done = [value for answer in answers for value in answer["whole_seconds"]]
        rates[count] = len(done) / max(answer["took_seconds"] for answer in answers)
        rows.append(f"{count:>7}  {rates[count]:>7.1f}  {ms(median(done))}  {ms(p99(done))}  {len(done):>6}")
    title = f"sustained for {seconds:g} s each{_called(standard.profile)}"
    head = f"{'clients':>7}  {'tasks/s':>7}  {'median':>11}  {'p99':>11}  {'n':>6}"
    print("\n" + "\n".join([title, head, "-" * len(head), *rows]), flush=True)
    return rates


def _goals(
    launches: dict[str, list[Timed]], others: dict[str, list[list[float]]], rates: dict[int, float], compared: str
) -> list[Goal]:
    first = [one.first_seconds for one in launches[compared]]
    whole = [one.whole_seconds for one in launches[compared]]
    finished, airflow = (
        [one.marks_us["launcher: finished"] / 1e6 for one in launches[compared]],
        others.get(_AIRFLOW, []),
    )
    found = [
        _goal("first instruction, median <= 4 ms", median(first) * 1000, 4, "ms"),
        _goal("first instruction, p99 <= 15 ms", p99(first) * 1000, 15, "ms"),
        _ratio("first instruction / sudo -n -u U true <= 1", first, [one[0] for one in others.get(SUDO, [])], 1),
        _goal("whole task, median <= 40 ms", median(whole) * 1000, 40, "ms"),
        # Like with like: until the task has said how it ended; until who asked has the exit state and nothing of it is left.
        _ratio("Airflow run_as_user to success / finished >= 80", [one[0] for one in airflow], finished, 80, -1),
        _ratio("Airflow run_as_user to return / whole task >= 80", [one[1] for one in airflow], whole, 80, -1),
        _goal(f"tasks/s, best of {', '.join(map(str, rates))} clients >= 25", max(rates.values()), 25, "/s", -1),
    ]
    for what, of in (("first instruction", "first_seconds"), ("whole task", "whole_seconds")):
        strict, minimal = ([getattr(one, of) for one in launches.get(name, [])] for name in ("strict", "minimal"))
        found.append(_ratio(f"{what}, strict / minimal <= 1.5", strict, minimal, 1.5))
    return found


def _ratio(what: str, over: list[float], under: list[float], limit: float, sign: int = 1) -> Goal:
    if not over or not under:
        return Goal(what=what, instead="not measured")
    return _goal(what, median(over) / median(under), limit, "x", sign)


def _goal(what: str, found: float, limit: float, unit: str, sign: int = 1) -> Goal:
    """`sign` is -1 where more is better."""
    return Goal(what=what, found=f"{found:.2f} {unit}", met=found * sign <= limit * sign)


def _called(profile: str) -> str:
    return f", {profile}" if profile else ""


def _short(line: str, user: str) -> str:
    return line.format(user=user, group="…").replace("--regid … ", "")


if __name__ == "__main__":
    sys.exit(main())

"""The run of a hundred tasks, and what must be true of its end whatever failed meanwhile."""

from __future__ import annotations

import pwd
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.live import ENDED
from tests.whole_airflow import ways
from tests.whole_airflow.accounts import OWNER, ancestors, processes
from tests.whole_airflow.fleet import Fleet

DAG_ID = "fleet_hundred"
_SECONDS = 420.0


def installed(fleet: Fleet) -> Path:
    """The DAGs are there; the file that their tasks note in."""
    path = fleet.shared / "noted"
    if not path.exists():
        path.write_text("")
        path.chmod(0o666)
        text = (ways.DAGS / "fleet.py").read_text()
        fleet.put("fleet", text.replace("@SHARED@", str(fleet.shared)).replace("@OWNER@", OWNER))
    return path


def begun(path: Path, run_id: str) -> int:
    return sum(line.startswith("begin") and f" {run_id} " in line for line in path.read_text().splitlines())


def run(fleet: Fleet, run_id: str, meanwhile: Callable[[], None] = lambda: None, *, at: int = 20) -> None:
    """`meanwhile` happens when `at` tasks have begun. Then: every instance ended, none ran twice in one try, each that Airflow
    calls a success came to its end, all as their user, and nothing is left over."""
    path = installed(fleet)
    fleet.api.switch_on(DAG_ID)
    fleet.api.trigger(DAG_ID, run_id)
    fleet.api.until(lambda: begun(path, run_id) >= at, f"{at} tasks of {run_id}", 240)
    meanwhile()
    deadline = time.monotonic() + _SECONDS
    while left := fleet.api.wait_all([(DAG_ID, run_id)], seconds=2):
        fleet.airflow.revive()
        if time.monotonic() > deadline:
            break
    states = Counter(str(task["state"]) for task in fleet.api.tasks(DAG_ID, run_id))
    assert not left, f"{run_id} goes on: {states}"
    assert set(states) <= {"success", "failed"}, states
    lines = [line.split() for line in path.read_text().splitlines() if f" {run_id} " in line]
    counted = Counter((word, index, tries) for word, _, _, index, tries, _ in lines)
    assert set(counted.values()) == {1}, [key for key, times in counted.items() if times > 1]
    assert {uid for *_, uid in lines} == {str(pwd.getpwnam(OWNER).pw_uid)}
    for task in fleet.api.tasks(DAG_ID, run_id):
        if task["state"] == "success":
            assert ("end", str(task["map_index"]), str(task["try_number"])) in counted, task
    assert len(fleet.api.tasks(DAG_ID, run_id)) == 100
    try:
        fleet.api.until(lambda: not orphans(fleet), "no process without a launcher", 30)
    except AssertionError:
        raise AssertionError([lineage(pid) for pid in orphans(fleet)]) from None
    # What its agent says no more of is lost after a minute.
    fleet.api.until(lambda: launch_states(fleet) <= set(ENDED), "every launch to have ended", 120)


def launch_states(fleet: Fleet) -> set[str]:
    launches = fleet.live.http("GET", f"/v1/launches?dag_id={DAG_ID}&limit=1000").json["launches"]
    return {launch["state"] for launch in launches}


def orphans(fleet: Fleet) -> list[int]:
    """What runs as the tasks' user below no launcher; a launcher's spare process does below its own."""
    return [pid for pid in processes(OWNER) if not any("/launcher/__main__.py" in line for line in lineage(pid))]


def lineage(pid: int) -> list[str]:
    """What it is, and what its parents are."""
    return [_command(one) for one in (pid, *ancestors(pid))]


def _command(pid: int) -> str:
    try:
        return f"{pid} " + Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except FileNotFoundError:
        return f"{pid} is gone"

"""The nine ways in which plain Airflow 3.3 lets a task do, read or be what it should not.

Each is one function that goes the way on an installation and answers with the evidence when it is open, "" when it is closed.
The same functions run against plain Airflow, where every one is open, and against ours, where none is.
"""

from __future__ import annotations

import fcntl
import pwd
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tests.whole_airflow import accounts
from tests.whole_airflow.accounts import OWNER, SERVICE
from tests.whole_airflow.installation import Airflow
from tests.whole_airflow.public import PublicApi, RunEnd

DAGS = Path(__file__).with_name("dags")
SECRET = "payroll-secret-7d1c"
# A heart beat learns of it after 5 s; SIGTERM and SIGKILL follow, 5 s apart.
_KILL_SECONDS = 35.0


class Rig(Protocol):
    """What a way needs of the installation that it is tried on."""

    airflow: Airflow
    api: PublicApi
    shared: Path

    def put(self, name: str, source: str, *, versioned: bool = False) -> None:
        """Bring a DAG file, or its new content, to where this Airflow takes DAGs from; returns when Airflow has read it."""

    def tamper(self, name: str, more: str) -> None:
        """Append to every copy of that file that lies on the worker's disk."""

    def clean_up(self) -> None:
        """Remove what lies on the worker's disk and is not in use, as far as this installation can tell."""

    def connection(self, conn_id: str, password: str) -> None:
        """Make one that is not the DAG's."""


def source(rig: Rig, name: str) -> str:
    text = (DAGS / f"{name}.py").read_text()
    return text.replace("@SHARED@", str(rig.shared)).replace("@OWNER@", OWNER)


def note(rig: Rig, name: str) -> Path:
    """An empty file that every account may write, below the shared folder."""
    path = rig.shared / name
    path.write_text("")
    path.chmod(0o666)
    return path


def imported_as_worker(rig: Rig) -> str:
    note(rig, "imported-as")
    rig.put("way_import", source(rig, "way_import"))
    notes = note(rig, "imported-as")
    _succeeded(rig.api.run("way_import", "e2e"))
    uids = {int(line) for line in notes.read_text().split()}
    assert pwd.getpwnam(OWNER).pw_uid in uids
    return f"imported by {SERVICE}" if pwd.getpwnam(SERVICE).pw_uid in uids else ""


def tampered_tree_runs(rig: Rig) -> str:
    rig.put("way_git", source(rig, "way_git"), versioned=True)
    notes = note(rig, "tampered")
    _succeeded(rig.api.run("way_git", "first"))
    try:
        rig.tamper("way_git", f"\nopen({str(notes)!r}, 'a').write('ran ')\n")
        rig.api.run("way_git", "after")
        return notes.read_text()
    finally:
        rig.tamper("way_git", "")


def versioned_bundle_denied(rig: Rig) -> str:
    rig.put("way_git", source(rig, "way_git"), versioned=True)
    end = rig.api.run("way_git_user", "e2e")
    if end.state == "success":
        assert end.xcoms["run_as", -1, "return_value"] == pwd.getpwnam(OWNER).pw_uid
        return ""
    log = rig.api.log("way_git_user", "e2e", "run_as")
    assert "PermissionError" in log, log
    return "PermissionError"


def outlives_its_kill(rig: Rig) -> str:
    held, holding = note(rig, "held"), note(rig, "holding")
    rig.put("way_kill", source(rig, "way_kill"))
    rig.api.switch_on("way_kill")
    rig.api.trigger("way_kill", "e2e")
    rig.api.until(lambda: holding.read_text() == "yes", "the task that holds the lock")
    rig.api.patch("dags/way_kill/dagRuns/e2e/taskInstances/hold", {"new_state": "failed"})
    deadline = time.monotonic() + _KILL_SECONDS
    try:
        while not _free(held):
            if time.monotonic() > deadline:
                return "the task goes on"
            time.sleep(0.1)
        return ""
    finally:
        accounts.end_all(OWNER)


def secrets_in_environment(rig: Rig) -> str:
    rig.put("way_environment", source(rig, "way_environment"))
    end = _succeeded(rig.api.run("way_environment", "e2e"))
    return " ".join(end.xcoms.get(("look", -1, "return_value")) or ())


def any_connection(rig: Rig) -> str:
    rig.connection("payroll", SECRET)
    rig.put("way_connection", source(rig, "way_connection"))
    end = rig.api.run("way_connection", "e2e")
    return "read" if end.state == "success" or SECRET in str(end.xcoms) else ""


def changed_body_same_version(rig: Rig) -> str:
    before = source(rig, "way_body")
    rig.put("way_body", before)
    first = _succeeded(rig.api.run("way_body", "first"))
    rig.put("way_body", before.replace("as it was read", "something else"))
    second = _succeeded(rig.api.run("way_body", "second"))
    said = [end.xcoms["say", -1, "return_value"] for end in (first, second)]
    assert said == ["as it was read", "something else"]
    runs = [rig.api.get(f"dags/way_body/dagRuns/{run}") for run in ("first", "second")]
    versions = [(run["bundle_version"], [made["id"] for made in run["dag_versions"]]) for run in runs]
    return "other code, the same version of the DAG" if versions[0] == versions[1] else ""


def neighbour_within_reach(rig: Rig) -> str:
    staying, looked = note(rig, "staying"), note(rig, "looked")
    rig.put("way_neighbour", source(rig, "way_neighbour"))
    rig.api.switch_on("way_neighbour_stay")
    rig.api.trigger("way_neighbour_stay", "e2e")
    try:
        rig.api.until(lambda: staying.read_text() == "yes", "the neighbour")
        end = _succeeded(rig.api.run("way_neighbour_look", "e2e"))
    finally:
        looked.write_text("yes")
    _succeeded(rig.api.wait("way_neighbour_stay", "e2e"))
    return ", ".join(end.xcoms.get(("look", -1, "return_value")) or ())


def cleaned_away_below_task(rig: Rig) -> str:
    started, go_on = note(rig, "long-started"), note(rig, "long-go-on")
    rig.put("way_git", source(rig, "way_git"), versioned=True)
    # The worker's own task is who notes that this version is in use.
    _succeeded(rig.api.run("way_git", "noting"))
    rig.api.switch_on("way_git_long")
    rig.api.trigger("way_git_long", "e2e")
    try:
        rig.api.until(lambda: started.read_text() == "yes", "the long task")
        rig.clean_up()
    finally:
        go_on.write_text("yes")
    end = _succeeded(rig.api.wait("way_git_long", "e2e"))
    return "its files are gone" if end.xcoms["wait", -1, "return_value"] == [True, False] else ""


WAYS: tuple[Callable[[Rig], str], ...] = (
    imported_as_worker,
    tampered_tree_runs,
    versioned_bundle_denied,
    outlives_its_kill,
    secrets_in_environment,
    any_connection,
    changed_body_same_version,
    neighbour_within_reach,
    cleaned_away_below_task,
)


def _succeeded(end: RunEnd) -> RunEnd:
    assert end.state == "success", end
    return end


def _free(path: Path) -> bool:
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True

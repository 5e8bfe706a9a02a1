"""kill -9 of the API, the agent or the launcher at random points of a workload: nothing acknowledged is lost, nothing half
written is seen, and no launch runs twice.

The points are tied to progress, not to time: so many uploads were begun or acknowledged and so many changes of launches
seen, then a random handful of turns of a loop. One kill in five hits a process that is only starting, in its recovery. The
seed is printed; DAGSEAL_FAULT_SEED sets it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from integrity.errors import SettingsError
from launcher.trees import descendants
from notary import journal
from tests.attacks.attacker import is_alive, notary_pid
from tests.faults.fault_workload import Workload
from tests.live import ENDED, Live, running

# A crashed launch is found out in seconds, not in a minute.
API_TOML = "ticket_seconds = 15\nlost_after_seconds = 6\nwatch_interval_seconds = 0.5\n"
HEARTBEAT = "heartbeat_seconds = 1.0\n"
_PARTS = ("api", "agent", "launcher", "notary")
_TURNS = 3000


@dataclass(slots=True)
class Killer:
    """Kills one of the four after every few steps of the workload, and starts it again."""

    live: Live
    kills: int
    apart: int
    rng: random.Random
    done: Counter[str] = field(default_factory=Counter)
    launcher_pids: list[int] = field(default_factory=list)
    died_with_it: int = 0
    failure: BaseException | None = None
    tell: Callable[[list[Any]], None] = lambda about: None
    standstill: Callable[[], AbstractContextManager[None]] = nullcontext  # held while a process is killed

    def enough(self) -> bool:
        return self.failure is not None or self.done.total() >= self.kills

    def run(self, workload: Workload) -> None:
        try:
            while self.done.total() < self.kills:
                if not workload.progress.reach(workload.progress.count + self.rng.randint(1, self.apart)):
                    return
                self._turns()
                self._kill(self.rng.choice(_PARTS))
        except BaseException as error:
            self.failure = error

    def _kill(self, part: str) -> None:
        """With its notary a launcher ends by itself."""
        stack, name = self.live.stack, "launcher" if part == "notary" else part
        while True:
            below = descendants(stack.processes[name].pid) if name == "launcher" else set()
            if part == "notary":
                pid = notary_pid(self.live)
                with self.standstill():
                    os.kill(pid, signal.SIGKILL)
                stack.processes.pop(name).wait()
            else:
                with self.standstill():
                    stack.stop(name, number=signal.SIGKILL)
            self._gone(below)
            self.done[part] += 1
            self.tell(["kill", part])
            starting = threading.Thread(target=self._start, args=(name,))
            again = self.rng.random() < 0.2 and self.done.total() < self.kills
            before = stack.processes.get(name)
            starting.start()
            if again:
                while (process := stack.processes.get(name)) is before:
                    os.sched_yield()
                if process is not None:
                    self._worked(process.pid, self.rng.uniform(0, 1.2))
                    with self.standstill():
                        process.kill()
                        process.wait()
                part = name  # it may be without a notary yet
            starting.join()
            if not again:
                if self.failure:
                    raise self.failure
                return

    def _gone(self, pids: set[int]) -> None:
        """What a killed launcher had below it, daemons of tasks too: dead within a second, and before it is started again."""
        deadline = time.monotonic() + 1.0
        while left := [pid for pid in pids if is_alive(pid)]:
            if time.monotonic() > deadline:
                raise AssertionError(f"they outlive a killed launcher: {[command_of(pid) for pid in left]}")
            os.sched_yield()
        self.died_with_it += len(pids)

    def _start(self, name: str) -> None:
        """A start that is cut off by the next kill is no failure; any other is."""
        stack = self.live.stack
        try:
            getattr(stack, f"start_{name}")()
        except SettingsError as error:
            if stack.processes[name].wait() != -signal.SIGKILL:
                self.failure = error
        if name == "launcher":
            self.launcher_pids.append(stack.processes[name].pid)

    def _turns(self) -> None:
        for _ in range(self.rng.randint(0, _TURNS)):
            os.sched_yield()

    def _worked(self, pid: int, seconds: float) -> None:
        """Return when the process has used so much of a processor, or is gone."""
        ticks = seconds * os.sysconf("SC_CLK_TCK")
        while True:
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                return
            if fields[0] == "Z" or int(fields[11]) + int(fields[12]) >= ticks:
                return
            os.sched_yield()


def marker_file(live: Live) -> Path:
    """A file that every task can append to."""
    marker = live.shared / "marks"
    marker.touch()
    marker.chmod(0o666)
    return marker


def survive(
    live: Live,
    marker: Path,
    *,
    kills: int,
    uploads: int,
    launches: int,
    apart: int,
    tell: Callable[[list[Any]], None] = lambda about: None,
    standstill: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """The workload, the kills, and then all checks. The stack is stopped when this returns."""
    seed = int(os.environ.get("DAGSEAL_FAULT_SEED", "20240607"))
    print(f"seed {seed}: {kills} kills during {uploads} uploads and {launches} launches")
    beat_faster(live)
    killer = Killer(live, kills, apart, random.Random(seed), tell=tell, standstill=standstill)
    killer.launcher_pids.append(live.stack.processes["launcher"].pid)
    workload = Workload(live, uploads=uploads, launches=launches, marker=marker, enough=killer.enough, tell=tell)
    killing = threading.Thread(target=killer.run, args=(workload,))
    killing.start()
    workload.run()
    killing.join()
    assert killer.failure is None, killer.failure
    assert killer.done.total() == kills
    states = Counter(found["state"] for found in workload.ended.values())
    print(
        f"killed {dict(killer.done)}, with {killer.died_with_it} processes below launchers; "
        f"{workload.progress.count} steps, {workload.retries} tries failed; "
        f"{len(workload.acknowledged)} uploads acknowledged; launches {dict(states)}"
    )
    check_uploads(live, workload)
    check_launches(live, workload, marker)
    live.stack.stop()
    check_state(live)
    check_nothing_left(live, killer.launcher_pids)


def beat_faster(live: Live) -> None:
    """Heartbeats that fit into the short `lost_after_seconds`; for that the agent is started again."""
    live.stack.stop("agent")
    with (live.stack.folder / "agent.toml").open("a") as file:
        file.write(HEARTBEAT)
    live.stack.start_agent()


def check_uploads(live: Live, workload: Workload) -> None:
    """Every acknowledged upload is there under its number, with its bytes; numbers have no gap and no double."""
    numbers: dict[str, list[int]] = {}
    for upload in workload.acknowledged:
        numbers.setdefault(upload.name, []).append(upload.number)
        blob = live.http("GET", f"/v1/blobs/sha512/{upload.digest.hex}")
        assert (blob.status, blob.body) == (200, upload.data), upload.name
        release = live.http("GET", f"/v1/archives/{upload.name}/releases/{upload.number}")
        assert (release.status, release.json["digest"]) == (200, str(upload.digest)), upload.name
    for name, acknowledged in numbers.items():
        stored = [row["number"] for row in live.paged(f"/v1/archives/{name}/releases", "releases", "number", "0")]
        assert stored == acknowledged == list(range(1, len(acknowledged) + 1)), name
    assert {archive["name"] for archive in live.paged("/v1/archives", "archives", "name")} == set(numbers)


def check_launches(live: Live, workload: Workload, marker: Path) -> None:
    """Every acknowledged launch is there and has ended; none ran twice; what succeeded ran, once and to its end."""
    lines = Counter(marker.read_text().splitlines())
    assert set(lines.values()) <= {1}, [line for line, count in lines.items() if count > 1]
    listed = {launch["run_id"] for launch in live.http("GET", "/v1/launches?limit=1000").json["launches"]}
    for launch_id, run_id in workload.created.items():
        launch = live.http("GET", f"/v1/launches/{launch_id}").json
        assert launch == workload.ended[launch_id], "an ended launch does not change"
        assert launch["state"] in ENDED and launch["run_id"] in listed
        begun, finished = lines[f"begin {run_id}"], lines[f"end {run_id}"]
        assert begun >= finished
        if launch["state"] == "success":
            assert (begun, finished) == (1, 1), launch
        if launch["state"] == "refused":
            assert begun == 0, launch
    assert {line.split()[1] for line in lines} <= set(workload.created.values())


def check_state(live: Live) -> None:
    """With everything stopped: what is stored is whole, and the launcher's record is unbroken."""
    folder = live.stack.folder
    for arguments in (
        ["--config", str(folder / "api.toml"), "-o", "json", "fsck"],
        ["-o", "json", "fsck", "--cache", str(live.stack.cache)],
    ):
        answer = live.cli(*arguments)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        found = json.loads(answer.stdout)
        print(f"fsck: clean, {len(found['findings'])} leftovers")
        assert found["clean"], found
    lines = (folder / "launcher" / "journal" / "journal.000000000001.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b"", "the journal ends with a whole line"
    assert len(list(journal.verify(lines))) == len(lines)
    assert json.loads(lines[-1])["event"] == "stop", "the last launcher did not end by itself"
    for event in ("launch", "claim", "grant"):
        told = Counter(
            entry["ticket" if event == "launch" else "launch_id"]
            for entry in map(json.loads, lines)
            if entry["event"] == event
        )
        assert event == "claim" or set(told.values()) <= {1}, (event, told.most_common(3))


def check_nothing_left(live: Live, launcher_pids: list[int]) -> None:
    """No process of this stack, of any life of its launcher, and no cgroup."""
    folder, pids = str(live.stack.folder), {str(pid) for pid in launcher_pids}
    for entry in Path("/proc").glob("[0-9]*"):
        command = command_of(int(entry.name))
        warm = any(word.endswith("/become.py") for word in command) and not pids.isdisjoint(command)
        assert not warm and not any(folder in word for word in command), (entry.name, command)
    left = [path for path in Path("/sys/fs/cgroup").rglob("dagseal-*") if path.name.partition("-")[2] in pids]
    found = {path: [*path.rglob("*/"), launcher_pids[-1], (path / "cgroup.events").read_text()] for path in left}
    assert not left, found


def command_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


@pytest.mark.timeout(480)
def test_f01_six_kills() -> None:
    """Fifty, of each kind many, in `make soak`."""
    with running(more_api_toml=API_TOML) as live:
        survive(live, marker_file(live), kills=6, uploads=15, launches=15, apart=24)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_f01_fifty_kills_during_two_hundred_uploads_and_launches() -> None:
    with running(more_api_toml=API_TOML) as live:
        survive(live, marker_file(live), kills=50, uploads=200, launches=200, apart=44)

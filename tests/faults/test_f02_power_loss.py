"""The power fails: every write that was not synced is gone, and still nothing acknowledged is lost.

kill -9 never shows this, because the kernel keeps what a dead process wrote. So every change that API, agent and launcher
make to their folders is recorded (`recorder.c`) and played back on a disk that keeps only what an fsync covered
(`fault_replay.py`). That disk changes with every fsync and with nothing else, so looking at it after each of them is
looking at every moment there is.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import dagseal.stack
from dagseal.footing import free_port
from dagseal.quickstart import default_user
from dagseal.stack import Stack
from integrity.digests import Digest
from tests.faults import fault_inspection, fault_replay, test_f01_kill9
from tests.faults.fault_recording import NO_COMPILER, Recording, recording
from tests.faults.fault_replay import ACKNOWLEDGED, FSYNC, RENAME, SAY, WRITE, Disk, Record
from tests.faults.fault_workload import SMALL
from tests.live import Live
from vocabulary import zipwriter

pytestmark = [NO_COMPILER, pytest.mark.timeout(280)]

_RESULT = re.compile(rb"POST /v1/launches/([0-9a-f]{32})/state .*application/vnd\.dsse\+json", re.S)


@dataclass(slots=True)
class Promises:
    """What somebody was told so far, in the order of the recording."""

    uploads: set[tuple[str, int, str]] = field(default_factory=set)
    launches: dict[str, str] = field(default_factory=dict)
    results: list[str] = field(default_factory=list)
    jobs: int = 0
    claims: int = 0
    kills: int = 0

    def hear(self, record: Record) -> bool:
        """Whether this record is a promise."""
        if record.kind == ACKNOWLEDGED:
            match record.about:
                case ["upload", name, number, digest]:
                    self.uploads.add((name, number, digest))
                case ["launch", launch_id, state]:
                    self.launches[launch_id] = state
                case ["kill", _]:
                    self.kills += 1
            return True
        if record.kind == SAY and (found := _RESULT.match(record.data)):
            self.results.append(found[1].decode())
        elif record.kind == SAY and record.data == b"job" and record.name == "run":
            self.jobs += 1
        elif record.kind == SAY and record.data == b"claim":
            self.claims += 1
        else:
            return False
        return True


@dataclass(slots=True)
class Recorded:
    """A stack whose three services are recorded."""

    live: Live
    recording: Recording

    def push(self, name: str, data: bytes) -> None:
        answer = self.live.push(name, data)
        assert answer.status in (200, 201), answer.body
        self.recording.acknowledge(["upload", name, answer.json["number"], str(Digest.of(data))])

    def launch(self, dag_id: str, run_id: str) -> None:
        made = self.live.http("POST", "/v1/launches", {"dag_id": dag_id, "task_id": "work", "run_id": run_id})
        assert made.status == 201, made.body
        self.recording.acknowledge(["launch", made.json["id"], "queued"])
        ended = self.live.wait(made.json["id"])
        assert ended["state"] == "success", ended
        self.recording.acknowledge(["launch", made.json["id"], "success"])


@contextmanager
def recorded(more_api_toml: str = "") -> Iterator[Recorded]:
    parent = Path(tempfile.mkdtemp(prefix="dagseal-power-"))
    parent.chmod(0o755)
    (parent / "recorder").mkdir()
    shared = parent / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    wanted = {"task_user": default_user(), "more_api_toml": more_api_toml, "writable": (shared,)}
    stack = Stack(folder=parent / "stack", port=free_port(), **wanted)
    record = recording(
        parent / "recorder", api=stack.folder / "api", agent=stack.folder / "agent", launcher=stack.folder / "launcher"
    )
    plain = dagseal.stack.service_environment
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dagseal.stack, "service_environment", lambda: plain() | record.environment())
        try:
            stack.prepare()
            stack.start()
            live = Live(stack)
            rule = {
                "subject_kind": "principal",
                "subject": "admin",
                "dag_glob": "*",
                "unix_user": stack.task_user,
                "queue_glob": "*",
            }
            assert live.http("POST", "/v1/impersonation-rules", rule).status == 201
            record.acknowledge(["ready"])
            yield Recorded(live, record)
        finally:
            stack.stop()
            shutil.rmtree(parent, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Story:
    """A finished recording, of a small workload, with what is needed to play it back."""

    records: list[Record]
    disk: Callable[..., Disk]
    tickets: list[str]


def source(dag_id: str, number: int) -> bytes:
    return SMALL.format(dag_id=dag_id, number=number).encode()


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    """Three archives, one of them a zip and one with three releases; four launches; and a restart of everything between."""
    with recorded() as stack:
        for number in range(1, 4):
            stack.push("one.py", source("one", number))
        stack.push(
            "two.zip",
            zipwriter.pack({"two.py": source("two", 1), "beside/notes.txt": random.Random(1).randbytes(100_000)}),
        )
        stack.launch("one", "first")
        stack.launch("two", "first")
        stack.live.stack.stop()
        stack.live.stack.start()
        stack.push("three.py", source("three", 1))
        stack.launch("three", "first")
        stack.launch("one", "second")
        offers = [event["detail"] for event in stack.live.audit() if event["action"] == "launch.offer"]
        tickets = [re.match(r"ticket ([0-9a-f]{32}) ", detail)[1] for detail in offers]  # type: ignore[index]
        stack.live.stack.stop()
        yield Story(stack.recording.records(), stack.recording.disk, tickets)


Look = Callable[[Path, Promises], list[str]]


def losses(
    story: Story, root: str, look: Look, *, deaf: frozenset[str] = frozenset(), names_first: bool = False
) -> list[str]:
    """What `look` finds wrong, at every point after "ready" at which the disk or what was promised has changed."""
    disk, promises = story.disk(deaf=deaf), Promises()
    wrong: list[str] = []
    ready, seen, points = False, -1, 0
    with tempfile.TemporaryDirectory(prefix="dagseal-left-") as folder:
        for at, record in enumerate(story.records):
            if names_first and ready and record.kind == FSYNC and disk.owner(record.inode) == root:
                points += 1
                wrong += [
                    f"before record {at}: {text}"
                    for text in look(disk.materialise(root, Path(folder, f"b{at}"), names_first=True), promises)
                ]
            disk.apply(record)
            told = promises.hear(record)
            ready = ready or (record.kind == ACKNOWLEDGED and record.about == ["ready"])
            if ready and not names_first and (told or disk.version[root] != seen):
                seen = disk.version[root]
                points += 1
                wrong += [
                    f"after record {at}: {text}"
                    for text in look(disk.materialise(root, Path(folder, f"a{at}")), promises)
                ]
    print(f"{root}: {len(story.records)} records, {points} power losses, {len(wrong)} of them with a loss")
    assert points > 20
    return wrong


def look_at_api(folder: Path, promises: Promises) -> list[str]:
    found = fault_inspection.api_state(folder)
    wrong = [*found.damage, *(f"upload lost: {name}@{number}" for name, number, _ in promises.uploads - found.uploads)]
    for launch_id, state in promises.launches.items():
        held = found.launches.get(launch_id)
        if held is None or (state == "success" and held != "success"):
            wrong.append(f"launch {launch_id} was told as {state} and is {held}")
    return wrong


def look_at_agent(folder: Path, promises: Promises) -> list[str]:
    return fault_inspection.used_cache(folder / "cache", host_was_down=True)


def test_f02_the_api_loses_nothing_that_it_acknowledged(story: Story) -> None:
    assert losses(story, "api", look_at_api) == []


def test_f02_the_api_names_nothing_before_it_is_whole(story: Story) -> None:
    assert losses(story, "api", look_at_api, names_first=True) == []


@pytest.mark.parametrize("deaf", ["files", "folders"])
def test_f02_a_lost_fsync_is_found_out(story: Story, deaf: str) -> None:
    """The harness has teeth: without the fsync of files, or of folders, the same look finds losses."""
    for root, look in (("api", look_at_api), ("launcher", look_at_launcher(story))):
        assert losses(story, root, look, deaf=frozenset({deaf})), root


@pytest.mark.parametrize("names_first", [False, True])
def test_f02_what_the_agents_cache_lost_is_used_by_nobody_and_no_damage(story: Story, names_first: bool) -> None:
    assert losses(story, "agent", look_at_agent, names_first=names_first) == []


def test_f02_the_agents_cache_check_has_teeth(story: Story) -> None:
    """Names that came first, and bytes that never came, on a host that was not down: wrong bytes under a digest's name."""

    def look(folder: Path, promises: Promises) -> list[str]:
        return fault_inspection.used_cache(folder / "cache", host_was_down=False)

    wrong = losses(story, "agent", look, names_first=True)
    assert any("digest-mismatch" in text for text in wrong)


def test_f02_a_result_is_on_disk_before_it_is_sent(story: Story) -> None:
    """When the agent begins to send a result, a power loss leaves the result: a restarted agent sends it again."""
    disk, promises, sent = story.disk(), Promises(), 0
    with tempfile.TemporaryDirectory(prefix="dagseal-left-") as folder:
        for at, record in enumerate(story.records):
            disk.apply(record)
            before = len(promises.results)
            promises.hear(record)
            if len(promises.results) > before:
                sent += 1
                left = disk.materialise("agent", Path(folder, str(at)))
                assert (left / "spool").is_dir(), "the spool's own name was not synced"
                assert fault_inspection.spooled_result(left / "spool", promises.results[-1])
    assert sent == len(story.tickets)


def look_at_launcher(story: Story) -> Look:
    def look(folder: Path, promises: Promises) -> list[str]:
        if not (folder / "journal" / "journal.000000000001.jsonl").is_file():
            return ["the journal is gone"]
        wrong = [
            f"{name} is not whole" for name in ("signing.key", "sealing.key") if _size(folder / "keys" / name) != 32
        ]
        events = [event["event"] for event in fault_inspection.journal_events(folder / "journal")]
        for event, told in (("launch", promises.jobs), ("claim", promises.claims)):
            if events.count(event) < told:
                wrong.append(f"{told} of event {event}, the journal has {events.count(event)}")
        for ticket_id in story.tickets[: max(promises.jobs, events.count("launch"))]:
            if not fault_inspection.refuses_again(folder / "journal", ticket_id):
                wrong.append(f"ticket {ticket_id} could be used again")
        return wrong

    return look


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


@pytest.mark.parametrize("names_first", [False, True])
def test_f02_no_launch_runs_again(story: Story, names_first: bool) -> None:
    """A task that was given its job has its line in an unbroken journal, and its ticket is refused from then on."""
    assert losses(story, "launcher", look_at_launcher(story), names_first=names_first) == []


def test_f02_a_kill_and_then_a_power_loss() -> None:
    """Killed just before any of the fsyncs of an upload, started again, asked again: what is acknowledged then is durable, also
    what the dead process had written and not synced."""
    with recorded() as stack:
        api = stack.live.stack.processes
        kills = 0
        while True:
            data, name = source(f"dag{kills}", kills), f"dag{kills}.py"
            stack.recording.trigger.write_text(f"{api['api'].pid} {kills + 1}")
            try:
                survived = stack.live.push(name, data).status == 201
            except OSError:
                survived = False
            stack.recording.trigger.unlink()
            if survived:
                break
            assert api["api"].wait() == -signal.SIGKILL
            stack.live.stack.start_api()
            stack.push(name, data)
            kills += 1
        stack.live.stack.stop()
        assert kills >= 3
        wrong = []
        disk, promises = stack.recording.disk(), Promises()
        with tempfile.TemporaryDirectory(prefix="dagseal-left-") as folder:
            for at, record in enumerate(stack.recording.records()):
                disk.apply(record)
                if promises.hear(record) and record.kind == ACKNOWLEDGED:
                    left = disk.materialise("api", Path(folder, str(at)))
                    wrong += [f"after kill {len(promises.uploads)}: {text}" for text in look_at_api(left, promises)]
        print(f"{kills} kills")
        assert wrong == []


def look_at_crowded_launcher(folder: Path, promises: Promises) -> list[str]:
    """Where launches overlap: the journal is unbroken and has a line for every job that was given and every claim made."""
    events = [event["event"] for event in fault_inspection.journal_events(folder / "journal")]
    told = (("launch", promises.jobs), ("claim", promises.claims))
    return [f"{count} of {event}, the journal has fewer" for event, count in told if events.count(event) < count]


def power_fails_too(*, kills: int, uploads: int, launches: int, apart: int, points: int) -> None:
    """The killed workload of `test_f01_kill9.py`, recorded; then the power fails at each kill, and at random points."""
    with recorded(test_f01_kill9.API_TOML) as stack:
        marker = test_f01_kill9.marker_file(stack.live)
        wanted = {"kills": kills, "uploads": uploads, "launches": launches, "apart": apart}
        test_f01_kill9.survive(
            stack.live, marker, **wanted, tell=stack.recording.acknowledge, standstill=stack.recording.standstill
        )
        found, disk, promises = stack.recording.records(), stack.recording.disk(), Promises()
        told = [at for at, record in enumerate(found) if record.kind == ACKNOWLEDGED]
        killed = [at for at in told if found[at].about[0] == "kill"]
        assert len(killed) == kills
        rng = random.Random(kills)
        looking = {*killed, *rng.sample(told, min(points, len(told))), *rng.sample(range(told[0], len(found)), points)}
        wrong: list[str] = []
        with tempfile.TemporaryDirectory(prefix="dagseal-left-") as folder:
            for at, record in enumerate(found):
                disk.apply(record)
                promises.hear(record)
                if at in looking and at >= told[0]:
                    left = {
                        root: disk.materialise(root, Path(folder, f"{at}-{root}"))
                        for root in ("api", "agent", "launcher")
                    }
                    wrong += [f"record {at}: {text}" for text in look_at_api(left["api"], promises)]
                    wrong += [f"record {at}: {text}" for text in look_at_agent(left["agent"], promises)]
                    wrong += [f"record {at}: {text}" for text in look_at_crowded_launcher(left["launcher"], promises)]
                    for path in left.values():
                        shutil.rmtree(path)
        print(f"{len(found)} records, {len(looking)} power losses, {promises.kills} of them at a kill")
        assert wrong == []


@pytest.mark.timeout(240)
def test_f02_the_power_fails_at_each_of_a_few_kills() -> None:
    power_fails_too(kills=5, uploads=14, launches=10, apart=20, points=20)


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_f02_the_power_fails_at_each_of_fifty_kills() -> None:
    power_fails_too(kills=50, uploads=200, launches=200, apart=44, points=100)


_VERBS = """
import os, sys
from pathlib import Path
from vocabulary import durable
from tests.faults.fault_replay import acknowledge

log, fd = Path(sys.argv[1]), os.open(sys.argv[2], os.O_RDONLY)
durable.make_folder(fd, "folder")
acknowledge(log, ["folder/", ""])
inside = os.open("folder", os.O_RDONLY, dir_fd=fd)
durable.create_exclusive(inside, "once", b"once")
acknowledge(log, ["folder/once", "once"])
durable.publish(inside, "whole", [b"who", b"le"])
acknowledge(log, ["folder/whole", "whole"])
durable.overwrite(fd, "newest", [b"old"])
acknowledge(log, ["newest", "old"])
durable.overwrite(fd, "newest", [b"new and longer"])
acknowledge(log, ["newest", "new and longer"])
journal = os.open("journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600, dir_fd=fd)
os.fsync(fd)
for text in ("a", "ab", "abc"):
    durable.append(journal, text[-1].encode(), size=len(text) - 1)
    acknowledge(log, ["journal", text])
"""
_MAY_BE = {
    "folder/once": ["once"],
    "folder/whole": ["whole"],
    "newest": ["old", "new and longer"],
    "journal": ["", "a", "ab", "abc"],
}


@pytest.fixture(scope="module")
def verbs() -> Iterator[Recording]:
    with tempfile.TemporaryDirectory(prefix="dagseal-verbs-") as folder:
        (Path(folder) / "root").mkdir()
        record = recording(Path(folder), root=Path(folder) / "root")
        repository = str(Path(__file__).parents[2])
        command = [sys.executable, "-c", _VERBS, str(record.log), f"{folder}/root"]
        subprocess.run(command, env={**os.environ, **record.environment()}, cwd=repository, check=True)
        yield record


def verb_losses(verbs: Recording, *, names_first: bool, deaf: frozenset[str] = frozenset()) -> list[str]:
    disk, told, wrong = verbs.disk(deaf=deaf), dict[str, str](), []
    for at, record in enumerate([*verbs.records(), None]):
        left = disk.files("root", names_first=names_first)
        for path, data in left.items():
            name = Path(path).name
            if data is not None and not name.startswith(".tmp-") and data.decode() not in _MAY_BE[path]:
                wrong.append(f"{at}: {path} is {data!r}")
        for path, text in told.items():
            held = left.get(path.rstrip("/"), b"missing")
            allowed = _MAY_BE[path][_MAY_BE[path].index(text) :] if path in _MAY_BE else []
            if held is not None and held.decode() not in allowed:
                wrong.append(f"{at}: {path} was told as {text!r} and is {held!r}")
        if record is not None:
            disk.apply(record)
            if record.kind == ACKNOWLEDGED:
                told[record.about[0]] = record.about[1]
    return wrong


@pytest.mark.parametrize("names_first", [False, True])
def test_f02_each_verb_of_durable_keeps_its_promise(verbs: Recording, names_first: bool) -> None:
    kinds = {record.kind for record in verbs.records()}
    assert kinds >= {
        WRITE,
        FSYNC,
        RENAME,
        fault_replay.CREATE,
        fault_replay.LINK,
        fault_replay.MKDIR,
        fault_replay.UNLINK,
        ACKNOWLEDGED,
    }
    assert verb_losses(verbs, names_first=names_first) == []


@pytest.mark.parametrize(("deaf", "names_first"), [("files", False), ("files", True), ("folders", False)])
def test_f02_a_verb_without_its_fsync_is_found_out(verbs: Recording, deaf: str, names_first: bool) -> None:
    assert verb_losses(verbs, names_first=names_first, deaf=frozenset({deaf}))


_LAUNCHES = """
import os, sys
from pathlib import Path
from vocabulary.tickets import VerifiedTicket
from notary.journal import Journal
from tests.faults.fault_inspection import used
from tests.faults.fault_replay import acknowledge

log, fd = Path(sys.argv[1]), os.open(sys.argv[2], os.O_RDONLY)
journal = Journal(fd, now_us=lambda: 0, max_bytes=1500)
for number in range(12):
    journal.use(used(f"{number:032x}"))
    acknowledge(log, [f"{number:032x}"])
"""


@pytest.mark.parametrize("names_first", [False, True])
def test_f02_a_journal_that_is_continued_in_another_file_forgets_no_ticket(names_first: bool) -> None:
    """Of a ticket that was told as used nobody can make a second use, whatever was being written when the power failed."""
    with tempfile.TemporaryDirectory(prefix="dagseal-continued-") as folder:
        (Path(folder) / "root").mkdir()
        record = recording(Path(folder), root=Path(folder) / "root")
        command = [sys.executable, "-c", _LAUNCHES, str(record.log), f"{folder}/root"]
        environment = {**os.environ, **record.environment()}
        subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], check=True)
        disk, told, most = record.disk(), list[str](), 0
        for at, entry in enumerate(record.records()):
            disk.apply(entry)
            if entry.kind == ACKNOWLEDGED:
                told += entry.about
            if entry.kind in (ACKNOWLEDGED, FSYNC) and told:
                left = disk.materialise("root", Path(folder, str(at)), names_first=names_first)
                most = max(most, len(list(left.glob("journal.*.jsonl"))))
                fault_inspection.journal_events(left)
                assert [one for one in told if not fault_inspection.refuses_again(left, one)] == []
        assert (len(told), most) == (12, 4)


_NAMES = """
import itertools, os, sys

fd = os.open(sys.argv[1], os.O_RDONLY)
print("on", flush=True)
for number in itertools.count():
    name = f"{sys.argv[2]}-{number}"
    file = os.open(name, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=fd)
    os.write(file, b"x")
    os.close(file)
    os.rename(name, f"{name}-whole", src_dir_fd=fd, dst_dir_fd=fd)
"""


def test_f02_the_recording_has_all_that_a_killed_process_did() -> None:
    """The harness has no holes: a call that had begun when its process was killed did happen, and is in the recording."""
    with tempfile.TemporaryDirectory(prefix="dagseal-holes-") as folder:
        root = Path(folder) / "root"
        root.mkdir()
        record = recording(Path(folder), root=root)
        for process in range(12):
            environment = {**os.environ, **record.environment()}
            command = [sys.executable, "-c", _NAMES, str(root), str(process)]
            with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as busy:
                assert busy.stdout and busy.stdout.readline() == b"on\n"
                while not (root / f"{process}-{process}-whole").exists():
                    os.sched_yield()
                with record.standstill():
                    busy.kill()
                    busy.wait()
        disk = record.disk()
        for entry in record.records():
            disk.apply(entry)
        assert disk.files("root", names_first=True).keys() == set(os.listdir(root))


_AGAIN = """
import os, sys
from pathlib import Path
from vocabulary import durable
from tests.faults.fault_replay import acknowledge

log, trigger, fd = Path(sys.argv[1]), Path(sys.argv[2]), os.open(sys.argv[3], os.O_RDONLY)
verb, name, last_fsync = sys.argv[4], sys.argv[5], int(sys.argv[6])
if last_fsync:
    trigger.write_text(f"{os.getpid()} {last_fsync}")
try:
    if verb == "make_folder":
        durable.make_folder(fd, name)
    elif verb == "publish":
        durable.publish(fd, name, [b"whole"])
    else:
        durable.create_exclusive(fd, name, b"whole")
except FileExistsError:
    pass
acknowledge(log, [name])
"""


@pytest.mark.parametrize("verb", ["make_folder", "publish", "create_exclusive"])
def test_f02_a_verb_that_was_killed_and_is_done_again_keeps_its_promise(verb: str) -> None:
    """Also "it is there already" is an answer that somebody relies on: a name that is seen has to be a name that stays."""
    with tempfile.TemporaryDirectory(prefix="dagseal-again-") as folder:
        (Path(folder) / "root").mkdir()
        record = recording(Path(folder), root=Path(folder) / "root")
        killed, fsyncs = 0, 0
        while killed == fsyncs:
            fsyncs += 1
            for last in (fsyncs, 0):
                command = [
                    sys.executable,
                    "-c",
                    _AGAIN,
                    str(record.log),
                    str(record.trigger),
                    f"{folder}/root",
                    verb,
                    f"n{fsyncs}",
                    str(last),
                ]
                environment = {**os.environ, **record.environment()}
                code = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], check=False).returncode
                assert code in (0, -signal.SIGKILL)
                killed += code != 0
                record.trigger.unlink(missing_ok=True)
        assert killed == (1 if verb == "make_folder" else 2)
        disk = record.disk()
        for entry in record.records():
            disk.apply(entry)
            if entry.kind == ACKNOWLEDGED:
                left = disk.files("root")
                assert left.get(entry.about[0], b"missing") in (None, b"whole"), entry.about

"""What a task's cgroup holds it to, on the real hierarchies of this host: memory, processes and CPU time."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integrity.errors import PrivilegeError
from launcher import cgroups
from launcher.cgroups import CgroupTrees
from launcher.controllers import Limits, OwnCgroup, own_cgroups, share
from launcher.trees import _alive
from tests.forked import InChild

pytestmark = pytest.mark.root


MIB = 1024 * 1024
LIMITS = Limits(memory_max_bytes=64 * MIB, pids_max=12, cpu_percent=20)


def owns() -> list[OwnCgroup]:
    return own_cgroups(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text())


def folders() -> set[Path]:
    """Every launcher's that there is."""
    return {folder for own in owns() for folder in own.folder.glob("dagseal-*")}


def tasks_of(label: str) -> list[Path]:
    return [path for folder in folders() for path in folder.glob(label)]


@pytest.fixture
def trees() -> Iterator[CgroupTrees]:
    try:
        shared = share(LIMITS, owns())
    except PrivilegeError as error:
        pytest.skip(str(error))
    if any(asked and (own.folder / "cgroup.type").exists() for own, asked in shared.items() if own.version == 2):
        pytest.skip("shares a v2 cgroup that is not the root with others")
    found = CgroupTrees.find(LIMITS)
    assert found is not None and found.kills
    yield found
    mine = set(found._places)
    for folder in mine:
        for left in folder.glob("*/"):  # of a test that failed
            cgroups._remove_whole(left)
    found.close()
    assert not mine & folders()


class Task:
    """A process that waits to be adopted, does `body`, says what that returned, and waits for ever."""

    def __init__(self, body: Callable[[], object]) -> None:
        go, self._go = os.pipe()
        self._said, say = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._go)
                os.read(go, 1)
                os.write(say, f"{body()}\n".encode())
                while True:
                    signal.pause()
            finally:
                os._exit(0)
        os.close(go)
        os.close(say)

    def start(self) -> None:
        os.write(self._go, b"g")

    def said(self) -> str:
        """Empty if it died instead."""
        return os.read(self._said, 100).decode().strip()

    def status(self) -> int:
        """When it is dead. The end of the test's use of it."""
        os.close(self._go)
        os.close(self._said)
        return os.waitpid(self.pid, 0)[1]


def fork_bomb() -> str:
    for count in range(1000):
        try:
            pid = os.fork()
        except OSError as error:
            return f"{errno.errorcode[error.errno or 0]} after {count}"
        if pid == 0:
            while True:
                signal.pause()
    return "never stopped"


def memory_bomb() -> str:
    kept = []
    for _ in range(1024):
        kept.append(bytearray(os.urandom(4096) * 256))
    return f"{len(kept)} MiB"


def burn() -> float:
    """A tenth of a second of CPU time; how long that took."""
    began, until = time.monotonic(), time.process_time() + 0.1
    while time.process_time() < until:
        pass
    return time.monotonic() - began


async def test_a_fork_bomb_ends_at_its_limit_and_the_host_can_fork(trees: CgroupTrees) -> None:
    task = Task(fork_bomb)
    tree = trees.adopt(task.pid, "bomb")
    task.start()
    assert task.said() == "EAGAIN after 11"
    subprocess.run(["true"], check=True)
    await tree.kill()
    assert os.WTERMSIG(task.status()) == signal.SIGKILL
    assert tasks_of("bomb") == []


async def test_a_memory_bomb_dies_and_nobody_else(trees: CgroupTrees) -> None:
    bomb, neighbour = Task(memory_bomb), Task(lambda: len(bytearray(MIB)))
    tree, other = trees.adopt(bomb.pid, "bomb"), trees.adopt(neighbour.pid, "neighbour")
    neighbour.start()
    assert neighbour.said() == str(MIB)
    bomb.start()
    assert bomb.said() == ""
    assert os.WTERMSIG(bomb.status()) == signal.SIGKILL
    assert tree.oom_kills() in (1, 2) and other.oom_kills() == 0  # v2 kills it and then its whole group
    assert _alive(neighbour.pid)
    await tree.kill()
    await other.kill()
    neighbour.status()
    assert tasks_of("bomb") == tasks_of("neighbour") == []


async def test_cpu_time_is_rationed(trees: CgroupTrees) -> None:
    task = Task(burn)
    tree = trees.adopt(task.pid, "burner")
    task.start()
    assert float(task.said()) > 0.25
    stat = next(
        path / "cpu.stat" for path in map(Path, tree.folders) if (path / "cpu.stat").exists() and quota_of(path)
    )
    throttled = dict(line.split() for line in stat.read_text().splitlines())
    assert int(throttled["nr_throttled"]) >= 1
    await tree.kill()
    task.status()


def quota_of(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("cpu.max", "cpu.cfs_quota_us"))


async def test_the_limits_are_there_before_the_process_is(trees: CgroupTrees) -> None:
    tree = trees._make("empty")
    assert all((folder / "cgroup.procs").read_text() == "" for folder in map(Path, tree.folders))
    limit = next(folder / "pids.max" for folder in map(Path, tree.folders) if (folder / "pids.max").exists())
    assert limit.read_text() == "12\n"
    await tree.remove()
    assert tasks_of("empty") == []


async def test_many_are_adopted_at_once_in_threads(trees: CgroupTrees) -> None:
    tasks = [Task(os.getpid) for _ in range(8)]
    adopted = await asyncio.gather(*(asyncio.to_thread(trees.adopt, task.pid, f"many-{task.pid}") for task in tasks))
    for task in tasks:
        task.start()
        assert task.said() == str(task.pid)
    await asyncio.gather(*(tree.kill() for tree in adopted))
    assert [task.status() for task in tasks] == [signal.SIGKILL] * 8
    assert tasks_of("many-*") == []


def test_what_is_in_force_is_told(trees: CgroupTrees) -> None:
    said = trees.describe()
    assert said.startswith("v2:kill")
    assert all(word in said for word in (f"memory={64 * MIB}", "pids=12", "cpu=20"))


def test_nothing_is_left_when_a_folder_cannot_be_made(trees: CgroupTrees) -> None:
    task = Task(os.getpid)
    last = list(trees._places)[-1] / "taken"
    last.mkdir()
    try:
        with pytest.raises(FileExistsError):
            trees.adopt(task.pid, "taken")
        assert tasks_of("taken") == [last]
    finally:
        last.rmdir()
    assert _alive(task.pid)  # it was not in any yet
    os.kill(task.pid, signal.SIGKILL)
    task.status()


def test_nothing_is_left_when_a_process_is_gone(trees: CgroupTrees) -> None:
    task = Task(os.getpid)
    os.kill(task.pid, signal.SIGKILL)
    task.status()
    with pytest.raises(ProcessLookupError):
        trees.adopt(task.pid, "gone")
    assert tasks_of("gone") == []


def test_nothing_is_left_when_the_last_hierarchy_does_not_take_it(trees: CgroupTrees) -> None:
    """The process is in the others by then: it ends with them, as its task is refused."""
    if len(trees._places) < 2:
        pytest.skip("all on one hierarchy here")
    task = Task(os.getpid)
    tree = trees._make("half")
    os.rmdir(tree.folders[-1])
    with pytest.raises(FileNotFoundError):
        tree.attach(task.pid)
    tree.discard()
    assert os.WTERMSIG(task.status()) == signal.SIGKILL
    assert tasks_of("half") == []


def test_a_limit_that_the_kernel_refuses_refuses_the_start_and_leaves_nothing() -> None:
    """More than the kernel's own highest number of processes."""
    with pytest.raises(PrivilegeError, match=r"pids limit .*pids\.max: .*Delegate=yes"):
        CgroupTrees.find(Limits(pids_max=2**40))
    assert not {folder for folder in folders() if folder.name == f"dagseal-{os.getpid()}"}


def test_who_may_not_make_cgroups_gets_none_and_is_refused_limits(in_child: InChild) -> None:
    def ask() -> object:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        assert CgroupTrees.find(Limits()) is None
        return CgroupTrees.find(LIMITS)

    said = in_child(ask)
    assert said.startswith("PrivilegeError: limits {") and "Permission denied" in said


async def test_v1_alone_has_no_kill_of_its_own_but_limits_and_remove() -> None:
    places = {own: asked for own, asked in share(LIMITS, owns()).items() if own.version == 1}
    if not any(places.values()):
        pytest.skip("no controller on v1 here")
    trees = CgroupTrees(places)
    try:
        assert not trees.kills and trees.describe().startswith("v1:")
        task = Task(fork_bomb)
        tree = trees.adopt(task.pid, "v1")
        task.start()
        assert task.said() == "EAGAIN after 11"
        with pytest.raises(RuntimeError):
            await tree.kill()
        removal = asyncio.create_task(tree.remove())
        await asyncio.sleep(0)
        assert not removal.done()  # it waits for them
        for pid in Path(tree.folders[0]).joinpath("cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        await removal
        task.status()
        again = Task(fork_bomb)
        left = trees.adopt(again.pid, "left")
        again.start()
        again.said()
        left.discard()  # as at the next start
        assert os.WTERMSIG(again.status()) == signal.SIGKILL
    finally:
        trees.close()
    assert not {folder for folder in folders() if folder.name == f"dagseal-{os.getpid()}"}


LAUNCHER = """
import os, signal, sys
from launcher.cgroups import CgroupTrees
from launcher.controllers import Limits
pid = os.fork()
if pid == 0:
    os.setsid()
    while True:
        signal.pause()
trees = CgroupTrees.find(Limits(memory_max_bytes=1 << 26, pids_max=12, cpu_percent=20))
trees.adopt(pid, "left")
print(pid, *trees._places, flush=True)
sys.stdin.read()
"""


def test_what_a_dead_launcher_left_in_any_hierarchy_is_removed(trees: CgroupTrees) -> None:
    with subprocess.Popen([sys.executable, "-c", LAUNCHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid, *places = process.stdout.readline().split()
        process.kill()
    left = [Path(os.fsdecode(place)) for place in places]
    assert len(left) == len(trees._places) and all((folder / "left").exists() for folder in left)
    assert _alive(int(pid))
    ours = Task(os.getpid)
    tree = trees.adopt(ours.pid, "mine")
    again = subprocess.run(
        [sys.executable, "-c", "from launcher.cgroups import *; print(CgroupTrees.find(Limits()))"], capture_output=True
    )
    assert b"CgroupTrees" in again.stdout, again.stderr
    assert not _alive(int(pid)) and not any(folder.exists() for folder in left)
    assert _alive(ours.pid)  # of a living launcher
    tree.discard()
    ours.status()


DELEGATED = """
import asyncio, os, sys
from pathlib import Path
from integrity.errors import PrivilegeError
from launcher import cgroups, controllers
own, controller, file, neighbour = Path(sys.argv[1]), *sys.argv[2:]
controllers._WRITES[f"2 {controller}"] = {file: "{}"}
(own / "cgroup.procs").write_text(str(os.getpid()))
if neighbour:
    (own / "cgroup.procs").write_text(neighbour)
here = controllers.OwnCgroup(version=2, folder=own, controllers=frozenset({controller}))
try:
    trees = cgroups.CgroupTrees({here: {controller: 1 << 21}})
except PrivilegeError as error:
    print(f"refused: {error}", *own.glob("dagseal-*"), Path("/proc/self/cgroup").read_text().splitlines()[-1])
    sys.exit()
task = os.posix_spawn("/bin/cat", ["cat"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, os.pipe()[0], 0)])
tree = trees.adopt(task, "task")
print(Path("/proc/self/cgroup").read_text().splitlines()[-1].endswith(f"dagseal-{os.getpid()}/launcher"),
      (Path(tree.folders[0]) / file).read_text().strip(), trees.describe())
asyncio.run(tree.kill())
os.waitpid(task, 0)
trees.close()
print(*own.glob("dagseal-*"), Path("/proc/self/cgroup").read_text().splitlines()[-1].endswith(own.name))
"""


@pytest.fixture
def delegated() -> Iterator[tuple[Path, str, str]]:
    """A v2 cgroup that is not the root, like that of a unit with Delegate=yes, and a controller that is on v2 here."""
    parent = next((own for own in owns() if own.version == 2), None)
    files = {"pids": "pids.max", "memory": "memory.max", "hugetlb": "hugetlb.2MB.max"}
    name = next((name for name in files if parent and name in parent.controllers), None)
    if parent is None or name is None:
        pytest.skip("no controller on v2 here")
    control = parent.folder / "cgroup.subtree_control"
    before = control.read_text().split()
    own = parent.folder / f"test-{os.getpid()}"
    own.mkdir()
    try:
        control.write_text(f"+{name}")
        yield own, name, files[name]
    finally:
        cgroups._remove_whole(own)
        if name not in before:
            control.write_text(f"-{name}")


def delegated_run(*arguments: object) -> list[str]:
    command = [sys.executable, "-c", DELEGATED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_v2_controllers_are_shared_out_from_a_leaf_and_given_back(delegated: tuple[Path, str, str]) -> None:
    own, name, file = delegated
    assert delegated_run(own, name, file, "") == [f"True {1 << 21} v2:kill,{name}={1 << 21}", "True"]


def test_who_shares_its_v2_cgroup_with_others_is_refused_and_goes_back(delegated: tuple[Path, str, str]) -> None:
    own, name, file = delegated
    neighbour = Task(os.getpid)
    (said,) = delegated_run(own, name, file, neighbour.pid)
    assert said.startswith(f"refused: limits {{'{name}'")
    assert (
        "busy" in said
        and "Delegate=yes" in said
        and said.endswith(f"/{own.name}")
        and "dagseal-" not in said.split("Delegate")[1]
    )
    cgroups._remove_whole(own)
    assert os.WTERMSIG(neighbour.status()) == signal.SIGKILL

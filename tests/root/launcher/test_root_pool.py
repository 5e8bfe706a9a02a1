"""The pool with real warm processes: a request finds a spare that waits, and what is retired leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from integrity.digests import Digest
from integrity.errors import FetchError, SettingsError
from launcher.accounts import Account
from launcher.cgroups import CgroupTrees, Limits
from launcher.channel import wait_readable
from launcher.isolation import PROFILES, Confinement
from launcher.kinds import Kind, clean_environment
from launcher.powers import LocalPowers
from launcher.privileges import status_of
from launcher.trees import Trees, WalkTrees, children
from notary.attestation import attest
from notary.sealed import verify_and_seal
from notary.tasklog import TaskLog
from notary.taskprocess import TaskProcess
from notary.warmpool import PoolRules, WarmPool
from notary.warmprocess import WarmProcess
from vocabulary.grants import Secrets

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

NOBODY = Account(name="nobody", uid=65534, gid=65534, groups=(65534,), home="/nonexistent")
DAG = b"""
from airflow.sdk import DAG, task
with DAG("d", schedule=None):
    @task
    def quick():
        pass
    quick()
"""


def kind(profile: str = "standard") -> Kind:
    confinement = Confinement(
        profile=PROFILES[profile], network=True, readable=(), writable=(), tcp_ports=(), tmp_bytes=1 << 20
    )
    return Kind(account=NOBODY, purpose="run", confinement=confinement)


class Pool:
    """A pool, and what the daemon gives it."""

    def __init__(self, trees: Trees, *, start_timeout_seconds: float = 60, **rules: Any) -> None:
        self.trees = trees
        self.start_timeout_seconds = start_timeout_seconds
        self.stamp = 1
        self.taken: list[TaskProcess] = []
        usual = {"spares": 2, "max_tasks": 1000, "idle_seconds": 3600.0}
        self.powers = LocalPowers(privileged=True, trees=trees, environment=lambda kind: clean_environment(kind, {}))
        self.warm = WarmPool(
            rules=PoolRules(**usual | rules), start=self.start, fork=self.fork, stamp=lambda: self.stamp
        )

    async def start(self, kind: Kind) -> WarmProcess:
        return await WarmProcess.start(kind, self.powers, timeout_seconds=self.start_timeout_seconds)

    async def fork(self, warm: WarmProcess) -> TaskProcess:
        open_log = partial(TaskLog, max_bytes=1 << 20, bytes_per_second=1 << 20, now_us=lambda: 0)
        return await TaskProcess.fork(warm, self.powers, open_log=open_log, max_frame=1 << 20)

    async def take(self, profile: str = "standard") -> TaskProcess:
        self.taken.append(await self.warm.take(kind(profile)))
        return self.taken[-1]

    async def give_back(self, task: TaskProcess) -> None:
        self.taken.remove(task)
        await self.warm.give_back(task)

    async def end(self) -> None:
        for task in list(self.taken):
            await self.give_back(task)
        await self.warm.end()

    async def spares(self, profile: str = "standard") -> list[TaskProcess]:
        """Those that wait, once no more are on their way."""
        place = self.warm._places[kind(profile)]
        while under_way := {task for task in (place.filling, place.renewing) if task is not None and not task.done()}:
            await asyncio.wait(under_way)
        return list(place.spares)


def left() -> tuple[set[str], set[int], int, set[Path]]:
    """What this process has open, started, mounted and made."""
    fds = {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    }
    folders = set(Path("/sys/fs/cgroup").glob(f"*/dagseal-{os.getpid()}/*/"))
    mounts = Path("/proc/self/mountinfo").read_text().count("\n")
    return fds, children(os.getpid()), mounts, folders


@pytest.fixture
async def pools() -> AsyncIterator[Callable[..., Pool]]:
    """Start pools; at the end nothing of them is there."""
    trees: Trees = CgroupTrees.find(Limits()) or WalkTrees()
    await asyncio.to_thread(lambda: None)  # asyncio's own thread and descriptors are there from now on
    before = left()
    started: list[Pool] = []

    def start(**rules: Any) -> Pool:
        started.append(Pool(trees, **rules))
        return started[-1]

    yield start
    for pool in started:
        await pool.end()
    after = left()
    trees.close()
    assert after[1] <= before[1], "what an earlier test left may end meanwhile, and nothing of ours is there"
    assert (after[0], *after[2:]) == (before[0], *before[2:])


async def ran(task: TaskProcess) -> str:
    """Give it the archive above and run its task; the state."""
    digest = Digest.of(DAG)
    fd = os.memfd_create("etl")
    os.write(fd, DAG)
    with verify_and_seal(fd, digest, max_bytes=1000) as code:
        os.close(fd)
        job = {"job": "run", "name": "d.py", "digest": str(digest), "members": None, "dag_id": "d", "task_id": "quick"}
        job |= {
            "run_id": "r",
            "map_index": -1,
            "try_number": 1,
            "queue": "default",
            "unix_user": "nobody",
            "supervised": False,
        }
        await task.ask(job, code.fd)
    await task.answer("ready")
    await task.give_secrets(Secrets(connections={}, variables={}, xcoms=(), run={}).to_bytes())
    return (await task.answer("finished")).fields.text("state", max_chars=20)


async def kill(task: TaskProcess) -> None:
    """Not by its pool. Returns when it is dead."""
    os.kill(task.pid, signal.SIGKILL)
    await wait_readable(task._pidfd)


def dead(pid: int) -> bool:
    try:
        return status_of(pid)["State"][0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("profile", PROFILES)
async def test_each_request_takes_a_process_of_its_own_and_they_are_refilled(
    pools: Callable[..., Pool], profile: str
) -> None:
    pool = pools(spares=3)
    seen = set()
    for _ in range(5):
        task = await pool.take(profile)
        assert attest(task, limits="none", empties_bounding_set=True)["profile"] == profile
        seen.add(task.pid)
        assert await ran(task) == "success"
        await pool.give_back(task)
        assert dead(task.pid)
        spares = await pool.spares(profile)
        assert len(spares) == 3 and all(spare.alive for spare in spares)
        seen |= {spare.pid for spare in spares}
    assert len(seen) >= 5 + 3
    assert next(iter(pool.warm._places.values())).warm.forks == 5 + 3


async def test_the_process_that_is_taken_was_waiting(pools: Callable[..., Pool]) -> None:
    pool = pools()
    await pool.give_back(await pool.take())
    waiting = [spare.pid for spare in await pool.spares()]
    task = await pool.take()
    assert task.pid in waiting
    await pool.give_back(task)


async def test_more_requests_than_spares_at_once_all_get_one(pools: Callable[..., Pool]) -> None:
    pool = pools(spares=2)
    tasks = await asyncio.gather(*(pool.take() for _ in range(12)))
    assert len({task.pid for task in tasks}) == 12 and all(task.alive for task in tasks)
    assert len({task.warm for task in tasks}) == 1
    await asyncio.gather(*(pool.give_back(task) for task in tasks))
    assert len(await pool.spares()) == 2
    assert tasks[0].warm.tasks == 0


async def test_each_profile_has_a_warm_process_of_its_own(pools: Callable[..., Pool]) -> None:
    pool = pools(spares=1)
    one, other = await pool.take("standard"), await pool.take("minimal")
    assert one.warm is not other.warm
    for task in (one, other):
        await pool.give_back(task)


async def test_a_spare_that_was_killed_is_passed_over(pools: Callable[..., Pool]) -> None:
    pool = pools(spares=2)
    await pool.give_back(await pool.take())
    first, second = await pool.spares()
    await kill(first)
    task = await pool.take()
    assert task.pid == second.pid and await ran(task) == "success"
    await pool.give_back(task)
    spares = await pool.spares()
    assert len(spares) == 2 and all(spare.alive for spare in spares)


async def test_a_spare_that_was_killed_is_replaced_behind_the_next_task(pools: Callable[..., Pool]) -> None:
    pool = pools(spares=2)
    await pool.give_back(await pool.take())
    _, last = await pool.spares()
    await kill(last)
    await pool.give_back(await pool.take())
    found = await pool.spares()
    assert len(found) == 2 and all(spare.alive for spare in found) and last not in found


async def test_when_all_spares_were_killed_one_is_forked(pools: Callable[..., Pool]) -> None:
    pool = pools(spares=3)
    await pool.give_back(await pool.take())
    killed = await pool.spares()
    for spare in killed:
        await kill(spare)
    task = await pool.take()
    assert task.pid not in {spare.pid for spare in killed} and await ran(task) == "success"
    await pool.give_back(task)


@pytest.mark.parametrize("profile", ["minimal", "standard"])
async def test_a_warm_process_that_died_is_replaced(pools: Callable[..., Pool], profile: str) -> None:
    pool = pools()
    running = await pool.take(profile)
    old = running.warm
    await pool.spares(profile)
    os.kill(old.pid, signal.SIGKILL)
    await wait_readable(old._pidfd)
    task = await pool.take(profile)
    assert task.warm is not old and await ran(task) == "success"
    with pytest.raises(EOFError):
        await running.answer("ready")
    assert not running.alive  # its tasks die with it
    for one in (running, task):
        await pool.give_back(one)
    await pool.warm.retire_idle()
    assert pool.warm._retired == []


def forker(warm: WarmProcess) -> int:
    """Who forks the tasks: with namespaces it is process 2 of its own, below two that wait for its end."""
    pid = warm.pid
    for _ in range(2 if warm.kind.confinement.profile.namespaces else 0):
        (pid,) = children(pid)
    return pid


def most_processes(pid: int, most: int) -> None:
    """Of that process's user, as far as it is concerned; said by this user, as root needs CAP_SYS_RESOURCE for it."""
    program = f"import resource as r; r.prlimit({pid}, r.RLIMIT_NPROC, ({most}, r.prlimit({pid}, r.RLIMIT_NPROC)[1]))"
    subprocess.run([sys.executable, "-c", program], check=True, user=NOBODY.uid, group=NOBODY.gid, extra_groups=[])


@pytest.mark.parametrize("profile", PROFILES)
async def test_without_room_for_one_more_the_tasks_that_there_are_go_on(
    pools: Callable[..., Pool], profile: str
) -> None:
    pool = pools(spares=1)
    task = await pool.take(profile)
    warm = task.warm
    for spare in await pool.spares(profile):
        await kill(spare)
    most_processes(forker(warm), 0)
    with pytest.raises(FetchError) as raised:
        await pool.take(profile)
    assert str(raised.value) == (
        "no task can be forked for unix user nobody: [Errno 11] Resource temporarily unavailable; try again"
    )
    assert await ran(task) == "success"
    assert warm.alive

    most_processes(forker(warm), resource.getrlimit(resource.RLIMIT_NPROC)[1])
    after = await pool.take(profile)
    assert after.warm is warm
    assert await ran(after) == "success"


async def test_one_that_answers_out_of_step_is_replaced(pools: Callable[..., Pool]) -> None:
    """A fork that was broken off: its answer would be taken for the next one's."""
    pool = pools(spares=1)
    task = await pool.take()
    old = task.warm
    await pool.spares()
    os.kill(forker(old), signal.SIGSTOP)  # it does not answer meanwhile
    forking = asyncio.create_task(pool.fork(old))
    while not old._lock.locked():
        await asyncio.sleep(0)
    forking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await forking
    os.kill(forker(old), signal.SIGCONT)
    again = await pool.take()
    assert again.warm is not old and await ran(again) == "success"
    assert await ran(task) == "success"  # what runs already runs to its end
    for one in (task, again):
        await pool.give_back(one)


async def retires(pool: Pool, wear: Callable[[], object], *, takes: int) -> None:
    """After `wear` and some launches there is another warm process, and the task of the first still runs to its end."""
    running = await pool.take()
    old = running.warm
    wear()
    fresh = old
    for _ in range(takes):
        await pool.spares()
        task = await pool.take()
        fresh = task.warm
        await pool.give_back(task)
    assert fresh is not old
    assert old.alive and running.alive
    assert {spare.warm for spare in await pool.spares()} == {fresh}
    assert await ran(running) == "success"
    await pool.give_back(running)
    await pool.warm.retire_idle()
    assert not old.alive and dead(old.pid) and fresh.alive


async def test_after_so_many_tasks_it_is_retired(pools: Callable[..., Pool]) -> None:
    await retires(pools(spares=1, max_tasks=4), lambda: None, takes=4)


async def test_while_its_successor_starts_it_forks_as_ever(pools: Callable[..., Pool]) -> None:
    pool = pools(spares=1, max_tasks=2)
    old = (await pool.take()).warm
    await pool.take()
    place = pool.warm._places[kind()]
    while place.renewing is None:
        assert place.filling is not None
        await asyncio.wait({place.filling})
    assert (await pool.take()).warm is old
    assert place.filling is not None
    await asyncio.wait({place.filling})
    assert [spare.warm for spare in place.spares] == [old] and not place.renewing.done()
    assert [spare.warm is old for spare in await pool.spares()] == [False]


async def test_when_the_packages_change_it_is_retired_at_once(pools: Callable[..., Pool]) -> None:
    pool = pools()
    await retires(pool, lambda: setattr(pool, "stamp", 2), takes=1)


async def test_one_that_was_idle_is_retired_with_its_spares(pools: Callable[..., Pool]) -> None:
    pool = pools(idle_seconds=0.0)
    before = left()
    task = await pool.take()
    await pool.spares()
    await pool.warm.retire_idle()
    assert task.alive and pool.warm._places[kind()].warm is task.warm  # it is not idle while a task runs
    await pool.give_back(task)
    pids = [spare.pid for spare in await pool.spares()]
    await pool.warm.retire_idle()
    assert not task.warm.alive and all(dead(pid) for pid in pids)
    assert left() == before
    again = await pool.take()
    assert again.warm is not task.warm
    await pool.give_back(again)


async def test_the_end_comes_while_spares_are_forked(pools: Callable[..., Pool]) -> None:
    pool = pools(spares=20)
    await pool.give_back(await pool.take())
    await pool.warm.end()


async def test_one_that_does_not_start_is_said_with_its_user_and_profile(pools: Callable[..., Pool]) -> None:
    pool = pools(start_timeout_seconds=0.01)
    before = left()
    for _ in range(2):
        with pytest.raises(
            SettingsError, match=r"unix user nobody \(profile standard\) did not start \(it took too long\)"
        ):
            await pool.take()
    assert left() == before


@pytest.mark.parametrize("turns", [1, 100])
async def test_a_request_that_is_cancelled_leaves_nothing(pools: Callable[..., Pool], turns: int) -> None:
    """After so many turns of the loop; what is left is seen at the end of the pool."""
    pool = pools(spares=1)
    first = await pool.take()
    forking = asyncio.create_task(pool.fork(first.warm))
    for _ in range(turns):
        await asyncio.sleep(0)
    forking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        pool.taken.append(await forking)
        first.warm.tasks += 1
    taking = asyncio.create_task(pool.take())
    for _ in range(turns):
        await asyncio.sleep(0)
    taking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await taking
    again = await pool.take()
    assert await ran(again) == "success"


class Slow:
    """Trees that take as long as they are told to."""

    name = "slow"

    def __init__(self, trees: Trees) -> None:
        self._trees = trees
        self.asked, self.go, self.done = threading.Event(), threading.Event(), threading.Event()

    def describe(self) -> str:
        return self._trees.describe()

    def adopt(self, pid: int, label: str) -> Any:
        self.asked.set()
        self.go.wait()
        try:
            return self._trees.adopt(pid, label)
        finally:
            self.done.set()

    def close(self) -> None:
        self._trees.close()


async def test_a_launch_that_is_cancelled_while_its_cgroup_is_made_leaves_none(pools: Callable[..., Pool]) -> None:
    pool = pools(spares=1)
    task = await pool.take()
    await pool.spares()
    before = left()
    pool.powers._trees = slow = Slow(pool.trees)
    forking = asyncio.create_task(pool.fork(task.warm))
    await asyncio.to_thread(slow.asked.wait)
    forking.cancel()
    await asyncio.sleep(0)
    slow.go.set()
    with pytest.raises(asyncio.CancelledError):
        await forking
    await asyncio.to_thread(slow.done.wait)
    assert left() == before
    await pool.give_back(task)

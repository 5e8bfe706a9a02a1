"""The notary's end of the monitor's table, with the real monitor at the other: what it raises, and what it leaves when it is
cancelled or the monitor goes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from integrity.errors import OutOfScopeError, PrivilegeError
from launcher.accounts import Account
from launcher.cgroups import CgroupTrees, Limits
from launcher.channel import Channel
from launcher.kinds import Kind, clean_environment, of_run
from launcher.monitor import FRAME_BYTES, Monitor
from launcher.notary.asking import Asking
from launcher.notary.warmprocess import WarmProcess
from launcher.policy import Policy
from launcher.powers import Killed, LocalPowers
from launcher.trees import Trees, WalkTrees, children
from tests.attacks.test_t22_taken_over_notary import rules

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


@dataclass(slots=True)
class Halves:
    """Both, and the socket pair between them."""

    policy: Policy
    powers: LocalPowers
    asking: Asking
    ours: Channel
    theirs: Channel
    serving: asyncio.Task[None]

    def kind(self, account: Account) -> Kind:
        return of_run(self.policy, account, "standard")


@pytest.fixture
async def halves(tmp_path: Path) -> AsyncIterator[Halves]:
    before, policy = children(os.getpid()), rules(tmp_path)
    trees: Trees = CgroupTrees.find(Limits()) or WalkTrees()
    powers = LocalPowers(privileged=True, trees=trees, environment=lambda kind: clean_environment(kind, {}))
    monitor = Monitor(policy, powers, privileged=True, owner=None, now=lambda: 1_700_000_000)
    here, there = socket.socketpair()
    theirs, ours = Channel(here, limit=FRAME_BYTES), Channel(there, limit=FRAME_BYTES)
    found = Halves(policy, powers, Asking(ours), ours, theirs, asyncio.create_task(monitor.serve(theirs)))
    yield found
    found.asking._hearing.cancel()
    found.ours.close()
    await asyncio.wait_for(found.serving, 10)
    await powers.close()
    assert children(os.getpid()) == before


async def test_what_is_refused_is_raised_as_what_it_is(halves: Halves) -> None:
    with pytest.raises(PrivilegeError, match="nothing of a DAG runs as root"):
        await halves.asking.account("root", "run")
    with pytest.raises(OutOfScopeError, match="process 1 was not adopted"):
        await halves.asking.kill(1)


async def test_an_account_comes_whole(halves: Halves) -> None:
    nobody = Account(name="nobody", uid=65534, gid=65534, groups=(65534,), home="/nonexistent")
    assert await halves.asking.account("nobody", "run") == nobody


async def test_requests_that_are_under_way_together_get_each_its_answer(halves: Halves) -> None:
    asked = [halves.asking.account("nobody", "run") for _ in range(50)]
    refused = [halves.asking.kill(pid) for pid in range(1000, 1050)]
    answers = await asyncio.gather(*asked, *refused, return_exceptions=True)
    assert {type(answer) for answer in answers[:50]} == {Account}
    assert [str(answer) for answer in answers[50:]] == [f"process {pid} was not adopted" for pid in range(1000, 1050)]


async def test_a_host_that_cannot_is_an_error_of_the_host(halves: Halves, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(_: object, pid: int) -> Killed:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalPowers, "kill", full)
    with pytest.raises(OSError, match="No space left on device"):
        await halves.asking.kill(1)


async def test_a_bug_of_the_monitor_is_raised_here_and_the_others_go_on(
    halves: Halves, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def buggy(_: object, pid: int) -> Killed:
        raise RuntimeError("a killed process tree is still there after 5 s")

    monkeypatch.setattr(LocalPowers, "kill", buggy)
    with pytest.raises(
        RuntimeError, match="in the monitor: RuntimeError: a killed process tree is still there after 5 s"
    ):
        await halves.asking.kill(1)
    assert (await halves.asking.account("nobody", "run")).uid == 65534


async def test_a_start_that_nobody_waits_for_any_more_is_ended(halves: Halves) -> None:
    account = await halves.asking.account("nobody", "run")
    before = children(os.getpid())
    starting = asyncio.create_task(WarmProcess.start(halves.kind(account), halves.asking, timeout_seconds=60))
    while not halves.asking._waiting:
        await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    while halves.asking._abandoned:
        await asyncio.sleep(0.001)
    assert children(os.getpid()) == before and not halves.powers._warm


async def test_a_monitor_that_goes_is_the_end_of_all_that_wait(halves: Halves) -> None:
    gone = asyncio.Event()
    halves.asking.when_gone(gone.set)
    halves.serving.cancel()
    await asyncio.gather(halves.serving, return_exceptions=True)
    asking = asyncio.create_task(halves.asking.kill(1))
    while not halves.asking._waiting:
        await asyncio.sleep(0)
    halves.theirs.close()
    with pytest.raises(EOFError, match="the monitor is gone"):
        await asking
    await asyncio.wait_for(gone.wait(), 10)
    with pytest.raises(EOFError, match="the monitor is gone"):
        await halves.asking.account("nobody", "run")
    halves.serving = asyncio.create_task(asyncio.sleep(0))

"""The notary's end of the monitor's table, with the real monitor at the other: what it raises, and what it leaves when it is
cancelled or the monitor goes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from integrity.errors import OutOfScopeError, PrivilegeError
from launcher.accounts import Account
from launcher.kinds import of_run
from launcher.powers import Killed, LocalPowers
from launcher.trees import children
from notary.asking import Asking
from notary.warmprocess import WarmProcess
from tests.halves import Halves, halves

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


@dataclass(slots=True)
class Asked:
    """The monitor, and the notary's end as the notary has it."""

    halves: Halves
    asking: Asking


@pytest.fixture
async def asked(tmp_path: Path) -> AsyncIterator[Asked]:
    async with halves(tmp_path) as found:
        asking = Asking(found.ours)
        yield Asked(found, asking)
        asking._hearing.cancel()


async def test_what_is_refused_is_raised_as_what_it_is(asked: Asked) -> None:
    with pytest.raises(PrivilegeError, match="nothing of a DAG runs as root"):
        await asked.asking.account("root", "run")
    with pytest.raises(OutOfScopeError, match="process 1 was not adopted"):
        await asked.asking.kill(1)


async def test_an_account_comes_whole(asked: Asked) -> None:
    nobody = Account(name="nobody", uid=65534, gid=65534, groups=(65534,), home="/nonexistent")
    assert await asked.asking.account("nobody", "run") == nobody


async def test_requests_that_are_under_way_together_get_each_its_answer(asked: Asked) -> None:
    accounts = [asked.asking.account("nobody", "run") for _ in range(50)]
    refused = [asked.asking.kill(pid) for pid in range(1000, 1050)]
    answers = await asyncio.gather(*accounts, *refused, return_exceptions=True)
    assert {type(answer) for answer in answers[:50]} == {Account}
    assert [str(answer) for answer in answers[50:]] == [f"process {pid} was not adopted" for pid in range(1000, 1050)]


async def test_a_host_that_cannot_is_an_error_of_the_host(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(_: object, pid: int) -> Killed:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalPowers, "kill", full)
    with pytest.raises(OSError, match="No space left on device"):
        await asked.asking.kill(1)


async def test_a_bug_of_the_monitor_is_raised_here_and_the_others_go_on(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def buggy(_: object, pid: int) -> Killed:
        raise RuntimeError("a killed process tree is still there after 5 s")

    monkeypatch.setattr(LocalPowers, "kill", buggy)
    with pytest.raises(
        RuntimeError, match="in the monitor: RuntimeError: a killed process tree is still there after 5 s"
    ):
        await asked.asking.kill(1)
    assert (await asked.asking.account("nobody", "run")).uid == 65534


async def test_a_start_that_nobody_waits_for_any_more_is_ended(asked: Asked) -> None:
    account = await asked.asking.account("nobody", "run")
    before = children(os.getpid())
    starting = asyncio.create_task(
        WarmProcess.start(of_run(asked.halves.policy, account, "standard"), asked.asking, timeout_seconds=60)
    )
    while not asked.asking._waiting:
        await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    while asked.asking._abandoned:
        await asyncio.sleep(0.001)
    assert children(os.getpid()) == before and not asked.halves.powers._warm


async def test_a_monitor_that_goes_is_the_end_of_all_that_wait(asked: Asked) -> None:
    gone = asyncio.Event()
    asked.asking.when_gone(gone.set)
    asked.halves.serving.cancel()
    await asyncio.gather(asked.halves.serving, return_exceptions=True)
    asking = asyncio.create_task(asked.asking.kill(1))
    while not asked.asking._waiting:
        await asyncio.sleep(0)
    asked.halves.theirs.close()
    with pytest.raises(EOFError, match="the monitor is gone"):
        await asking
    await asyncio.wait_for(gone.wait(), 10)
    with pytest.raises(EOFError, match="the monitor is gone"):
        await asked.asking.account("nobody", "run")
    asked.halves.serving = asyncio.create_task(asyncio.sleep(0))

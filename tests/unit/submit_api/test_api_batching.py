"""Batches: everything once, in order, each with its own outcome; and what happens to whoever goes away.

Seen to fail when weakened: `_work` that gives one outcome to all, or that leaves all waiting when it is cancelled; `add`
that does not take a cancelled one out, or that leaves before its batch has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from submit_api.batching import Batches


class Doing:
    """Holds every batch until told; answers a number by its square, and an odd one by an error."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = asyncio.Semaphore(0)

    async def __call__(self, batch: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(batch))
        await self.go.acquire()
        return [ValueError(str(number)) if number % 2 else number * number for number in batch]


async def turns() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_who_comes_meanwhile_is_done_together() -> None:
    batches, doing = Batches[int, int](most=3), Doing()
    tasks = []
    for number in range(6):
        tasks.append(asyncio.create_task(batches.add(number, doing)))
        await turns()
    for _ in range(3):
        doing.go.release()
        await turns()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert doing.batches == [[0], [1, 2, 3], [4, 5]]
    assert [outcome if isinstance(outcome, int) else str(outcome) for outcome in outcomes] == [0, "1", 4, "3", 16, "5"]
    doing.go.release()
    assert await batches.add(8, doing) == 64


async def test_an_error_that_is_no_outcome_is_everybodys() -> None:
    async def failing(batch: Sequence[int]) -> list[int | Exception]:
        raise OSError("disk")

    batches = Batches[int, int](most=9)
    outcomes = await asyncio.gather(*(batches.add(number, failing) for number in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [OSError] * 3


async def test_who_goes_before_its_batch_is_not_in_it() -> None:
    batches, doing = Batches[int, int](most=9), Doing()
    first, second, third = (asyncio.create_task(batches.add(number, doing)) for number in (2, 4, 6))
    await turns()
    late = asyncio.create_task(batches.add(8, doing))
    await turns()
    assert doing.batches == [[2, 4, 6]]
    late.cancel()
    await turns()
    assert late.cancelled()
    doing.go.release()
    assert [await first, await second, await third] == [4, 16, 36]
    assert doing.batches == [[2, 4, 6]]


async def test_who_goes_later_waits_for_its_batch() -> None:
    batches, doing = Batches[int, int](most=9), Doing()
    tasks = [asyncio.create_task(batches.add(number, doing)) for number in (3, 4)]
    await turns()
    tasks[0].cancel()
    await turns()
    assert not tasks[0].done()
    doing.go.release()
    assert await tasks[1] == 16
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]


async def test_nobody_waits_for_ever_when_the_loop_is_closed() -> None:
    """As `asyncio.run` ends: everything is cancelled, and waited for."""
    batches, doing = Batches[int, int](most=2), Doing()
    tasks = [asyncio.create_task(batches.add(number, doing)) for number in (2, 4, 6)]
    await turns()
    assert doing.batches == [[2, 4]] and batches._task is not None
    for task in (*tasks, batches._task):
        task.cancel()
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(*tasks, batches._task, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 4

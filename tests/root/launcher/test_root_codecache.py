"""The launcher's side of kept code, with real warm processes: made once, by a fork of one, for forks of the same."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from test_root_pool import Pool, kind, left

from integrity.digests import Digest
from launcher.cgroups import CgroupTrees, Limits
from launcher.trees import Trees, WalkTrees
from notary import codecache
from notary.sealed import VerifiedCode, verify_and_seal
from notary.taskprocess import TaskProcess
from vocabulary.grants import Secrets

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

SOURCE = b"""
from airflow.sdk import DAG, task
with DAG("d", schedule=None):
    @task
    def quick():
        pass
    quick()
"""
LONG = (
    SOURCE + b"def more(x):\n    return [x + 1, x * 2, (x, x)]\n" * 4000
)  # it takes the compiler some tenths of a second
NEVER_COMPILED = SOURCE + b"VALUE = (" + b"-" * 60_000 + b"1)\n"


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    trees: Trees = CgroupTrees.find(Limits()) or WalkTrees()
    pool = Pool(trees)
    before = left()
    yield pool
    await pool.end()
    after = left()
    trees.close()
    assert after[0] == before[0] and after[1] == before[1]


def job_of(kind: str, source: bytes) -> dict[str, Any]:
    return {"job": kind, "name": "d.py", "digest": str(Digest.of(source)), "members": None}


def sealed(source: bytes) -> VerifiedCode:
    fd = os.memfd_create("etl")
    os.write(fd, source)
    try:
        return verify_and_seal(fd, Digest.of(source), max_bytes=1 << 20)
    finally:
        os.close(fd)


async def fill(pool: Pool, task: TaskProcess, source: bytes) -> None:
    with sealed(source) as code:
        job = job_of("compile", source)
        await task.warm.codes.fill(pool.warm, task.warm.kind, job, Digest.of(source), code.fd)


async def spent(task: TaskProcess, source: bytes) -> dict[str, int]:
    """Run the archive's task with what its warm process has kept; how long it compiled and unmarshalled."""
    more = {"dag_id": "d", "task_id": "quick", "run_id": "r", "map_index": -1, "try_number": 1, "queue": "default"}
    job = job_of("run", source) | more | {"unix_user": "nobody", "supervised": False}
    with sealed(source) as code, task.warm.codes.lend(Digest.of(source)) as kept:
        await task.ask(job, code.fd, *kept)
    await task.answer("ready")
    await task.give_secrets(Secrets(connections={}, variables={}, xcoms=(), run={}).to_bytes())
    fields = (await task.answer("finished")).fields
    assert fields.text("state", max_chars=50) == "success"
    timings = fields.take("timings_us")
    assert isinstance(timings, dict)
    return {name: timings[name] for name in ("compile", "unmarshal")}


async def test_it_is_made_once_and_the_next_task_has_it(pool: Pool) -> None:
    first = await pool.take()
    assert (await spent(first, SOURCE))["unmarshal"] == 0
    forks = len(await pool.spares())
    await fill(pool, first, SOURCE)
    later = await pool.take()
    assert later.warm is first.warm
    assert (await spent(later, SOURCE))["compile"] == 0
    assert forks == 2 and len(first.warm.codes._kept) == 1
    with first.warm.codes.lend(Digest.of(SOURCE)) as (fd,):
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)  # by root; a task has no more than a copy of the bytes
        try:
            for change in (lambda: os.pwrite(again, b"x", 0), lambda: os.ftruncate(again, 0)):
                with pytest.raises(PermissionError):
                    change()
        finally:
            os.close(again)


async def test_launches_that_end_together_have_it_made_once(pool: Pool) -> None:
    task = await pool.take()
    await pool.spares()
    before = task.warm.forks
    await asyncio.gather(*(fill(pool, task, SOURCE) for _ in range(3)))
    await pool.spares()
    assert task.warm.forks == before + 1, "the spare that it took is replaced"
    assert (await spent(task, SOURCE))["compile"] == 0


async def test_of_another_warm_process_nobody_has_it(pool: Pool) -> None:
    """Another profile of the same user, and the successor after it was retired: each begins with nothing."""
    first, other = await pool.take("standard"), await pool.take("minimal")
    await fill(pool, first, SOURCE)
    assert (await spent(other, SOURCE))["compile"] > 0
    assert first.warm.codes._kept and not other.warm.codes._kept
    pool.stamp = 2
    fresh = await pool.take("standard")
    assert fresh.warm is not first.warm
    assert (await spent(fresh, SOURCE))["compile"] > 0


async def test_a_process_that_says_anything_else_leaves_nothing(pool: Pool) -> None:
    task = await pool.take()
    with sealed(SOURCE) as code:
        other = job_of("compile", SOURCE) | {"digest": str(Digest.of(b"another"))}  # it will refuse
        await task.warm.codes.fill(pool.warm, kind(), other, Digest.of(SOURCE), code.fd)
    assert task.warm.codes._kept == {Digest.of(SOURCE): (-1, 0)}
    assert (await spent(task, SOURCE))["compile"] > 0


async def test_one_that_takes_too_long_is_killed_and_not_tried_again(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codecache, "_FILL_SECONDS", 0.0)
    task = await pool.take()
    await fill(pool, task, LONG)
    assert task.warm.codes._kept == {Digest.of(LONG): (-1, 0)}
    assert (await spent(task, LONG))["compile"] > 0
    assert len(await pool.spares()) == 2


async def test_what_is_over_the_limit_is_not_kept(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecache, "MAX_ENTRY_BYTES", 100)
    task = await pool.take()
    await fill(pool, task, SOURCE)
    assert task.warm.codes._kept == {Digest.of(SOURCE): (-1, 0)}


async def test_a_source_that_does_not_compile_is_no_failure(pool: Pool) -> None:
    task = await pool.take()
    await fill(pool, task, NEVER_COMPILED)
    with task.warm.codes.lend(Digest.of(NEVER_COMPILED)) as (fd,):
        assert os.fstat(fd).st_size < 100
    with sealed(NEVER_COMPILED) as code, task.warm.codes.lend(Digest.of(NEVER_COMPILED)) as kept:
        job = job_of("run", NEVER_COMPILED) | {"dag_id": "d", "task_id": "quick", "run_id": "r", "map_index": -1}
        more = {"try_number": 1, "queue": "default", "unix_user": "nobody", "supervised": False}
        await task.ask(job | more, code.fd, *kept)
    refused = (await task.answer("refused")).fields
    assert refused.text("rule", max_chars=100) == "source-too-complex"

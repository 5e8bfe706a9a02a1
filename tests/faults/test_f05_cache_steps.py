"""Each step of the cache's on the disk fails once: at its first, second, … use, until it is not reached any more.

Whatever fails, nothing wrong is named, no descriptor is left open and no unfinished file is left but a part that can be gone on
with; who asked is told `FetchError`; and afterwards everything works again. The network's ways to fail are in
`tests/attacks/test_t27_lying_mirror.py` and `tests/integration/worker_cache/`.
"""

from __future__ import annotations

import errno
import os
import random
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from integrity.digests import Digest
from integrity.errors import DigestMismatchError, FetchError
from tests import blob_server
from tests.blob_server import Blobs
from tests.cache_rig import Rig, rig
from worker_cache.limits import Limits

KIB = 1024
LARGE = [random.Random(i).randbytes(300 * KIB) for i in range(3)]
SMALL = [random.Random(i).randbytes(5 * KIB) for i in range(10, 16)]
STEPS = (
    "open",
    "write",
    "rename",
    "mkdir",
    "ftruncate",
    "lseek",
    "pread",
    "fstat",
    "stat",
    "unlink",
    "utime",
    "scandir",
)
MET = {
    *(("fetch", step) for step in ("open", "write", "rename", "mkdir", "pread", "fstat", "scandir")),
    *(("fetch again", step) for step in ("open", "write", "rename", "lseek", "pread", "unlink")),
    *(("ahead", step) for step in ("open", "write", "rename")),
    *(("use", step) for step in ("open", "pread", "fstat", "utime")),
    *(("scrub", step) for step in ("open", "pread", "fstat")),
}
_OURS = ("worker_cache.", "vocabulary.durable")


@contextmanager
def failing(step: str, at: int, code: int) -> Iterator[list[int]]:
    """The call number `at` of this function of os fails, where our code on the cache's files makes it."""
    genuine, count = getattr(os, step), [0]

    def call(*arguments: Any, **named: Any) -> Any:
        if sys._getframe(1).f_globals["__name__"].startswith(_OURS):
            count[0] += 1
            if count[0] == at:
                raise OSError(code, os.strerror(code))
        return genuine(*arguments, **named)

    setattr(os, step, call)
    try:
        yield count
    finally:
        setattr(os, step, genuine)


async def fetch(its: Rig) -> None:
    await its.read(LARGE[0])


async def fetch_again(its: Rig) -> None:
    """Goes on with a part, and evicts."""
    await its.read(LARGE[1])


async def ahead(its: Rig) -> None:
    refused = await its.cache.prefetch([(Digest.of(body), len(body)) for body in SMALL])
    for error in refused.values():
        raise error


async def use(its: Rig) -> None:
    await its.read(LARGE[2])


async def scrub(its: Rig) -> None:
    await its.cache.scrubber.round()


STORIES: dict[str, Callable[[Rig], Awaitable[None]]] = {
    "fetch": fetch,
    "fetch again": fetch_again,
    "ahead": ahead,
    "use": use,
    "scrub": scrub,
}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("story", STORIES)
async def test_f05_a_step_fails(tmp_path: Path, story: str, step: str, code: int) -> None:
    reached = 0
    blobs = Blobs(*LARGE, *SMALL)
    async with blob_server.running(blobs) as server:
        for at in range(1, 40):
            folder = tmp_path / str(at)
            limits = Limits(max_cache_bytes=700 * KIB, scrub_bytes_per_second=10**9)
            async with rig(folder, server.url, limits=limits) as its:
                if story != "fetch":
                    await its.read(LARGE[2])
                    os.utime(its.path(Digest.of(LARGE[2])), (1, 1))
                if story == "fetch again":
                    await its.read(LARGE[0])
                    server.script = lambda asked: (
                        [blob_server.sized(LARGE[1][: 200 * KIB], of=len(LARGE[1]))] if not asked.start else []
                    )
                    with pytest.raises(FetchError):
                        await its.read(LARGE[1])
                    server.script = blobs
                if story == "scrub":
                    next(iter(its.cache._record.entries.values())).verified_at = 0.0
                with failing(step, at, code) as count:
                    try:
                        await STORIES[story](its)
                    except (FetchError, DigestMismatchError) as error:
                        assert isinstance(error, FetchError) or code == errno.EIO
                assert [name for name in its.incoming if not name.endswith(".part")] == [], (
                    "an unfinished file was left"
                )
                for name in its.named:
                    body = (its.folder / "sha512" / name[:2] / name).read_bytes()
                    assert Digest.of(body).hex == name, "something wrong was named"
                for body in (*SMALL, LARGE[0]):
                    await its.read(body)
            if count[0] < at:
                break
            reached = at
        else:
            raise AssertionError("the step was reached without end")
    assert reached or (story, step) not in MET


@pytest.mark.parametrize("least", [1, 3, 1000])
async def test_f05_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int) -> None:
    genuine, rng = os.write, random.Random(least)
    monkeypatch.setattr(os, "write", lambda fd, data: genuine(fd, memoryview(data)[: rng.randint(least, least * 100)]))
    async with blob_server.running(Blobs(*LARGE, *SMALL)) as server, rig(tmp_path, server.url) as its:
        await its.read(LARGE[0][: len(LARGE[0])])
        assert await its.cache.prefetch([(Digest.of(body), len(body)) for body in SMALL]) == {}
        for body in SMALL:
            await its.read(body)

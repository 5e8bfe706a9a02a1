"""What the cache keeps and what it lets go: quota, pins, what is wanted; scrubbing, damage, repair; a mirror for others.

Seen to fail when weakened: `victims` that takes the pinned, the wanted or what is under way, or the last used first; `reserve`
that does not count what is under way; `set_aside` that does not look whose file it moves; a scrubber that does not compare;
`serving` that hashes nothing.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import pytest

from integrity.digests import Digest
from integrity.errors import DigestMismatchError, FetchError, NotFoundError
from tests import blob_server
from tests.blob_server import Blobs, Hold
from tests.cache_rig import Rig, rig
from worker_cache import scrubbing
from worker_cache.limits import Limits
from worker_cache.serving import serving

KIB = 1024
BODIES = [random.Random(i).randbytes(100 * KIB) for i in range(12)]
DIGESTS = [Digest.of(body) for body in BODIES]
QUOTA = Limits(max_cache_bytes=500 * KIB)


def held(its: Rig) -> set[int]:
    """Which of the bodies, on disk; the record says the same."""
    on_disk = {DIGESTS.index(Digest(name)) for name in its.named}
    assert {DIGESTS.index(digest) for digest in its.cache.holdings().digests} == on_disk
    assert sum(len(BODIES[i]) for i in on_disk) <= 500 * KIB
    return on_disk


async def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    async with blob_server.running(Blobs(*BODIES)) as server, rig(tmp_path, server.url, limits=QUOTA) as its:
        for body in BODIES[:5]:
            await its.read(body)
        await its.read(BODIES[0])
        await its.read(BODIES[5])
        assert held(its) == {0, 2, 3, 4, 5}


async def test_the_order_of_use_outlives_the_agent(tmp_path: Path) -> None:
    async with blob_server.running(Blobs(*BODIES)) as server:
        async with rig(tmp_path, server.url, limits=QUOTA) as its:
            for i in (3, 1, 4, 0, 2):
                await its.read(BODIES[i])
                os.utime(its.path(DIGESTS[i]), (1e9 + i, 1e9 + i))
        async with rig(tmp_path, server.url, limits=QUOTA) as its:
            await its.read(BODIES[1])
        async with rig(tmp_path, server.url, limits=QUOTA) as its:
            await its.read(BODIES[5])
            await its.read(BODIES[6])
            assert held(its) == {1, 3, 4, 5, 6}


async def test_what_is_pinned_stays_and_what_is_wanted_goes_last(tmp_path: Path) -> None:
    async with blob_server.running(Blobs(*BODIES)) as server, rig(tmp_path, server.url, limits=QUOTA) as its:
        for body in BODIES[:5]:
            await its.read(body)
        its.cache.want(dict.fromkeys(DIGESTS[1:3], 100 * KIB))
        with its.cache.pin(DIGESTS[0]), its.cache.pin(DIGESTS[0]):
            await its.read(BODIES[5])
            await its.read(BODIES[6])
            assert held(its) == {0, 1, 2, 5, 6}
            with its.cache.pin(DIGESTS[5]), its.cache.pin(DIGESTS[6]):
                await its.read(BODIES[7])
                assert held(its) == {0, 2, 5, 6, 7}
                with (
                    its.cache.pin(DIGESTS[7]),
                    its.cache.pin(DIGESTS[2]),
                    pytest.raises(FetchError, match="max_cache_mib"),
                ):
                    await its.read(BODIES[8])
                refused = await its.cache.prefetch([(DIGESTS[9], len(BODIES[9])), (DIGESTS[10], len(BODIES[10]))])
                assert len(refused) == 1, "the wanted one stayed, the other one went"
                assert 2 in held(its)
        await its.read(BODIES[8])
        assert its.incoming == []


async def test_no_two_fetches_are_given_the_same_room(tmp_path: Path) -> None:
    hold, blobs = Hold(), Blobs(*BODIES)

    def script(asked: Any) -> Any:
        return [hold, *blobs(asked)]

    async with blob_server.running(script) as server, rig(tmp_path, server.url, limits=QUOTA) as its:
        opening = [asyncio.create_task(its.read(body)) for body in BODIES]
        await blob_server.until(lambda: len(server.asked) >= 5)
        hold.go.set()
        ended = await asyncio.gather(*opening, return_exceptions=True)
        assert [type(one) for one in ended if one is not None] == [FetchError] * 7
        assert len(held(its)) == 5
        for body in BODIES:
            await its.read(body)
            held(its)


async def test_what_is_kept_of_cut_fetches_counts_and_goes_first(tmp_path: Path) -> None:
    data = random.Random(99).randbytes(400 * KIB)
    async with blob_server.running(Blobs(data, *BODIES)) as server, rig(tmp_path, server.url, limits=QUOTA) as its:
        await its.read(BODIES[0])
        server.script = lambda asked: [blob_server.sized(data[: 390 * KIB], of=len(data))] if not asked.start else []
        with pytest.raises(FetchError):
            await its.cache.open(Digest.of(data), size=len(data))
        assert len(its.incoming) == 1
        server.script = Blobs(*BODIES)
        for body in BODIES[1:5]:
            await its.read(body)
        assert its.incoming == [] and held(its) == {0, 1, 2, 3, 4}


async def test_a_descriptor_outlives_its_entry(tmp_path: Path) -> None:
    async with blob_server.running(Blobs(*BODIES)) as server, rig(tmp_path, server.url, limits=QUOTA) as its:
        fd = await its.cache.open(DIGESTS[0], size=len(BODIES[0]))
        for body in BODIES[1:7]:
            await its.read(body)
        assert 0 not in held(its)
        assert os.pread(fd, len(BODIES[0]) + 1, 0) == BODIES[0]
        os.close(fd)


# Damage.


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


class Time:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += seconds
        await asyncio.sleep(0)


async def test_scrubbing_finds_tells_puts_aside_and_fetches_what_is_wanted(tmp_path: Path) -> None:
    time = Time()
    async with (
        blob_server.running(Blobs(*BODIES)) as server,
        rig(tmp_path, server.url, limits=Limits(scrub_bytes_per_second=100 * KIB), clock=time, sleep=time.sleep) as its,
    ):
        for body in BODIES[:4]:
            await its.read(body)
        its.cache.want({DIGESTS[1]: 100 * KIB, DIGESTS[3]: 100 * KIB})
        for i in (0, 1):
            flip(its.path(DIGESTS[i]), 50_000 + i)
        assert await its.cache.scrubber.round() > 0 and its.damage == [], "nothing is due yet"
        time.at += scrubbing.EVERY_SECONDS
        started = time.at
        await its.cache.scrubber.round()
        assert its.damage == [DIGESTS[0], DIGESTS[1]]
        assert 2.9 <= time.at - started <= 3.1  # four of 100 KiB, the first within the bucket
        await blob_server.until(lambda: DIGESTS[1] in its.cache.holdings().digests)
        holdings = its.cache.holdings()
        assert holdings.damaged == {DIGESTS[0]}
        assert set(holdings.digests) == set(DIGESTS[1:4])
        assert len(os.listdir(its.folder / "quarantine")) == 2
        await its.read(BODIES[0])
        assert its.cache.holdings().damaged == frozenset()
        asked = len(server.asked)
        for body in BODIES[:4]:
            await its.read(body)
        assert len(server.asked) == asked and len(its.damage) == 2


async def test_a_scrubbed_entry_that_was_replaced_meanwhile_stays(tmp_path: Path) -> None:
    async with blob_server.running(Blobs(*BODIES)) as server, rig(tmp_path, server.url) as its:
        await its.read(BODIES[0])
        flip(its.path(DIGESTS[0]), 0)
        fd = its.store.open_unverified(DIGESTS[0])
        with pytest.raises(DigestMismatchError):
            await its.read(BODIES[0])
        await its.read(BODIES[0])
        its.store.set_aside(DIGESTS[0], fd, "is the one of before")
        os.close(fd)
        assert its.named == {DIGESTS[0].hex}
        os.close(its.store.open_verified(DIGESTS[0]))


async def test_the_background_reads_what_was_there_and_scrubs_it(tmp_path: Path) -> None:
    async with blob_server.running(Blobs(*BODIES)) as server:
        async with rig(tmp_path, server.url) as its:
            for body in BODIES:
                await its.read(body)
        flip(its.path(DIGESTS[7]), 1)
        time = Time()
        limits = Limits(scrub_bytes_per_second=10**9)
        async with rig(tmp_path, server.url, limits=limits, clock=time, sleep=time.sleep) as its:
            assert its.cache.holdings().digests == ()
            its.cache.start()
            await blob_server.until(lambda: its.damage == [DIGESTS[7]])
            await blob_server.until(lambda: len(its.cache.holdings().digests) == 11)


async def test_many_who_open_a_damaged_entry_are_told_and_it_is_told_once(tmp_path: Path) -> None:
    async with blob_server.running(Blobs(*BODIES)) as server, rig(tmp_path, server.url) as its:
        await its.read(BODIES[0])
        flip(its.path(DIGESTS[0]), 9)
        opening = [asyncio.create_task(its.cache.open(DIGESTS[0], size=len(BODIES[0]))) for _ in range(8)]
        ended = await asyncio.gather(*opening, return_exceptions=True)
        for one in ended:
            if isinstance(one, int):
                os.close(one)
            else:
                assert isinstance(one, DigestMismatchError)
        assert any(isinstance(one, DigestMismatchError) for one in ended)
        assert its.damage == [DIGESTS[0]]
        assert len(os.listdir(its.folder / "quarantine")) == 1


async def test_what_the_host_lost_when_it_went_down_is_fetched_again_at_once(tmp_path: Path) -> None:
    """An entry that nobody changed since the host was started, and is short: a launch is not refused for it, but it is told."""
    async with blob_server.running(Blobs(*BODIES)) as server:
        async with rig(tmp_path, server.url) as its:
            await its.read(BODIES[0])
            await its.read(BODIES[1])
        os.truncate(its.path(DIGESTS[0]), 0)
        later = its.path(DIGESTS[0]).stat().st_ctime + 1
        async with rig(tmp_path, server.url, booted_at=later) as its:
            await its.read(BODIES[0])
            assert (its.damage, len(server.asked)) == ([DIGESTS[0]], 3)
            assert os.listdir(its.folder / "quarantine") == [f"sha512_{DIGESTS[0].hex[:2]}_{DIGESTS[0].hex}"]
            assert its.cache.holdings().damaged == frozenset()


async def test_and_what_was_changed_since_is_damage(tmp_path: Path) -> None:
    async with blob_server.running(Blobs(*BODIES)) as server:
        async with rig(tmp_path, server.url) as its:
            await its.read(BODIES[0])
        before = its.path(DIGESTS[0]).stat().st_ctime
        async with rig(tmp_path, server.url, booted_at=before) as its:
            flip(its.path(DIGESTS[0]), 0)
            with pytest.raises(DigestMismatchError):
                await its.read(BODIES[0])


# A mirror for others.


async def test_an_agent_serves_what_it_has_verified_and_nothing_else(tmp_path: Path) -> None:
    async with (
        blob_server.running(Blobs(*BODIES)) as server,
        rig(tmp_path / "one", server.url) as one,
        serving(one.cache, "127.0.0.1", 0) as port,
    ):
        await one.read(BODIES[0])
        await one.read(BODIES[1])
        flip(one.path(DIGESTS[1]), 5)
        url = f"http://127.0.0.1:{port}"
        async with rig(tmp_path / "two", url) as none, rig(tmp_path / "three", server.url, mirrors=(url,)) as two:
            with pytest.raises(NotFoundError):  # no API's layout
                await none.read(BODIES[0])
            asked = len(server.asked)
            await two.read(BODIES[0])
            assert len(server.asked) == asked, "it came from the other agent"
            await two.read(BODIES[1])  # damaged there: put aside, and had from the API
            await two.read(BODIES[2])  # not there: no fetch is caused
            assert len(server.asked) == asked + 2
            assert one.damage == [DIGESTS[1]] and one.named == {DIGESTS[0].hex}


async def test_how_an_agent_answers(tmp_path: Path) -> None:
    import aiohttp

    digest, data = DIGESTS[0], BODIES[0]
    async with (
        blob_server.running(Blobs(*BODIES)) as server,
        rig(tmp_path, server.url) as its,
        serving(its.cache, "127.0.0.1", 0) as port,
        aiohttp.ClientSession() as session,
    ):
        await its.read(data)

        async def ask(path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, str | None]:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            async with session.request(method, f"http://127.0.0.1:{port}{path}", headers=sent) as answer:
                return answer.status, await answer.read(), answer.headers.get("Content-Range")

        path = f"/sha512/{digest.hex[:2]}/{digest.hex}"
        assert await ask(path) == (200, data, None)
        assert await ask(path, Range="bytes=1000-") == (206, data[1000:], f"bytes 1000-{len(data) - 1}/{len(data)}")
        assert await ask(path, Range="bytes=0-5") == (200, data, None)
        assert (await ask(path, Range=f"bytes={len(data)}-"))[0] == 416
        assert (await ask(path, If_None_Match=f'"{digest}"'))[0] == 304
        wrong = f"{(int(digest.hex[:2], 16) ^ 1):02x}"
        for other in (
            "/",
            "/sha512/",
            f"/sha512/{wrong}/{digest.hex}",
            f"{path}/",
            "/../lock",
            "/incoming/",
            path.upper(),
        ):
            assert (await ask(other))[0] == 404, other
        for method in ("PUT", "POST", "DELETE"):
            assert (await ask(path, method))[0] == 405

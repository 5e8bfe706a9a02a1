"""Fetching ahead: many in one answer, bounded, never in a launch's way; and what the agent's limits are.

Seen to fail when weakened: `let_pass` that returns at once; `_batches` without one of its bounds; a semaphore of a hundred;
`Bandwidth.take` that does not wait.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from integrity.digests import Digest
from integrity.errors import FetchError, MalformedError, NotFoundError, SecurityError
from tests import blob_server
from tests.blob_server import Asked, Blobs, Hold, sized, status
from tests.cache_rig import MIB, rig
from vocabulary import blobframes
from worker_cache import batch
from worker_cache.limits import Limits

BODIES = [random.Random(i).randbytes(500 + i) for i in range(600)]
LARGE = [random.Random(1000 + i).randbytes(batch.BLOB_BYTES + 1 + i) for i in range(4)]


def wanted(bodies: Iterable[bytes]) -> list[tuple[Digest, int]]:
    return [(Digest.of(body), len(body)) for body in bodies]


async def test_small_ones_come_together_and_large_ones_alone(tmp_path: Path) -> None:
    async with blob_server.running(Blobs(*BODIES, *LARGE)) as server, rig(tmp_path, server.url) as its:
        assert await its.cache.prefetch(wanted([*BODIES, *LARGE])) == {}
        batches = [asked for asked in server.asked if asked.path == "/v1/blobs/batch"]
        assert sorted(len(asked.digests) for asked in batches) == [600 - 2 * blobframes.MAX_DIGESTS, 256, 256]
        assert len(server.asked) == len(batches) + len(LARGE)
        before = len(server.asked)
        for body in (BODIES[0], BODIES[599], LARGE[3]):
            await its.read(body)
        assert await its.cache.prefetch(wanted([*BODIES, *LARGE])) == {}
        assert len(server.asked) == before
        assert its.cache.holdings().digests == tuple(sorted((d for d, _ in wanted([*BODIES, *LARGE])), key=str))


async def test_what_is_offered_is_taken_when_it_is_wanted_and_right(tmp_path: Path) -> None:
    good, large, wrong, short, unwanted = BODIES[0], LARGE[0], BODIES[1], BODIES[2], BODIES[3]
    async with blob_server.running(Blobs(*BODIES, *LARGE)) as server, rig(tmp_path, server.url) as its:
        its.cache.offer(
            [
                (Digest.of(good), good),
                (Digest.of(large), large),
                (Digest.of(wrong), wrong[:-1] + b"!"),
                (Digest.of(short), short + b"!"),
                (Digest.of(unwanted), unwanted),
            ]
        )
        assert server.asked == [] and its.named == set(), "an offer alone is nothing"
        assert await its.cache.prefetch(wanted([good, large, wrong, short])) == {}
        (batch_asked,) = server.asked
        assert set(batch_asked.digests) == {Digest.of(wrong), Digest.of(short)}
        assert its.named == {Digest.of(body).hex for body in (good, large, wrong, short)}
        assert its.cache.held(digest for digest, _ in wanted([good, large])) == {Digest.of(good), Digest.of(large)}
        for body in (good, large, wrong, short):
            await its.read(body)
        assert its.incoming == [] and its.damage == []
        assert await its.cache.prefetch(wanted([unwanted])) == {}
        assert len(server.asked) == 2, "an offer is good for one turn"
        its.cache.offer([(Digest.of(BODIES[4]), BODIES[4])])
        refused = await its.cache.prefetch([(Digest.of(BODIES[4]), len(BODIES[4]) - 1)])
        assert [type(error) for error in refused.values()] == [MalformedError], "not of the length that is signed for"


async def test_an_offer_has_no_room_that_others_have_not(tmp_path: Path) -> None:
    small = Limits(max_cache_bytes=1000)
    async with blob_server.running(Blobs(*BODIES)) as server, rig(tmp_path, server.url, limits=small) as its:
        its.cache.want(dict(wanted(BODIES[:2])))
        its.cache.offer([(Digest.of(body), body) for body in BODIES[:2]])
        refused = await its.cache.prefetch(wanted(BODIES[:2]))
        assert [type(error) for error in refused.values()] == [FetchError]
        assert its.named == {Digest.of(BODIES[0]).hex} and server.asked == []


async def test_a_batch_is_bounded_in_bytes_and_few_are_on_their_way(tmp_path: Path) -> None:
    bodies = [random.Random(i).randbytes(batch.BLOB_BYTES - i) for i in range(100)]
    blobs, now, most = Blobs(*bodies), 0, 0
    holds: list[Hold] = []

    def script(asked: Asked) -> Iterable[Any]:
        nonlocal now, most
        assert sum(len(blobs.held[digest.hex]) for digest in asked.digests) <= batch.BATCH_BYTES
        now += 1
        most = max(most, now)
        holds.append(Hold())
        yield holds[-1]
        yield from blobs(asked)
        now -= 1

    async with blob_server.running(script) as server, rig(tmp_path, server.url) as its:
        fetching = asyncio.create_task(its.cache.prefetch(wanted(bodies)))
        while not fetching.done():
            await blob_server.until(
                lambda: fetching.done() or any(h.reached.is_set() and not h.go.is_set() for h in holds)
            )
            for hold in holds:
                hold.go.set()
        assert await fetching == {}
        assert most <= 2 and len(server.asked) >= 4


async def test_a_launch_passes_what_is_fetched_ahead(tmp_path: Path) -> None:
    """The batch has come half way; a launch waits for a blob that is slow: nothing of the batch is taken before it has come."""
    half, slow = Hold(), Hold()
    blobs, launch = Blobs(*BODIES, LARGE[0]), LARGE[0]

    def script(asked: Asked) -> Iterable[Any]:
        (whole,) = blobs(asked)
        if asked.path == "/v1/blobs/batch":
            return [whole[: len(whole) // 2], half, whole[len(whole) // 2 :]]
        return [slow, whole]

    async with blob_server.running(script) as server, rig(tmp_path, server.url) as its:
        ahead = asyncio.create_task(its.cache.prefetch(wanted(BODIES[:100])))
        await asyncio.wait_for(half.reached.wait(), 20)
        await blob_server.until(lambda: len(its.named) >= 10)
        opening = asyncio.create_task(its.read(launch))
        await asyncio.wait_for(slow.reached.wait(), 20)
        half.go.set()
        for _ in range(200):  # the other half is there, and stays where it is
            await asyncio.sleep(0)
        assert len(its.named) < 100 and not ahead.done()
        slow.go.set()
        await opening
        assert await ahead == {}
        assert len(its.named) == 101


async def test_a_launch_takes_what_is_in_a_batch_by_itself(tmp_path: Path) -> None:
    hold, blobs = Hold(), Blobs(*BODIES)

    def script(asked: Asked) -> Iterable[Any]:
        return [hold, *blobs(asked)] if asked.path == "/v1/blobs/batch" else blobs(asked)

    async with blob_server.running(script) as server, rig(tmp_path, server.url) as its:
        ahead = asyncio.create_task(its.cache.prefetch(wanted(BODIES[:3])))
        await asyncio.wait_for(hold.reached.wait(), 20)
        await its.read(BODIES[1])
        hold.go.set()
        assert await ahead == {} and len(its.named) == 3


async def test_one_that_is_fetched_ahead_alone_is_joined_and_hurries(tmp_path: Path) -> None:
    hold, blobs = Hold(), Blobs(*LARGE)

    def script(asked: Asked) -> Iterable[Any]:
        (whole,) = blobs(asked)
        return [whole[: len(whole) // 2], hold, whole[len(whole) // 2 :]]

    async with blob_server.running(script) as server, rig(tmp_path, server.url) as its:
        ahead = asyncio.create_task(its.cache.prefetch(wanted(LARGE[:1])))
        await asyncio.wait_for(hold.reached.wait(), 20)
        opening = asyncio.create_task(its.read(LARGE[0]))
        for _ in range(20):
            await asyncio.sleep(0)
        hold.go.set()
        await opening
        assert await ahead == {} and len(server.asked) == 1


async def test_one_that_is_named_while_it_is_looked_for_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose thread found nothing, and says so when the fetch is over."""
    hold, blobs, looked, over = Hold(), Blobs(*LARGE), threading.Event(), threading.Event()

    def script(asked: Asked) -> Iterable[Any]:
        (whole,) = blobs(asked)
        return [whole[: len(whole) // 2], hold, whole[len(whole) // 2 :]]

    async with blob_server.running(script) as server, rig(tmp_path, server.url) as its:
        look = its.store.open_verified

        def late(digest: Digest) -> int:
            try:
                return look(digest)
            except NotFoundError:
                looked.set()
                assert over.wait(20)
                raise

        monkeypatch.setattr(its.store, "open_verified", late)
        ahead = asyncio.create_task(its.cache.prefetch(wanted(LARGE[:1])))
        await asyncio.wait_for(hold.reached.wait(), 20)
        opening = asyncio.create_task(its.read(LARGE[0]))
        assert await asyncio.to_thread(looked.wait, 20)
        hold.go.set()
        assert await ahead == {}
        over.set()
        await opening
        assert len(server.asked) == 1 and its.cache.held([Digest.of(LARGE[0])])


@pytest.mark.parametrize(
    "answer",
    [
        status("500 No", "Content-Length: 0"),
        status("404 No", "Content-Length: 0"),
        status("302 Found", "Location: /x", "Content-Length: 0"),
        sized(b""),
        b"",
    ],
)
async def test_a_batch_that_fails_is_said_of_each_and_kept_from_none(tmp_path: Path, answer: bytes) -> None:
    async with blob_server.running(lambda asked: [answer]) as server, rig(tmp_path, server.url) as its:
        refused = await its.cache.prefetch(wanted(BODIES[:5]))
        assert refused.keys() == {digest for digest, _ in wanted(BODIES[:5])}
        assert its.named == set() and its.incoming == []
        server.script = Blobs(*BODIES)
        await its.read(BODIES[0])


async def test_what_is_too_large_or_not_there_is_said(tmp_path: Path) -> None:
    async with (
        blob_server.running(Blobs(*BODIES[:3])) as server,
        rig(tmp_path, server.url, max_blob_bytes=MIB) as its,
    ):
        huge = Digest.of(b"huge")
        refused = await its.cache.prefetch([*wanted(BODIES[:4]), (huge, MIB + 1)])
        assert {digest: type(error) for digest, error in refused.items()} == {
            Digest.of(BODIES[3]): NotFoundError,
            huge: SecurityError,
        }
        assert len(its.named) == 3


class Slow:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += seconds
        await asyncio.sleep(0)


async def test_no_more_than_so_many_bytes_a_second(tmp_path: Path) -> None:
    data, slow = random.Random(7).randbytes(3 * MIB), Slow()
    limits = Limits(max_fetch_bytes_per_second=MIB // 2)
    async with (
        blob_server.running(Blobs(data, *BODIES)) as server,
        rig(tmp_path, server.url, limits=limits, clock=slow, sleep=slow.sleep) as its,
    ):
        await its.read(data)
        assert 4.9 <= slow.at <= 5.1  # of six seconds the first is held already
        started = slow.at
        assert await its.cache.prefetch(wanted(BODIES)) == {}
        size = sum(map(len, BODIES))
        assert slow.at - started >= size / (MIB // 2) - 0.01


async def test_one_that_drips_is_left(tmp_path: Path) -> None:
    data, hold = LARGE[0], Hold()
    async with (
        blob_server.running(lambda asked: [sized(data[:70_000], of=len(data)), hold]) as mirror,
        blob_server.running(Blobs(data)) as api,
        rig(tmp_path, api.url, mirrors=(mirror.url,)) as its,
    ):
        source = its.mirrors[0]
        source.patience_seconds = 0.05
        await its.read(data)
        assert hold.reached.is_set() and source.rests_until > 0
        assert [asked.start > 0 for asked in api.asked] == [True]


async def test_mirrors_last_are_asked_only_for_what_the_api_does_not_send(tmp_path: Path) -> None:
    one, two = LARGE[:2]
    async with (
        blob_server.running(Blobs(one, two)) as mirror,
        blob_server.running(Blobs(one)) as api,
        rig(tmp_path, api.url, mirrors=(mirror.url + "/v1/blobs",), mirrors_first=False) as its,
    ):
        await its.read(one)
        assert mirror.asked == []
        await its.read(two)
        assert mirror.paths == [f"/v1/blobs/sha512/{Digest.of(two).hex}"]
        with pytest.raises(NotFoundError):
            await its.read(LARGE[2])


async def test_a_mirror_has_the_folders_layout_else(tmp_path: Path) -> None:
    data = LARGE[0]
    async with (
        blob_server.running(Blobs(data)) as mirror,
        blob_server.running(lambda asked: [blob_server.MISSING]) as api,
        rig(tmp_path, api.url, mirrors=(mirror.url + "/deep/er/",)) as its,
    ):
        await its.read(data)
        digest = Digest.of(data)
        assert mirror.paths == [f"/deep/er/sha512/{digest.hex[:2]}/{digest.hex}"]
        assert api.asked == []
    async with blob_server.running(lambda asked: []) as api, rig(tmp_path / "2", api.url, mirrors=(api.url,)) as its:
        with pytest.raises(FetchError):
            await its.read(data)

"""A fetch that is cut goes on where it was, having hashed what is kept; what comes out wrong so starts once more from nothing.

Seen to fail when weakened: `rehash` that believes what it knew; `_from` that does not start again, or again and again;
`stream` that takes any range for the one it asked for, or that does not leave out what it has.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from integrity.digests import Digest
from integrity.errors import DigestMismatchError, FetchError
from tests import blob_server
from tests.blob_server import Asked, Blobs, part, sized, status
from tests.cache_rig import rig
from worker_cache import fetching

DATA = random.Random(2).randbytes(900_000)
DIGEST = Digest.of(DATA)
EVIL = random.Random(3).randbytes(900_000)


class Cutting:
    """Breaks off where so many bytes of the blob were sent. Of those the client may lose the last, which its library held."""

    def __init__(self, *after: int, data: bytes = DATA) -> None:
        self.after, self.data = list(after), data

    def __call__(self, asked: Asked) -> Iterable[bytes]:
        upto = self.after.pop(0) if self.after else len(DATA)
        if asked.start:
            return [part(self.data, asked.start, upto=max(upto, asked.start))]
        return [sized(self.data[:upto], of=len(self.data))]


async def test_a_cut_fetch_goes_on_within_the_same_open(tmp_path: Path) -> None:
    async with blob_server.running(Cutting(300_000, 700_000)) as server, rig(tmp_path, server.url) as its:
        await its.read(DATA)
        first, second, third = (asked.start for asked in server.asked)
        assert first == 0 < second < third and second <= 300_000 and third <= 700_000
        assert its.incoming == []


async def test_a_part_outlives_the_agent(tmp_path: Path) -> None:
    async with blob_server.running(Cutting(300_000, 0)) as server:
        async with rig(tmp_path, server.url) as its:
            with pytest.raises(FetchError):
                await its.read(DATA)
            assert its.incoming == [f"{DIGEST.hex}.part"]
            assert its.named == set()
        async with rig(tmp_path, server.url) as its:
            await its.read(DATA)
            first, *others = (asked.start for asked in server.asked)
            assert first == 0 and len(set(others)) == 1 and others[0] > 100_000
            assert its.incoming == []


async def test_a_short_part_is_not_worth_keeping(tmp_path: Path) -> None:
    async with blob_server.running(Cutting(1000, 0)) as server, rig(tmp_path, server.url) as its:
        with pytest.raises(FetchError):
            await its.read(DATA)
        assert its.incoming == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data + b"x" * len(DATA),
        lambda data: data + EVIL[len(data) : -1],  # the last byte makes it whole, and wrong
        lambda data: b"",
    ],
    ids=["first bit", "last bit", "longer than the blob", "all but one byte", "emptied"],
)
async def test_what_was_done_to_a_part_meanwhile_costs_one_fetch_and_nothing_else(
    tmp_path: Path, spoil: object
) -> None:
    async with blob_server.running(Cutting(300_000, 0)) as server, rig(tmp_path, server.url) as its:
        with pytest.raises(FetchError):
            await its.read(DATA)
        kept = its.folder / "incoming" / f"{DIGEST.hex}.part"
        kept.write_bytes(spoil(kept.read_bytes()))  # type: ignore[operator]
        await its.read(DATA)
        assert [asked.start for asked in server.asked].count(0) == 2, "it was fetched from nothing once"
        assert its.incoming == []


async def test_one_that_goes_on_wrong_starts_again_once(tmp_path: Path) -> None:
    bad = DATA[:300_000] + EVIL[300_000:]

    def script(asked: Asked) -> Iterable[bytes]:
        if asked.start:
            return [part(bad, asked.start)]
        return [sized(bad[:300_000], of=len(bad))] if len(server.asked) == 1 else [sized(bad)]

    async with blob_server.running(script) as server, rig(tmp_path, server.url) as its:
        with pytest.raises(DigestMismatchError):
            await its.read(DATA)
        assert [asked.start > 0 for asked in server.asked] == [False, True, False]
        assert (its.named, its.incoming) == (set(), [])


@pytest.mark.parametrize(
    "answer",
    [
        lambda start: sized(DATA),
        lambda start: status("416 Range Not Satisfiable", "Content-Length: 0"),
        lambda start: status("400 Bad Request", "Content-Length: 0"),
    ],
    ids=["knows no ranges", "416", "400"],
)
async def test_a_server_that_will_not_go_on(tmp_path: Path, answer: object) -> None:
    def script(asked: Asked) -> Iterable[bytes]:
        if asked.start:
            return [answer(asked.start)]  # type: ignore[operator]
        return [sized(DATA[:300_000] if len(server.asked) == 1 else DATA, of=len(DATA))]

    async with blob_server.running(script) as server, rig(tmp_path, server.url) as its:
        await its.read(DATA)


async def test_another_range_than_was_asked_for_is_no_answer(tmp_path: Path) -> None:
    def script(asked: Asked) -> Iterable[bytes]:
        return [part(DATA, asked.start - 1)] if asked.start else [sized(DATA[:300_000], of=len(DATA))]

    async with blob_server.running(script) as server, rig(tmp_path, server.url) as its:
        with pytest.raises(FetchError, match="another range"):
            await its.read(DATA)
        assert its.named == set()


async def test_an_endless_row_of_cuts_ends(tmp_path: Path) -> None:
    cuts = [200_000 * (i + 1) for i in range(4)]
    async with blob_server.running(Cutting(*cuts)) as server, rig(tmp_path, server.url) as its:
        with pytest.raises(FetchError, match="broke off"):
            await its.read(DATA)
        assert len(server.asked) == fetching.ATTEMPTS
        await its.read(DATA)


async def test_who_is_cancelled_leaves_a_part_and_no_descriptor(tmp_path: Path) -> None:
    hold = blob_server.Hold()
    script = [sized(DATA[:300_000], of=len(DATA)), hold]
    async with blob_server.running(lambda asked: script) as server, rig(tmp_path, server.url) as its:
        opening = asyncio.create_task(its.read(DATA))
        await asyncio.wait_for(hold.reached.wait(), 20)
        part_of = its.folder / "incoming" / f"{DIGEST.hex}.part"
        await blob_server.until(lambda: part_of.exists() and part_of.stat().st_size == 300_000)
        await its.cache.close()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert os.listdir(its.folder / "incoming") == [part_of.name]


async def test_a_part_is_hashed_anew_within_one_fetch_too(tmp_path: Path) -> None:
    """What was hashed as it came is not what is on disk by the time that the answer breaks off."""
    hold = blob_server.Hold()

    def script(asked: Asked) -> Iterable[blob_server.Piece]:
        if asked.start:
            return [part(DATA, asked.start)]
        return [sized(DATA[:300_000], of=len(DATA)), hold] if len(server.asked) == 1 else [sized(DATA)]

    async with blob_server.running(script) as server, rig(tmp_path, server.url) as its:
        opening = asyncio.create_task(its.read(DATA))
        kept = its.folder / "incoming" / f"{DIGEST.hex}.part"
        await blob_server.until(lambda: kept.exists() and kept.stat().st_size == 300_000)
        with kept.open("r+b") as file:
            file.write(bytes([DATA[0] ^ 1]))
        hold.go.set()
        await opening
        assert [asked.start for asked in server.asked] == [0, 300_000, 0]
        assert its.damage == []


async def test_no_more_than_a_few_parts_are_kept(tmp_path: Path) -> None:
    bodies = [DATA + bytes([i]) for i in range(fetching.MOST_PARTS + 3)]

    def script(asked: Asked) -> Iterable[bytes]:
        data = blobs.held[asked.hex]
        return [part(data, asked.start, upto=asked.start)] if asked.start else [sized(data[:100_000], of=len(data))]

    blobs = Blobs(*bodies)
    async with blob_server.running(script) as server, rig(tmp_path, server.url) as its:
        for body in bodies:
            with pytest.raises(FetchError):
                await its.read(body)
        assert its.incoming == sorted(f"{Digest.of(body).hex}.part" for body in bodies[3:])

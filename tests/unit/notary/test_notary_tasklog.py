"""Three real pipes made one stream: what is kept apart, cut, slowed, and what its end waits for."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from integrity.digests import Digest
from notary.tasklog import SOURCES, Allowance, TaskLog

PIPE_BYTES = 65_536
READ_COST_BYTES = 4096
CUT = "\n[dagseal] the log is cut here: it is over the limit of %d bytes\n"


class Written:
    """A task's three ends, and the log that reads them."""

    def __init__(self, **limits: Any) -> None:
        pipes = [os.pipe() for _ in SOURCES]
        self.ends = {source: write for source, (_, write) in zip(SOURCES, pipes, strict=True)}
        usual = {"max_bytes": 1 << 20, "bytes_per_second": 1 << 30, "now_us": lambda: 7}
        self.log = TaskLog([read for read, _ in pipes], **usual | limits)

    def write(self, source: str, data: bytes) -> int:
        return os.write(self.ends[source], data)

    async def read(self, source: str, data: bytes, text: str) -> None:
        """Written, and read by the log: `text` is the last of its stream."""
        self.write(source, data)
        while not self.records() or self.records()[-1] != (source, text):
            await asyncio.sleep(0)

    def fill(self, source: str) -> int:
        """As much as the pipe takes now."""
        os.set_blocking(self.ends[source], False)
        taken = 0
        try:
            while True:
                taken += os.write(self.ends[source], b"z" * 4096)
        except BlockingIOError:
            return taken

    def records(self) -> list[tuple[str, str]]:
        lines = bytes(self.log._pending).splitlines()
        return [(record["source"], record["text"]) for record in map(json.loads, lines)]

    async def end(self) -> list[tuple[str, str]]:
        """All records, as they are passed on."""
        for source in list(self.ends):
            self.close(source)
        self.log.end()
        stream = b"".join([piece async for piece in self.log.pieces()])
        assert (self.log.digest, self.log.bytes) == (Digest.of(stream), len(stream))
        return [(record["source"], record["text"]) for record in map(json.loads, stream.splitlines())]

    def close(self, source: str) -> None:
        os.close(self.ends.pop(source))


@pytest.fixture
async def written() -> AsyncIterator[Callable[..., Written]]:
    before = len(os.listdir("/proc/self/fd"))
    made: list[Written] = []

    def write(**limits: Any) -> Written:
        made.append(Written(**limits))
        return made[-1]

    yield write
    for one in made:
        for source in list(one.ends):
            one.close(source)
        one.log.end()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_each_source_keeps_its_name_and_the_order_is_that_of_reading(written: Callable[..., Written]) -> None:
    task = written()
    await task.read("stdout", b"one\n", "one\n")
    await task.read("log", b'{"event":"two"}\n', '{"event":"two"}\n')
    await task.read("stderr", b"three\nfour\n", "three\nfour\n")
    await task.read("stdout", b"five\n", "five\n")
    assert [source for source, _ in await task.end()] == ["stdout", "log", "stderr", "stdout"]
    assert not task.log.truncated


async def test_the_record_is_the_format_byte_for_byte(written: Callable[..., Written]) -> None:
    task = written()
    await task.read("stderr", b"no\n", "no\n")
    assert bytes(task.log._pending) == b'{"at":7,"source":"stderr","text":"no\\n"}\n'


async def test_a_line_waits_for_its_end_and_two_sources_do_not_mix(written: Callable[..., Written]) -> None:
    task = written()
    for number, piece in enumerate((b"be", b"gu", b"n ")):
        task.write("stdout", piece)
        await task.read("stderr", b"%d\n" % number, f"{number}\n")
    await task.read("stdout", b"and ended\nrest", "begun and ended\n")
    assert (await task.end())[-1] == ("stdout", "rest")


async def test_letters_cut_in_two_and_bytes_that_are_none(written: Callable[..., Written]) -> None:
    task = written()
    for byte in "grün ☃\n".encode():
        task.write("stdout", bytes([byte]))
        await asyncio.sleep(0)
    await task.read("stderr", b"\xff\xfe\n", "\\xff\\xfe\n")
    task.write("log", "ü".encode()[:1])
    assert await task.end() == [("stdout", "grün ☃\n"), ("stderr", "\\xff\\xfe\n"), ("log", "\\xc3")]


async def test_a_line_without_an_end_is_passed_on_in_pieces(written: Callable[..., Written]) -> None:
    task = written(max_bytes=1 << 24)
    for _ in range(40):
        task.fill("stdout")
        while len(task.log._open[0].line) + task.log.bytes < PIPE_BYTES:
            await asyncio.sleep(0)
        assert len(task.log._open[0].line) <= PIPE_BYTES
        await asyncio.sleep(0)
    found = await task.end()
    assert len(found) > 10
    assert {source for source, _ in found} == {"stdout"}
    assert {len(text) <= 3 * PIPE_BYTES and set(text) == {"z"} for _, text in found} == {True}


@pytest.mark.parametrize("most", [1, 39, 100, 1000, 5000])
async def test_over_the_size_it_is_cut_once_and_says_so(written: Callable[..., Written], most: int) -> None:
    task = written(max_bytes=most)
    for number in range(300):
        task.write(SOURCES[number % 3], b"\x00 twenty characters \n")
        await asyncio.sleep(0)
    found = await task.end()
    assert task.log.truncated
    assert found[-1] == ("launcher", CUT % most)
    assert [source for source, _ in found].count("launcher") == 1
    mark = len(json.dumps({"at": 7, "source": "launcher", "text": CUT % most}, separators=(",", ":"))) + 1
    assert task.log.bytes - mark <= most
    assert most < 100 or task.log.bytes - mark > most - 100


async def test_after_the_cut_the_task_is_still_read(written: Callable[..., Written]) -> None:
    task = written(max_bytes=10)
    os.set_blocking(task.ends["stdout"], True)
    for _ in range(8):
        await asyncio.to_thread(task.write, "stdout", b"x" * PIPE_BYTES)
    assert task.log.truncated
    assert await task.end() == [("launcher", CUT % 10)]


async def test_over_the_rate_the_pipes_are_left_alone_and_nothing_is_lost(written: Callable[..., Written]) -> None:
    """At a byte a second the first read is more than is allowed for an hour: from then on the task's writes wait."""
    task = written(bytes_per_second=1)
    await task.read("stdout", b"first\n", "first\n")
    taken = {source: task.fill(source) for source in SOURCES}
    assert set(taken.values()) == {PIPE_BYTES}
    for _ in range(100):
        await asyncio.sleep(0)
    for source in SOURCES:
        with pytest.raises(BlockingIOError):
            task.write(source, b"z")
    assert task.records() == [("stdout", "first\n")]
    found = await task.end()
    assert found == [("stdout", "first\n"), *((source, "z" * PIPE_BYTES) for source in SOURCES)]


async def test_a_pause_ends(written: Callable[..., Written]) -> None:
    """Four reads are the burst, each one more waits a hundredth of a second."""
    task = written(bytes_per_second=READ_COST_BYTES * 100)
    loop = asyncio.get_running_loop()
    start = loop.time()
    for number in range(420):
        await task.read("stdout", b"%d\n" % number, f"{number}\n")
    assert loop.time() - start >= 0.15
    assert len(await task.end()) == 420


async def test_the_end_waits_for_no_one_who_was_given_a_pipe(written: Callable[..., Written]) -> None:
    """Somebody else holds an end, and as soon as something was read he writes again, were it for ever."""
    kept: list[int] = []
    task = written(max_bytes=1 << 30, now_us=lambda: os.write(kept[0], b"again\n"))
    write = os.dup(task.ends["stdout"])
    kept.append(write)
    os.write(write, b"first\n")
    assert 200 < len(await task.end()) < 300
    with pytest.raises(BrokenPipeError):
        os.write(write, b"x")
    os.close(write)


async def test_the_end_takes_what_is_in_the_pipes(written: Callable[..., Written]) -> None:
    task = written()
    for source in SOURCES:
        task.fill(source)
    assert [(source, len(text)) for source, text in await task.end()] == [(source, PIPE_BYTES) for source in SOURCES]


async def test_pieces_end_with_the_last_writer(written: Callable[..., Written]) -> None:
    task = written()
    pieces = task.log.pieces()
    task.write("log", b"{}\n")
    assert await anext(pieces) == b'{"at":7,"source":"log","text":"{}\\n"}\n'
    for source in SOURCES:
        task.close(source)
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(anext(pieces), 5)


def test_an_allowance_gives_four_seconds_at_once_and_then_its_rate() -> None:
    allowance = Allowance(100, now=10.0)
    assert allowance.spend(400, 10.0) == 0
    assert allowance.spend(50, 10.0) == 0.5
    assert allowance.spend(0, 10.25) == 0.25
    assert allowance.spend(0, 10.5) == 0
    assert allowance.spend(100, 11.0) == 0.5
    assert allowance.spend(400, 100.0) == 0, "no more is saved up than the burst"
    assert allowance.spend(1, 100.0) == 0.01

"""kill -9 of an agent's cache while blobs are fetched, fetched ahead, evicted and scrubbed: `fsck` finds nothing damaged, the
quota is kept, and the next one goes on; what somebody changed meanwhile is handed to nobody.

The moment is tied to progress: so many steps, then a random handful of turns. DAGSEAL_FAULT_SEED sets the seed, which is
printed.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests import blob_server
from tests.blob_server import Asked, Blobs, part, sized
from tests.faults.cache_agent import BODIES, QUOTA
from worker_cache import fsck

SEED = os.environ.get("DAGSEAL_FAULT_SEED") or str(random.SystemRandom().randrange(2**32))


class Unsteady:
    """Honest, but one answer in six is cut somewhere."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._blobs = rng, Blobs(*BODIES)

    def __call__(self, asked: Asked) -> Iterable[blob_server.Piece]:
        data = self._blobs.held.get(asked.hex)
        if data is None or self._rng.random() > 0.17:
            return self._blobs(asked)
        upto = self._rng.randrange(asked.start, len(data))
        return [part(data, asked.start, upto=upto)] if asked.start else [sized(data[:upto], of=len(data))]


def flip_one(folder: Path, rng: random.Random) -> str | None:
    """Change one bit of one entry, for the next agent to find; its path in the cache."""
    named = sorted((folder / "sha512").glob("??/*"))
    if not named:
        return None
    chosen = rng.choice(named)
    data = bytearray(chosen.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    chosen.write_bytes(data)
    return str(chosen.relative_to(folder))


async def killed_again_and_again(folder: Path, kills: int) -> None:
    print(f"DAGSEAL_FAULT_SEED={SEED}")
    rng, steps = random.Random(SEED), 0
    changed: str | None = None
    async with blob_server.running(Unsteady(rng)) as server:
        for kill in range(kills):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.faults.cache_agent", str(folder), server.url, f"{SEED}.{kill}"),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
            assert process.stdout is not None and process.stderr is not None
            reading = asyncio.create_task(process.stderr.read())
            said = []
            for _ in range(rng.choice((0, 1, 5, 30, 200))):
                line = await asyncio.wait_for(process.stdout.readline(), 60)
                assert line, f"it ended by itself: {(await reading).decode()[-2000:]}"
                said.append(line)
            for _ in range(rng.randrange(300)):
                await asyncio.sleep(0)
            process.kill()
            rest, _ = await asyncio.gather(process.stdout.read(), reading)
            await process.wait()
            said += rest.splitlines(keepends=True)
            assert b"wrong\n" not in said
            steps += len(said)
            if not folder.exists():
                continue  # it had not begun
            report = fsck.check(str(folder))
            damaged = [finding.path for finding in report.findings if finding.is_damage]
            assert damaged in ([], [changed]), "the one that was changed may not have been used yet"
            assert report.size <= QUOTA
            if not damaged:
                changed = flip_one(folder, rng) if rng.random() < 0.3 else None
    assert steps > 0
    if changed is not None:  # by this test, and not used since
        (folder / changed).unlink(missing_ok=True)
    command = [sys.executable, "-m", "dagseal", "fsck", "--cache", str(folder)]
    checked = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.timeout(600)
async def test_f06_ten_kills(tmp_path: Path) -> None:
    await killed_again_and_again(tmp_path / "cache", 10)


@pytest.mark.soak
async def test_f06_two_hundred_kills(tmp_path: Path) -> None:
    await killed_again_and_again(tmp_path / "cache", 200)

"""The cache's half of an agent, in a process that is there to be killed: `python -m tests.faults.cache_agent FOLDER URL SEED`.

It fetches, fetches ahead, evicts, pins, wants and scrubs, all at once and without end, over a quota that is too small. It says
`.` for each step, and `wrong` if it was ever handed a byte that it did not ask for.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys

from integrity.digests import Digest
from integrity.errors import DagsealError
from worker_cache.cache import Cache
from worker_cache.client import Client
from worker_cache.limits import Limits
from worker_cache.store import Store
from worker_cache.transport import Transport

KIB = 1024
SIZES = (500, 5 * KIB, 60 * KIB, 90 * KIB, 300 * KIB, 600 * KIB)
BODIES = [random.Random(i).randbytes(SIZES[i % len(SIZES)] + i) for i in range(48)]
WANTED = [(Digest.of(body), len(body)) for body in BODIES]
QUOTA = 2000 * KIB


def say(word: str) -> None:
    os.write(1, word.encode() + b"\n")


async def use(cache: Cache, rng: random.Random) -> None:
    while True:
        digest, size = rng.choice(WANTED)
        try:
            fd = await cache.open(digest, size=size)
        except DagsealError:
            continue
        with cache.pin(digest), open(fd, "rb") as file:
            if Digest.of(file.read()) != digest:
                say("wrong")
            await asyncio.sleep(0)
        say(".")


async def ahead(cache: Cache, rng: random.Random) -> None:
    while True:
        some = rng.sample(WANTED, 12)
        cache.want(dict(some[:4]))
        await cache.prefetch(some)
        say(".")


async def scrub(cache: Cache) -> None:
    while True:
        for entry in cache._record.entries.values():
            entry.verified_at = 0.0
        await cache.scrubber.round()
        say(".")
        await asyncio.sleep(0)


async def main(folder: str, url: str, seed: str) -> None:
    rng = random.Random(seed)
    limits = Limits(max_cache_bytes=QUOTA, scrub_bytes_per_second=50_000 * KIB)
    async with Transport(url, "tok") as transport:
        client = Client(transport)
        cache = Cache(Store.open(folder), client.blob, batch=client.blobs, max_blob_bytes=KIB * KIB, limits=limits)
        cache.start()
        await asyncio.gather(*(use(cache, rng) for _ in range(4)), ahead(cache, rng), scrub(cache))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

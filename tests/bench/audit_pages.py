"""`python -m tests.bench.audit_pages [--rows 1000000]`: what a page of the audit log costs, at 1,000 rows and at many.

Through the service's own registry (SQLAlchemy, aiosqlite, one read transaction for each page), on SQLite in a temporary
folder. Rows are like those of launches: mostly of two workers, one in fifty refused, three seconds apart.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import tempfile
import time

from sqlalchemy import insert

from submit_api.registry import events, migrate
from submit_api.registry.database import Database
from submit_api.registry.events import Query
from submit_api.registry.tables import EventRow
from submit_api.settings import DatabaseSection
from tests.bench.figures import median

STEP_US, START = 3_000_000, 1_800_000_000_000_000
ACTIONS = ("launch.create", "launch.offer", "launch.claim", "launch.end")
LIMIT, PAGES, BATCH = 100, 300, 5000


def row(seq: int) -> dict[str, object]:
    launch, refused = seq // 4, seq % 50 == 0
    return {
        "seq": seq,
        "at": START + seq * STEP_US,
        "principal": f"user-{launch % 40}" if seq % 4 == 0 else f"worker-{launch % 2}",
        "token_id": "abcdefghijkl",
        "address": "10.0.0.7",
        "action": ACTIONS[seq % 4],
        "object": f"launch:{launch:032x}",
        "digest": "sha512:" + "ab" * 64,
        "verdict": "refused" if refused else "accepted",
        "detail": "etl.load run scheduled__2027-01-15T08:00:00+00:00 try 1 of etl.py@7 as etl in default",
        "rule": f"{launch % 30:032x}",
    }


def queries(rows: int, rng: random.Random) -> dict[str, Query]:
    """One of each kind, of a place in the log that is not the same twice."""
    at = rng.randrange(1, rows // 2)  # so that a whole page follows, where there is one
    since = START + at * STEP_US
    return {
        "no filter": Query(after=at),
        "object": Query(about=f"launch:{at // 4:032x}"),
        "principal": Query(after=at, principal=f"user-{rng.randrange(40)}"),
        "action": Query(after=at, action=rng.choice(ACTIONS)),
        "verdict refused": Query(after=at, verdict="refused"),
        "since": Query(since=since),
        "since and until, an hour": Query(since=since, until=since + 3600_000_000),
        "principal, since": Query(principal="worker-1", since=since),
        "principal, verdict": Query(after=at, principal="worker-1", verdict="refused"),
        "principal, action, until": Query(principal="user-3", action="launch.create", until=since),
        "principal that is nobody": Query(principal="nobody"),
        "principal, verdict, nothing fits": Query(principal="user-2", verdict="refused"),
    }


async def filled(folder: str, rows: int) -> Database:
    database = Database(DatabaseSection(url=f"sqlite+aiosqlite:///{folder}/{rows}.db", busy_timeout_seconds=10))
    await migrate.upgrade(database)
    for start in range(1, rows + 1, BATCH):
        async with database.write() as tx:
            last = min(start + BATCH, rows + 1)
            await tx.session.execute(insert(EventRow), [row(seq) for seq in range(start, last)])
    return database


async def measure(sizes: tuple[int, ...]) -> dict[str, dict[int, list[float]]]:
    """Seconds of each page, by kind of query and number of rows; in turns, so that the machine's other work is in all."""
    found: dict[str, dict[int, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="dagseal-bench-") as folder:
        databases = {rows: await filled(folder, rows) for rows in sizes}
        rng = random.Random(1)
        for number in range(PAGES):
            for rows, database in databases.items():
                for name, wanted in queries(rows, rng).items():
                    begun = time.perf_counter()
                    async with database.read() as tx:
                        await events.page(tx, wanted, limit=LIMIT)
                    if number >= PAGES // 10:
                        found.setdefault(name, {}).setdefault(rows, []).append(time.perf_counter() - begun)
        for database in databases.values():
            await database.close()
    return found


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[math.ceil(len(seconds) * 0.99) - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    few, many = 1000, parser.parse_args().rows
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at start, {PAGES - PAGES // 10} pages of each kind")
    found = asyncio.run(measure((few, many)))
    print(f"{'a page of 100':<34}{f'{few:,} rows':>22}{f'{many:,} rows':>24}{'ratio':>18}")
    print(f"{'':<34}{'median':>11}{'p99':>11}{'median':>13}{'p99':>11}{'median':>10}{'p99':>8}")
    for name, times in found.items():
        usual, high = median(times[few]), p99(times[few])
        other, much = median(times[many]), p99(times[many])
        print(
            f"{name:<34}{usual * 1e3:>8.2f} ms{high * 1e3:>8.2f} ms{other * 1e3:>10.2f} ms{much * 1e3:>8.2f} ms"
            f"{other / usual:>9.2f}x{much / high:>7.2f}x"
        )


if __name__ == "__main__":
    main()

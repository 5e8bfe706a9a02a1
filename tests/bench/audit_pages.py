"""`python -m tests.bench.audit_pages [--rows 1000000]`: what a page of the audit log costs, at 1,000 rows and at many.

Through the service's own registry (SQLAlchemy, aiosqlite, one read transaction for each page), on SQLite in a temporary
folder. Rows are like those of launches: mostly of two workers, one in fifty refused, three seconds apart.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import tempfile
import time

from sqlalchemy import insert

from submit_api.registry import events, migrate
from submit_api.registry.database import Database
from submit_api.registry.events import Query
from submit_api.registry.tables import EventRow
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
    at = rng.randrange(1, rows // 2)
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


async def measure(rows: int) -> dict[str, tuple[float, float]]:
    """Median and p99 of a page, in seconds, by kind of query."""
    rng, found = random.Random(rows), dict[str, list[float]]()
    with tempfile.TemporaryDirectory(prefix="dagseal-bench-") as folder:
        database = Database(f"sqlite+aiosqlite:///{folder}/db", busy_timeout_seconds=10)
        await migrate.upgrade(database)
        for start in range(1, rows + 1, BATCH):
            async with database.write() as tx:
                last = min(start + BATCH, rows + 1)
                await tx.session.execute(insert(EventRow), [row(seq) for seq in range(start, last)])
        for number in range(PAGES):
            for name, wanted in queries(rows, rng).items():
                begun = time.perf_counter()
                async with database.read() as tx:
                    await events.page(tx, wanted, limit=LIMIT)
                if number >= PAGES // 10:
                    found.setdefault(name, []).append(time.perf_counter() - begun)
        await database.close()
    return {name: (median(times), sorted(times)[math.ceil(len(times) * 0.99) - 1]) for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    asked = parser.parse_args()
    few, many = asyncio.run(measure(1000)), asyncio.run(measure(asked.rows))
    print(f"{'a page of 100':<36}{'1,000 rows':>20}{f'{asked.rows:,} rows':>22}{'p99':>9}")
    print(f"{'':<36}{'median':>10}{'p99':>10}{'median':>12}{'p99':>10}{'ratio':>9}")
    for name, (usual, high) in few.items():
        other, much = many[name]
        print(
            f"{name:<36}{usual * 1e3:>7.2f} ms{high * 1e3:>7.2f} ms{other * 1e3:>9.2f} ms{much * 1e3:>7.2f} ms"
            f"{much / high:>8.2f}x"
        )


if __name__ == "__main__":
    main()

"""dagseal's submissions without HTTP and with the description at hand: who sends it, whether he may, the bytes, the rules, the
record; 32 at a time, in one process. Prints JSON as `tests.bench.load`. For `python -m tests.bench.submitting`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator

from submit_api import accepting, audit, authenticating, identity, keyfiles, submissions
from submit_api.issuing import issue
from submit_api.running import opened
from submit_api.service import Service
from submit_api.settings import load
from tests.bench import inputs
from tests.bench.submit_server import AtHand

AT_ONCE = 32


async def main(folder: str, count: int, size: int) -> None:
    settings = load(api={"state_folder": f"{folder}/state"})
    keyfiles.create(settings)
    async with opened(settings, describer=AtHand()) as service:
        async with service.database.write() as tx:
            made = await issue(tx, service, audit.SERVICE, principal="admin", kind=identity.USER, admin=True)
        wanted = [(f"a{number}.py", inputs.small_py(f"a{number}", size)) for number in range(count)]
        seconds: list[float] = []
        begin = time.perf_counter()
        await asyncio.gather(*(_client(service, made.text, wanted, seconds) for _ in range(AT_ONCE)))
        took = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "took": took, "statuses": {"201": len(seconds)}}))


async def _client(service: Service, token: str, wanted: list[tuple[str, bytes]], seconds: list[float]) -> None:
    while wanted:
        name, body = wanted.pop()
        begin = time.perf_counter()
        caller = await authenticating.by_token(service, token, "127.0.0.1")
        ask = accepting.wanted(name, None, None, None, None, None, None, None)
        newest = await submissions.authorise(service, caller, ask)
        done = await submissions.submit(service, caller, ask, newest, _whole(body))
        assert done.created
        seconds.append(time.perf_counter() - begin)


async def _whole(body: bytes) -> AsyncIterator[bytes]:
    yield body


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))

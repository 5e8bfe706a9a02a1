"""`python -m tests.bench.describing SOCKET small|large COUNT`: time descriptions, as the account that runs this.

Prints the seconds as JSON. The first description is not counted: it waits for the launcher's warm processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

from integrity.digests import Digest
from submit_api.describing import LauncherDescriber
from tests.bench import inputs

MAKE = {"small": ("part.py", inputs.small_py), "large": ("part.zip", inputs.large_zip)}


async def main(path: str, kind: str, count: int) -> None:
    describer = LauncherDescriber(path, seconds=120, at_once=1)
    name, make = MAKE[kind]
    seconds = []
    for _ in range(count + 1):
        data = make("bench_part")
        fd = os.memfd_create("bench")
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(data)
            begin = time.perf_counter()
            await describer.describe(name, Digest.of(data), fd, "task")
            seconds.append(time.perf_counter() - begin)
        finally:
            os.close(fd)
    print(json.dumps(seconds[1:]))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))

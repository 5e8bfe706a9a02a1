"""More descriptions than the launcher's socket has places for: each comes in its turn.

Seen to fail when weakened: `LauncherDescriber` without its turns, whom a socket with a full queue turns away.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from api_rig import SOURCE, DescribingPeer

from integrity.digests import Digest
from submit_api.describing import LauncherDescriber

AT_ONCE, ALL = 4, 40


class SlowToAccept(DescribingPeer):
    """Its queue holds as many as are asked at once, and is not looked at before `go`."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.go = asyncio.Event()
        self.most = 0

    async def _accept(self) -> None:
        self._listening.listen(AT_ONCE - 1)  # the kernel takes one more
        await self.go.wait()
        await super()._accept()

    async def _serve(self, peer: object) -> None:
        self.most = max(self.most, len(self._tasks))
        await super()._serve(peer)  # type: ignore[arg-type]


async def test_each_comes_in_its_turn(tmp_path: Path) -> None:
    launcher = SlowToAccept(str(tmp_path / "l.sock"))
    await launcher.start()
    describer = LauncherDescriber(launcher.path, seconds=60, at_once=AT_ONCE)
    source = tmp_path / "etl.py"
    source.write_bytes(SOURCE)
    fds = [os.open(source, os.O_RDONLY) for _ in range(ALL)]  # each with a place of its own in the file
    try:
        asked = [asyncio.create_task(describer.describe("etl.py", Digest.of(SOURCE), fd, "task")) for fd in fds]
        for _ in range(20):
            await asyncio.sleep(0)
        launcher.go.set()
        found = await asyncio.gather(*asked)
    finally:
        for fd in fds:
            os.close(fd)
        await launcher.stop()
    assert {dag.dag_id for one in found for dag in one.dags} == {"etl"} and len(found) == ALL
    assert len(launcher.seen) == ALL and launcher.most <= AT_ONCE

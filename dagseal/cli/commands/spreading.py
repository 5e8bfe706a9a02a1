"""How a release reaches the workers: `push --wait-workers`, and who has drifted: `worker drift`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from dagseal.cli import printing
from dagseal.cli.context import Run, run_of
from dagseal.cli.exits import VERIFICATION_FAILED

if TYPE_CHECKING:
    from worker_cache.client import Client

_AGAIN_SECONDS = 0.5
_COLUMNS = ("name", "state", "why", "reported_at", "log_size", "missing", "damaged")


def drift(ctx: typer.Context) -> None:
    """What each worker says that it holds: verified, behind, drifted or silent. Exit code 1 where one has drifted."""
    run = run_of(ctx)
    found = run.call(lambda client: client.get("/v1/workers"))["workers"]
    there = [worker for worker in found if worker["revoked_at"] is None]
    printing.rows(run, there, _COLUMNS)
    if any(worker["state"] == "drifted" for worker in there):
        raise typer.Exit(VERIFICATION_FAILED)


def wait(run: Run, releases: Sequence[dict[str, Any]], seconds: int) -> None:
    """Until every worker that is heard of holds these releases. Raises `FetchError` when that takes longer."""
    run.call(lambda client: _wait(client, run, releases, seconds))


async def _wait(client: Client, run: Run, releases: Sequence[dict[str, Any]], seconds: int) -> None:
    import asyncio
    import time

    from integrity.errors import FetchError

    deadline, told = time.monotonic() + seconds, ""
    while True:
        there = [worker for release in releases for worker in await _workers(client, release)]
        heard = [worker for worker in there if worker["state"] != "silent"]
        late = [worker for worker in heard if not worker["holds"]]
        silent = sorted({worker["worker"] for worker in there if worker["state"] == "silent"})
        text = f"workers: {len(heard) - len(late)} of {len(heard)} hold it"
        text += f"; silent: {', '.join(silent)}" if silent else ""
        if text != told:
            run.note(text)
            told = text
        if not late:
            return
        if time.monotonic() >= deadline:
            names = ", ".join(sorted({f"{worker['worker']} ({worker['state']})" for worker in late}))
            raise FetchError(f"after {seconds} s these workers do not hold it: {names}; see 'dagseal worker drift'")
        await asyncio.sleep(_AGAIN_SECONDS)


async def _workers(client: Client, release: dict[str, Any]) -> list[dict[str, Any]]:
    from worker_cache.client import segment

    answer = await client.get(f"/v1/archives/{segment(release['archive'])}/releases/{release['number']}/workers")
    found: list[dict[str, Any]] = answer["workers"]
    return found

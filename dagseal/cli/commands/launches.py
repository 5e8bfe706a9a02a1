"""launch, launches, logs, cancel."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import typer

from dagseal.cli import printing
from dagseal.cli.context import Run, run_of
from dagseal.cli.exits import PolicyError, UsageError, code_of_launch

if TYPE_CHECKING:
    from worker_cache.client import Client

WAIT_SECONDS = 20
MAX_OUTAGES = 8
_COLUMNS = (
    "id",
    "state",
    "dag_id",
    "task_id",
    "run_id",
    "try_number",
    "unix_user",
    "worker",
    "created_at",
    "exit_code",
)
_DURATION = re.compile(r"([1-9][0-9]{0,7})(s|m|h|d)?")
_UNITS = {None: 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def register(app: typer.Typer) -> None:
    app.command()(launch)
    app.command()(launches)
    app.command()(logs)
    app.command()(cancel)


def launch(
    ctx: typer.Context,
    dag: str = typer.Argument(..., metavar="DAG"),
    task: str = typer.Argument(..., metavar="TASK"),
    run_id: str | None = typer.Option(None, "--run-id", help="Default: manual__ and the time (UTC)."),
    as_user: str | None = typer.Option(None, "--as-user", help="Unix user to run as; a rule must allow it."),
    queue: str | None = typer.Option(None, "--queue"),
    map_index: int = typer.Option(-1, "--map-index"),
    release: int | None = typer.Option(
        None, "--release", min=1, help="Default: what the run began with, else the active."
    ),
    try_number: int = typer.Option(1, "--try-number", min=1),
    timeout: str | None = typer.Option(None, "--timeout", metavar="DURATION", help="Such as 90s, 15m, 2h."),
    follow: bool = typer.Option(False, "--follow", "-f", help="Print the log until it ended; exit as it did."),
) -> None:
    """Launch one task. With --follow: 0 success or skipped, 7 refused, 8 failed."""
    run = run_of(ctx)
    body: dict[str, Any] = {"dag_id": dag, "task_id": task, "run_id": run_id or _generated_run_id()}
    body |= {"map_index": map_index, "try_number": try_number}
    optional = {"run_as_user": as_user, "queue": queue, "release": release}
    body |= {key: value for key, value in optional.items() if value is not None}
    if timeout is not None:
        body["timeout_seconds"] = seconds(timeout)
    launched = run.call(lambda client: _launch(client, body))
    if not follow:
        printing.item(run, launched, (*_COLUMNS, "archive", "release", "digest", "queue"))
        return
    run.note(f"launch {launched['id']}: {launched['archive']}@{launched['release']} as {launched['unix_user']}")
    try:
        ended = run.call(lambda client: follow_launch(run, client, launched["id"]))
    except KeyboardInterrupt:
        run.note(f"still running; to end it: dagseal cancel {launched['id']}")
        raise
    _say_end(run, ended)
    raise typer.Exit(code_of_launch(ended["state"]))


async def _launch(client: Client, body: dict[str, Any]) -> Any:
    from integrity.errors import OutOfScopeError

    try:
        return await client.send("POST", "/v1/launches", body)
    except OutOfScopeError as error:  # no rule or grant covers it: policy, not a missing login
        raise PolicyError(str(error)) from None


def _say_end(run: Run, ended: dict[str, Any]) -> None:
    reason = f": {ended['error']}" if ended.get("error") else ""
    reason += f": {ended['detail']}" if ended.get("detail") else ""
    if ended["state"] not in ("success", "skipped") or run.verbose:
        sys.stderr.write(printing.safe(f"dagseal: launch {ended['id']} {ended['state']}{reason}") + "\n")


async def follow_launch(run: Run, client: Client, launch_id: str, *, offset: int = 0) -> dict[str, Any]:
    """Print the log as it grows; the launch when it ended. A server that restarts meanwhile is waited for."""
    import asyncio
    import random

    from integrity.errors import FetchError
    from vocabulary.claims import STATES
    from worker_cache import backoff
    from worker_cache.client import segment

    outages, delays = 0, backoff.delays(random.random)
    printer = printing.LogPrinter(run)
    while True:
        try:
            part = await client.launch_log(launch_id, offset=offset, wait_seconds=WAIT_SECONDS)
            printer.write(part.data)
            offset = part.next_offset
            outages, delays = 0, backoff.delays(random.random)
            if part.state in STATES and not part.data:
                printer.end()
                found: dict[str, Any] = await client.get(f"/v1/launches/{segment(launch_id)}")
                return found
        except FetchError as error:
            outages += 1
            if outages > MAX_OUTAGES:
                raise FetchError(f"{error} The launch goes on: dagseal logs {launch_id} --follow") from None
            if run.verbose:
                run.note(f"waiting for the server: {error}")
            await asyncio.sleep(next(delays))


def launches(
    ctx: typer.Context,
    dag: str | None = typer.Option(None, "--dag"),
    state: str | None = typer.Option(None, "--state"),
    limit: int = typer.Option(50, "--limit", "-n", min=1, max=1000),
) -> None:
    """Launches, newest first."""
    run = run_of(ctx)
    query = {key: value for key, value in (("dag_id", dag), ("state", state), ("limit", str(limit))) if value}
    found = run.call(lambda client: client.get("/v1/launches", query))
    printing.rows(run, found["launches"], _COLUMNS)


def logs(
    ctx: typer.Context,
    launch_id: str = typer.Argument(..., metavar="ID"),
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on until the launch ended."),
) -> None:
    """Print a launch's log; with -o json its records, as they were signed for."""
    run = run_of(ctx)
    if follow:
        _say_end(run, run.call(lambda client: follow_launch(run, client, launch_id)))
    else:
        run.call(lambda client: _print_log(run, client, launch_id))


async def _print_log(run: Run, client: Client, launch_id: str) -> None:
    offset, printer = 0, printing.LogPrinter(run)
    while True:
        part = await client.launch_log(launch_id, offset=offset, wait_seconds=0)
        if not part.data:
            printer.end()
            return
        printer.write(part.data)
        offset = part.next_offset


def cancel(ctx: typer.Context, launch_id: str = typer.Argument(..., metavar="ID")) -> None:
    """End a launch: its task and everything that it started."""
    from worker_cache.client import segment

    run = run_of(ctx)
    found = run.call(lambda client: client.send("POST", f"/v1/launches/{segment(launch_id)}/cancel"))
    printing.item(run, found, _COLUMNS)


def seconds(text: str) -> int:
    """`90`, `90s`, `15m`, `2h`, `30d` in seconds. Raises `UsageError`."""
    found = _DURATION.fullmatch(text)
    if not found:
        raise UsageError(f"{text!r} is not a duration: write 90s, 15m, 2h or 30d")
    return int(found[1]) * _UNITS[found[2]]


def _generated_run_id() -> str:
    from datetime import UTC, datetime

    return f"manual__{datetime.now(UTC).isoformat()}"

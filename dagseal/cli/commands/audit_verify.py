"""audit verify: is the audit log whole, the server's or an export of it; or is a launcher's journal (`journal`).

What it shows: that no event is missing from between others, unless the log itself says that retention removed it. What it does
not show: an event that was changed in its place, or events that were cut off the end, by who may write the database. Those
differ from an export that was kept elsewhere, and from the launchers' journals.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dagseal.cli import printing
from dagseal.cli.commands import journal as journals
from dagseal.cli.context import Run, run_of
from dagseal.cli.exits import NotVerifiedError, UsageError, VerificationFailedError

if TYPE_CHECKING:
    from submit_api.audit_numbers import Numbers
    from worker_cache.client import Client

PAGE = 1000


def verify(
    ctx: typer.Context,
    journal: Path | None = typer.Option(
        None, "--journal", metavar="PATH", help="Instead: the launcher's folder of journal files, or one of them."
    ),
    export: Path | None = typer.Option(None, "--export", metavar="FILE", help="Instead: an export in JSON Lines."),
    offline: bool = typer.Option(False, "--offline", help="With --journal: only the chain, ask no server."),
) -> None:
    """Verify that the audit log has no gap that it does not explain; or an export of it; or a launcher's journal, whose chain
    must hold, and whose launches the server must know as the launcher does."""
    if journal is not None and export is None:
        journals.verify(ctx, journal, offline)
        return
    if journal is not None or offline:
        raise UsageError("--journal, --export and neither are three things to verify; --offline goes with --journal")
    run = run_of(ctx)
    found = _of_file(export) if export is not None else run.call(_of_server)
    _judge(run, found, str(export) if export is not None else "the audit log")


def _judge(run: Run, found: Numbers, what: str) -> None:
    findings = found.findings()
    removed = f"; 1 to {found.removed_through} were removed by its retention" if found.removed_through else ""
    printing.verdict(run, not findings, f"{what}: {found.count} events, numbers {found.first} to {found.last}{removed}")
    for finding in findings:
        printing.verdict(run, False, finding)
    if findings:
        raise VerificationFailedError(f"{what}: verification FAILED: {findings[0]}")
    if not found.count:
        raise NotVerifiedError(f"{what} is empty: there is nothing to verify")


async def _of_server(client: Client) -> Numbers:
    from submit_api.audit_numbers import Numbers

    found, after = Numbers(), 0
    while page := (await client.get("/v1/audit", {"after": str(after), "limit": str(PAGE)}))["events"]:
        for event in page:
            found.hear(event["seq"], event["action"], event["object"])
        after = page[-1]["seq"]
    return found


def _of_file(path: Path) -> Numbers:
    """An export may begin anywhere: then nothing is said of what is before it."""
    from submit_api.audit_numbers import Numbers

    found: Numbers | None = None
    try:
        with path.open("rb") as file:
            for at, line in enumerate(file, 1):
                try:
                    event = json.loads(line)
                    seq, action, about = int(event["seq"]), str(event["action"]), str(event["object"])
                except (ValueError, KeyError, TypeError):
                    raise VerificationFailedError(f"{path}: line {at} is no event of an export in JSON Lines") from None
                found = found or Numbers(after=seq - 1)
                found.hear(seq, action, about)
    except OSError as error:
        raise NotVerifiedError(f"{path}: {error.strerror}") from None
    return found or Numbers()

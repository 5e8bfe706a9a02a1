"""approve: let a release be launched that waits for a second member, who has seen what changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from dagseal.cli import printing
from dagseal.cli.commands import differing
from dagseal.cli.commands.archives import RELEASE_COLUMNS
from dagseal.cli.commands.releases import numbered, path
from dagseal.cli.context import Run, run_of
from dagseal.cli.exits import UsageError

if TYPE_CHECKING:
    from worker_cache.client import Client


def register(app: typer.Typer) -> None:
    app.command()(approve)


def approve(
    ctx: typer.Context,
    archive: str = typer.Argument(..., metavar="NAME@N"),
    digest: str | None = typer.Option(None, "--digest", help="Of what you looked at; then nothing is shown and asked."),
    reason: str | None = typer.Option(None, "--reason", help="For the audit log."),
    unsafe_alone: bool = typer.Option(
        False, "--unsafe-alone", help="As an administrator, without a second member; needs --reason, and is audited so."
    ),
) -> None:
    """Approve a release of somebody else's. Without --digest what changed is shown, and asked for."""
    run, (name, number) = run_of(ctx), numbered(archive, "approve")
    if unsafe_alone and not reason:
        raise UsageError("--unsafe-alone needs a --reason: it is what the audit log will show")
    if digest is None:
        digest = _looked_at(run, name, number)
    body = {"digest": digest, "unsafe_alone": unsafe_alone, **({"reason": reason} if reason else {})}
    found = run.call(lambda client: client.send("POST", f"{path(name)}/releases/{number}/approve", body))
    run.note(f"{name}@{number} is {found['state']}; approved by {', '.join(found['approved_by'])}")
    printing.item(run, found, RELEASE_COLUMNS)


def _looked_at(run: Run, name: str, number: int) -> str:
    """Show what is to be approved and ask; the digest of what was shown."""

    async def work(client: Client) -> tuple[Any, Any]:
        release = await client.get(f"{path(name)}/releases/{number}")
        return release, await differing.of_release(client, name, number) if number > 1 else None

    release, difference = run.call(work)
    if difference is not None:
        differing.show(run, difference)
    else:
        printing.item(run, release, RELEASE_COLUMNS)
    run.note(f"The lines: dagseal diff {name} {number} --text, or dagseal cat {name}@{number}")
    run.confirm(f"Approve {name}@{number}, {release['digest']}, submitted by {release['submitted_by']}?")
    return str(release["digest"])

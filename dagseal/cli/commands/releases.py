"""activate, rollback, revoke: which release is launched, and which never again."""

from __future__ import annotations

import typer

from dagseal.cli import printing
from dagseal.cli.commands.archives import RELEASE_COLUMNS, reference
from dagseal.cli.context import run_of
from dagseal.cli.exits import UsageError


def register(app: typer.Typer) -> None:
    app.command()(activate)
    app.command()(rollback)
    app.command()(revoke)


def activate(
    ctx: typer.Context,
    archive: str = typer.Argument(..., metavar="NAME@N"),
    from_release: str | None = typer.Option(None, "--from", metavar="N|none", help="Only while release N is active."),
) -> None:
    """Make a release the one that is launched."""
    run, (name, number) = run_of(ctx), numbered(archive, "activate")
    headers = _if_active(from_release) if from_release is not None else {}
    found = run.call(lambda client: client.send("POST", f"{path(name)}/releases/{number}/activate", headers=headers))
    printing.item(run, found, RELEASE_COLUMNS)


def rollback(
    ctx: typer.Context,
    name: str = typer.Argument(..., metavar="NAME"),
    number: int | None = typer.Argument(None, min=1, metavar="[NUMBER]", help="Else the one that was active before."),
    from_release: str | None = typer.Option(
        None, "--from", metavar="N|none", help="Only while release N, or none, is active; then nothing is asked."
    ),
) -> None:
    """Go back to the release that was active before, or to an earlier one. Twice is two steps back."""
    run, (archive, said) = run_of(ctx), reference(name)
    if said is not None:
        raise UsageError(f"rollback takes the archive's NAME and a number: dagseal rollback {archive} {said}")
    active = from_release
    if active is None:
        active = str(run.call(lambda client: client.get(path(archive)))["active"] or "none")
        run.confirm(f"Release {active} of {archive} is active. Roll it back to {number or 'the one before'}?")
    headers, query = _if_active(active), {"to": str(number)} if number else {}
    found = run.call(lambda client: client.send("POST", f"{path(archive)}/rollback", query=query, headers=headers))
    run.note(f"{archive}: release {active} -> {found['number']}")
    printing.item(run, found, RELEASE_COLUMNS)


def revoke(
    ctx: typer.Context,
    archive: str = typer.Argument(..., metavar="NAME@N"),
    reason: str | None = typer.Option(
        None, "--reason", help="Shown to whoever wants to launch it, and in the history."
    ),
    kill: bool = typer.Option(False, "--kill", help="End what runs of it, too."),
) -> None:
    """Never launch a release again, anywhere. It cannot be undone: its bytes come back only changed, as a new release."""
    run, (name, number) = run_of(ctx), numbered(archive, "revoke")
    query = {**({"reason": reason} if reason is not None else {}), **({"kill": "true"} if kill else {})}
    found = run.call(lambda client: client.send("POST", f"{path(name)}/releases/{number}/revoke", query=query))
    printing.item(run, found, (*RELEASE_COLUMNS, "revoke_reason"))


def path(archive: str) -> str:
    from worker_cache.client import segment

    return f"/v1/archives/{segment(archive)}"


def numbered(text: str, command: str) -> tuple[str, int]:
    name, number = reference(text)
    if number is None:
        raise UsageError(f"{command} needs a release: NAME@N (see: dagseal history {name})")
    return name, number


def _if_active(release: str) -> dict[str, str]:
    if release != "none" and not release.isdecimal():
        raise UsageError(f"--from takes the number of a release, or none, not {release!r}")
    return {"If-Match": f'"{release}"'}

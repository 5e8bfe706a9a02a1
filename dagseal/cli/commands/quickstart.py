"""quickstart: everything on this machine, at once."""

from __future__ import annotations

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    app.command()(quickstart)


def quickstart(
    dir: str = typer.Option(..., "--dir", metavar="DIR", help="A new or empty folder; all state goes there."),
    port: int | None = typer.Option(None, "--port", min=1, max=65535, help="Of the API on loopback; else a free one."),
    as_user: str | None = typer.Option(None, "--as-user", metavar="U", help="Whom tasks run as; an existing account."),
    keep: bool = typer.Option(False, "--keep", help="Serve until SIGTERM instead of telling the story."),
) -> int:
    """Start API, agent and launcher here, and show a push, a launch, a tampered copy, and the refusal."""
    from dagseal import quickstart as story

    return story.quickstart(Path(dir), port=port, as_user=as_user, keep=keep, say=lambda line: print(line, flush=True))

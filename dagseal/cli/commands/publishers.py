"""publisher: which runs of CI may push without a token of ours lying there."""

from __future__ import annotations

import typer

from dagseal.cli import printing
from dagseal.cli.context import run_of

GITHUB = "https://token.actions.githubusercontent.com"
_COLUMNS = (
    "id", "issuer", "repository", "workflow", "environment", "ref", "repository_id", "owner_id", "principal",
    "archive_prefix", "created_by", "created_at", "last_used_at",
)  # fmt: skip


def register(app: typer.Typer) -> None:
    publishers = typer.Typer(no_args_is_help=True)
    publishers.command()(add)
    publishers.command("list")(list_publishers)
    publishers.command("rm")(remove)
    app.add_typer(publishers, name="publisher", help="Runs of CI that may push: trusted publishing.")


def add(
    ctx: typer.Context,
    repository: str = typer.Argument(..., metavar="OWNER/NAME"),
    workflow: str = typer.Option(..., "--workflow", metavar="FILE", help="Such as publish.yml."),
    as_principal: str = typer.Option(..., "--as", metavar="PRINCIPAL", help="Who its releases are submitted by."),
    prefix: str = typer.Option(..., "--prefix", help="It may push archives whose names begin so."),
    environment: str = typer.Option("", "--environment", help="Only runs in this environment of CI. Default: any."),
    ref: str = typer.Option("", "--ref", help="Only runs of this, such as refs/heads/main. Default: any."),
    repository_id: str = typer.Option("", "--repository-id", help="The number that outlives its name."),
    owner_id: str = typer.Option("", "--owner-id", help="The number of its owner. Default: both of the first run."),
    issuer: str = typer.Option(GITHUB, "--issuer", metavar="URL", help="As the API's settings name it."),
) -> None:
    """Trust the runs of one workflow of one repository."""
    body = {
        "issuer": issuer,
        "repository": repository,
        "workflow": workflow,
        "environment": environment,
        "ref": ref,
        "repository_id": repository_id,
        "owner_id": owner_id,
        "principal": as_principal,
        "archive_prefix": prefix,
    }
    run = run_of(ctx)
    printing.item(run, run.call(lambda client: client.send("POST", "/v1/publishers", body)), _COLUMNS)
    if not (repository_id and owner_id):
        run.note("Its first run pins the ids of repository and owner: give both to let nobody take the name before.")


def list_publishers(ctx: typer.Context) -> None:
    """All trusted publishers."""
    run = run_of(ctx)
    printing.rows(run, run.call(lambda client: client.get("/v1/publishers"))["publishers"], _COLUMNS)


def remove(ctx: typer.Context, publisher_id: str = typer.Argument(..., metavar="ID")) -> None:
    """Trust these runs no more; their tokens end now."""
    from worker_cache.client import segment

    run = run_of(ctx)
    run.call(lambda client: client.send("DELETE", f"/v1/publishers/{segment(publisher_id)}"))
    run.note(f"publisher {publisher_id} removed, and its tokens with it")

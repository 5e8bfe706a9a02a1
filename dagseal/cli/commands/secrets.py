"""connection and variable: import, set, list, grant, rm. A value goes in and never comes out."""

from __future__ import annotations

import typer

from dagseal.cli import printing
from dagseal.cli.context import Run, run_of
from dagseal.cli.exits import UsageError

_MEDIA_TYPES = {
    "json": "application/json",
    "yaml": "application/yaml",
    "yml": "application/yaml",
    "env": "text/plain",
}
_GRANT_COLUMNS = ("id", "kind", "name", "to_kind", "to", "created_at", "created_by")


def register(app: typer.Typer) -> None:
    for kind in ("connection", "variable"):
        app.add_typer(_group(kind), name=kind, help=f"{kind.capitalize()}s that tasks may get, and who gets them.")


def _group(kind: str) -> typer.Typer:
    group = typer.Typer(no_args_is_help=True)
    plural = f"{kind}s"

    @group.command("list")
    def list_(ctx: typer.Context) -> None:
        """Names, never values."""
        run = run_of(ctx)
        found = run.call(lambda client: client.get(f"/v1/{plural}"))
        printing.rows(run, found[plural], ("name", "mode", "owner", "group", "version", "updated_at", "updated_by"))

    @group.command("set")
    def set_(
        ctx: typer.Context,
        name: str = typer.Argument(..., metavar="NAME"),
        file: str | None = typer.Option(
            None, "--file", help="Read the value here; - is stdin. Else piped in or asked for."
        ),
    ) -> None:
        """Create or replace. The value is never an argument: argv is readable by every account."""
        from dagseal.cli import secret_input
        from worker_cache.client import segment

        run = run_of(ctx)
        value = secret_input.read_secret(run, file, f"the value of {kind} {name}")
        found = run.call(lambda client: client.send("PUT", f"/v1/{plural}/{segment(name)}", {"value": value}))
        printing.item(run, found or {"name": name})

    @group.command("rm")
    def rm(ctx: typer.Context, name: str = typer.Argument(..., metavar="NAME")) -> None:
        """Remove it."""
        from worker_cache.client import segment

        run = run_of(ctx)
        run.call(lambda client: client.send("DELETE", f"/v1/{plural}/{segment(name)}"))
        run.note(f"{kind} {name} removed")

    @group.command("grant")
    def grant(
        ctx: typer.Context,
        name: str = typer.Argument(..., metavar="NAME"),
        to_user: str | None = typer.Option(None, "--to", "--to-user", help="The owner whose tasks get it."),
        to_group: str | None = typer.Option(None, "--to-group", help="The group whose tasks get it."),
    ) -> None:
        """Let the tasks of an owner or a group have it."""
        if (to_user is None) == (to_group is None):
            raise UsageError("say to whom: --to NAME or --to-group NAME")
        body = {"kind": kind, "name": name, "to_kind": "principal" if to_user else "group", "to": to_user or to_group}
        run = run_of(ctx)
        printing.item(run, run.call(lambda client: client.send("POST", "/v1/grants", body)), _GRANT_COLUMNS)

    @group.command("grants")
    def grants(ctx: typer.Context) -> None:
        """Who gets what."""
        run = run_of(ctx)
        found = run.call(lambda client: client.get("/v1/grants"))
        printing.rows(run, [g for g in found["grants"] if g["kind"] == kind], _GRANT_COLUMNS)

    @group.command("ungrant")
    def ungrant(ctx: typer.Context, grant_id: str = typer.Argument(..., metavar="ID")) -> None:
        """Take a grant back."""
        from worker_cache.client import segment

        run = run_of(ctx)
        run.call(lambda client: client.send("DELETE", f"/v1/grants/{segment(grant_id)}"))
        run.note(f"grant {grant_id} removed")

    if kind == "connection":
        group.command("import")(import_)
    return group


def import_(
    ctx: typer.Context,
    file: str = typer.Argument(..., metavar="FILE", help="From `airflow connections export`; - is stdin."),
    format: str | None = typer.Option(None, "--format", help="json, yaml or env; else by the file's name."),
) -> None:
    """Take over what `airflow connections export` wrote: all of it, or nothing."""
    from dagseal.cli import secret_input

    run = run_of(ctx)
    media_type = _media_type(run, file, format)
    data = secret_input.read_bytes(file)
    found = run.call(lambda client: client.send_raw("POST", "/v1/connections/import", data, media_type))
    printing.rows(run, [{"name": name} for name in found["imported"]], ("name",))


def _media_type(run: Run, file: str, format: str | None) -> str:
    if format is not None and format not in _MEDIA_TYPES:
        raise UsageError("--format is json, yaml or env")
    return _MEDIA_TYPES.get(format or file.rpartition(".")[2].lower(), "text/plain")

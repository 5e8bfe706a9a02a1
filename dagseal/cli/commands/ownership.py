"""chown, chgrp, chmod, queue and dag: who owns what, and who else may see, replace, launch or use it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from dagseal.cli import printing
from dagseal.cli.context import Run, run_of
from dagseal.cli.exits import UsageError

if TYPE_CHECKING:
    from worker_cache.client import Client

COLUMNS = ("kind", "name", "owner", "group", "mode")
KINDS = ("archive", "connection", "variable", "queue")
_OBJECTS = typer.Argument(..., metavar="OBJECT...", help="etl.py, or connection:NAME, variable:NAME, queue:NAME.")


def register(app: typer.Typer) -> None:
    # Without this `o=` or `-w` of a mode would be taken for an option.
    app.command(context_settings={"ignore_unknown_options": True})(chmod)
    app.command()(chown)
    app.command()(chgrp)
    queues = typer.Typer(no_args_is_help=True)
    queues.command("add")(add_queue)
    queues.command("list")(list_queues)
    queues.command("rm")(remove_queue)
    app.add_typer(queues, name="queue", help="Queues that somebody owns; all others are open to all.")
    dags = typer.Typer(no_args_is_help=True)
    dags.command("transfer")(transfer)
    app.add_typer(dags, name="dag", help="Which archive a dag_id belongs to.")


def of(text: str) -> tuple[str, str]:
    """Kind and name of `connection:db`, or of an archive's name alone."""
    kind, colon, name = text.partition(":")
    if not colon:
        return "archive", text
    if kind not in KINDS or not name:
        raise UsageError(f"{text!r} is not NAME of an archive nor one of {', '.join(f'{kind}:NAME' for kind in KINDS)}")
    return kind, name


def path_of(kind: str, name: str) -> str:
    from worker_cache.client import segment

    return f"/v1/ownership/{kind}/{segment(name)}"


def chmod(
    ctx: typer.Context,
    mode: str = typer.Argument(..., metavar="MODE", help="750, or what changes: g+rx,o="),
    objects: list[str] = _OBJECTS,
) -> None:
    """Say what owner, group and all others may: r see, w replace, x launch or use."""
    _change(run_of(ctx), objects, {"mode": mode})


def chown(
    ctx: typer.Context,
    owner: str = typer.Argument(..., metavar="OWNER[:GROUP]"),
    objects: list[str] = _OBJECTS,
) -> None:
    """Give things to another owner. Administrators only: whoever owns a thing lends it what they may."""
    owner, _, group = owner.partition(":")
    _change(run_of(ctx), objects, {"owner": owner, **({"group": group} if group else {})})


def chgrp(ctx: typer.Context, group: str = typer.Argument(..., metavar="GROUP"), objects: list[str] = _OBJECTS) -> None:
    """Give things to a group."""
    _change(run_of(ctx), objects, {"group": group})


def _change(run: Run, objects: list[str], body: dict[str, str]) -> None:
    found: list[Any] = []
    try:
        for path in [path_of(*of(text)) for text in objects]:
            found.append(run.call(partial(_patch, path, body)))
    finally:
        if found:
            printing.rows(run, found, COLUMNS)


async def _patch(path: str, body: dict[str, str], client: Client) -> Any:
    return await client.send("PATCH", path, body)


def add_queue(
    ctx: typer.Context,
    name: str = typer.Argument(..., metavar="NAME"),
    owner: str | None = typer.Option(None, "--owner", help="Else you."),
    group: str | None = typer.Option(None, "--group", help="Else the owner alone."),
    mode: str | None = typer.Option(None, "--mode", help="Else rwxrwx--x: everybody's tasks may run in it."),
) -> None:
    """Put a queue on record: from now on its mode says whose tasks may run in it."""
    from worker_cache.client import segment

    body = {key: value for key, value in (("owner", owner), ("group", group), ("mode", mode)) if value is not None}
    run = run_of(ctx)
    printing.item(run, run.call(lambda client: client.send("PUT", f"/v1/queues/{segment(name)}", body)), COLUMNS[1:])


def list_queues(ctx: typer.Context) -> None:
    """The queues on record that you may see."""
    run = run_of(ctx)
    printing.rows(run, run.call(lambda client: client.get("/v1/queues"))["queues"], COLUMNS[1:])


def remove_queue(ctx: typer.Context, name: str = typer.Argument(..., metavar="NAME")) -> None:
    """Take a queue off the record: it is open to all again."""
    from worker_cache.client import segment

    run = run_of(ctx)
    run.call(lambda client: client.send("DELETE", f"/v1/queues/{segment(name)}"))
    run.note(f"queue {name} is not on record any more")


def transfer(
    ctx: typer.Context,
    dag_id: str = typer.Argument(..., metavar="DAG"),
    archive: str = typer.Argument(..., metavar="ARCHIVE", help="Who may push it from now on."),
) -> None:
    """Give a dag_id to another archive."""
    from worker_cache.client import segment

    run, body = run_of(ctx), {"archive": archive}
    found = run.call(lambda client: client.send("POST", f"/v1/dags/{segment(dag_id)}/transfer", body))
    printing.item(run, found, ("dag_id", "archive", "was"))

"""audit: what was decided, by whom, about what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from dagseal.cli import printing
from dagseal.cli.commands import journal
from dagseal.cli.context import Run, run_of

if TYPE_CHECKING:
    from worker_cache.client import Client

POLL_SECONDS = 2.0
PAGE = 500
_COLUMNS = ("seq", "at", "principal", "action", "object", "verdict", "digest", "detail")


def register(app: typer.Typer) -> None:
    audit = typer.Typer(no_args_is_help=True)
    audit.command("list")(list_events)
    audit.command()(tail)
    audit.command()(journal.verify)
    app.add_typer(audit, name="audit", help="The record of every decision.")


def list_events(
    ctx: typer.Context,
    after: int = typer.Option(0, "--after", min=0, metavar="SEQ", help="Only events after this one."),
    limit: int = typer.Option(100, "--limit", "-n", min=1, max=1000),
    object: str | None = typer.Option(None, "--object"),
    principal: str | None = typer.Option(None, "--principal"),
) -> None:
    """Events in their order."""
    run = run_of(ctx)
    found = run.call(lambda client: _page(client, after, limit, object, principal))
    printing.rows(run, found, _COLUMNS)


def tail(
    ctx: typer.Context,
    limit: int = typer.Option(20, "--limit", "-n", min=1, max=1000),
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on as events come, until interrupted."),
    object: str | None = typer.Option(None, "--object"),
    principal: str | None = typer.Option(None, "--principal"),
) -> None:
    """The last events; with --follow also those to come."""
    run = run_of(ctx)
    run.call(lambda client: _tail(run, client, limit, follow, object, principal))


async def _page(client: Client, after: int, limit: int, about: str | None, principal: str | None) -> list[Any]:
    query = {"after": str(after), "limit": str(limit)}
    query |= {key: value for key, value in (("object", about), ("principal", principal)) if value}
    found: list[Any] = (await client.get("/v1/audit", query))["events"]
    return found


async def _tail(run: Run, client: Client, count: int, follow: bool, about: str | None, principal: str | None) -> None:
    import asyncio

    last: list[Any] = []
    after = 0
    while page := await _page(client, after, PAGE, about, principal):
        last = [*last, *page][-count:]
        after = page[-1]["seq"]
    printing.rows(run, last, _COLUMNS)
    while follow:
        page = await _page(client, after, PAGE, about, principal)
        if page:
            after = page[-1]["seq"]
            printing.more(run, page, _COLUMNS)
        else:
            await asyncio.sleep(POLL_SECONDS)

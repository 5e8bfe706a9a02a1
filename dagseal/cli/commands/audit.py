"""audit: what was decided, by whom, about what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from dagseal.cli import printing
from dagseal.cli.commands import audit_export, audit_verify
from dagseal.cli.commands.audit_export import filters
from dagseal.cli.context import Run, run_of

if TYPE_CHECKING:
    from worker_cache.client import Client

POLL_SECONDS = 2.0
PAGE = 500
_COLUMNS = ("seq", "at", "principal", "action", "object", "verdict", "rule", "digest", "detail")


def register(app: typer.Typer) -> None:
    audit = typer.Typer(no_args_is_help=True)
    audit.command("list")(list_events)
    audit.command()(tail)
    audit.command()(audit_export.export)
    audit.command()(audit_verify.verify)
    app.add_typer(audit, name="audit", help="The record of every decision.")


def list_events(
    ctx: typer.Context,
    after: int = typer.Option(0, "--after", min=0, metavar="SEQ", help="Only events after this one."),
    limit: int = typer.Option(100, "--limit", "-n", min=1, max=1000),
    object: str | None = typer.Option(None, "--object"),
    principal: str | None = typer.Option(None, "--principal"),
    action: str | None = typer.Option(None, "--action"),
    verdict: str | None = typer.Option(None, "--verdict", metavar="accepted|refused"),
    since: str | None = typer.Option(None, "--since", metavar="TIME", help="As 2027-01-15T08:00:00Z; included."),
    until: str | None = typer.Option(None, "--until", metavar="TIME", help="Not included."),
) -> None:
    """Events in their order."""
    run = run_of(ctx)
    query = filters(after, object, principal, action, verdict, since, until)
    found = run.call(lambda client: _page(client, query, limit))
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
    query = filters(0, object, principal, None, None, None, None)
    run.call(lambda client: _tail(run, client, limit, follow, query))


async def _page(client: Client, query: dict[str, str], limit: int) -> list[Any]:
    found: list[Any] = (await client.get("/v1/audit", {**query, "limit": str(limit)}))["events"]
    return found


async def _tail(run: Run, client: Client, count: int, follow: bool, query: dict[str, str]) -> None:
    import asyncio

    last: list[Any] = []
    after = 0
    while page := await _page(client, {**query, "after": str(after)}, PAGE):
        last = [*last, *page][-count:]
        after = page[-1]["seq"]
    printing.rows(run, last, _COLUMNS)
    while follow:
        page = await _page(client, {**query, "after": str(after)}, PAGE)
        if page:
            after = page[-1]["seq"]
            printing.more(run, page, _COLUMNS)
        else:
            await asyncio.sleep(POLL_SECONDS)

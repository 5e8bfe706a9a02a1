"""audit verify: the launcher's own journal, held against itself and against what the server was told.

Whoever may read the journal (root of that host) runs this. Its chain shows that no line was changed, removed or moved; the
server's record of each launch shows whether the agent between the two swallowed or changed a result.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dagseal.cli import printing
from dagseal.cli.context import run_of
from dagseal.cli.exits import NotVerifiedError, VerificationFailedError
from integrity.errors import MalformedError, NotFoundError

if TYPE_CHECKING:
    from worker_cache.client import Client

_COLUMNS = ("line", "launch_id", "journal", "server", "finding")
_NOT_ENDED = ("unknown", "queued", "offered", "running", "lost")


def verify(
    ctx: typer.Context,
    journal: Path = typer.Option(..., "--journal", metavar="FILE", help="The launcher's journal.jsonl."),
    offline: bool = typer.Option(False, "--offline", help="Only the chain: ask no server."),
) -> None:
    """Verify a launcher's journal: its chain, and that the server knows the end of each launch as the launcher knows it."""
    run = run_of(ctx)
    entries, last = _read(journal)
    printing.verdict(run, True, f"{len(entries)} lines, one chain; the last is sha512:{last}")
    found = [] if offline else run.call(lambda client: _compare(client, entries))
    if found:
        printing.rows(run, found, _COLUMNS)
        raise VerificationFailedError(
            f"{journal}: the server knows {len(found)} launches otherwise than the launcher that ran them: look into the agent"
        )


def _read(path: Path) -> tuple[list[dict[str, Any]], str]:
    from integrity import canonical
    from launcher import journal

    try:
        data = path.read_bytes()
    except OSError as error:
        raise NotVerifiedError(f"{path}: {error.strerror}: run this as the launcher's account") from None
    whole = data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]  # a line without its end was never acknowledged
    last = ""
    try:
        for _, last in journal.verify(whole):  # noqa: B007 - the last one is what counts
            pass
        return [canonical.load(line, max_bytes=journal.MAX_LINE_BYTES) for line in whole], last
    except MalformedError as error:
        raise VerificationFailedError(f"{path}: verification FAILED: {error}") from None


async def _compare(client: Client, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where the two differ. A launch that was refused before it had a verified ticket has no result in the journal."""
    found = []
    for entry in (entry for entry in entries if entry["event"] == "result"):
        try:
            shown = (await client.get(f"/v1/launches/{entry['launch_id']}"))["state"]
        except NotFoundError:
            shown = "unknown"
        if shown != entry["state"]:
            finding = "the server was not told" if shown in _NOT_ENDED else "the server was told otherwise"
            row = {"line": entry["seq"], "launch_id": entry["launch_id"], "journal": entry["state"]}
            found.append({**row, "server": shown, "finding": finding})
    return found

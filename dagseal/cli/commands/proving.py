"""proof: what shows without the server, and for good, that a release was recorded."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from dagseal.cli import proving
from dagseal.cli.commands import releases
from dagseal.cli.context import run_of

if TYPE_CHECKING:
    from vocabulary.proofs import Proof
    from worker_cache.client import Client


def register(app: typer.Typer) -> None:
    app.command()(proof)


def proof(ctx: typer.Context, archive: str = typer.Argument(..., metavar="NAME@N")) -> None:
    """Write a release's proof file to stdout: verify it later with dagseal verify --proof FILE.

    It holds the signed manifest, the release's place in the log, and the log's checkpoint as of now; nothing of the code.
    """
    run, (name, number) = run_of(ctx), releases.numbered(archive, "proof")

    async def work(client: Client) -> Proof:
        return await proving.fetched(client, name, number)

    found = run.call(work)
    sys.stdout.buffer.write(found.to_bytes())
    sys.stdout.buffer.flush()
    run.note(f"{name}@{number}: leaf {found.index} of the log; it is good without this server, also in years")

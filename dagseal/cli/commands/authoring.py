"""author-statement, key author-new: what an author signs, and a key to sign it with."""

from __future__ import annotations

import sys

import typer

from dagseal.cli import printing
from dagseal.cli.context import run_of


def register(app: typer.Typer) -> None:
    app.command()(author_statement)


def author_statement(
    path: str = typer.Argument(..., metavar="PATH", help="What is to be pushed: a .py, a .zip, or a folder."),
    name: str | None = typer.Option(None, "--name", help="The archive's name, where it is not that of PATH."),
) -> None:
    """Write the bytes that an author signs to stdout, for push --author-signature:

    dagseal author-statement etl.py | ssh-keygen -Y sign -n dagseal.dev/author -f ~/.ssh/id_ed25519 > etl.py.sig
    """
    from dagseal.cli import archive_input
    from integrity.digests import Digest
    from vocabulary import authorship

    named = archive_input.read(path, name)
    sys.stdout.buffer.write(authorship.statement(named.name, Digest.of(named.data)))
    sys.stdout.buffer.flush()


def author_new(
    ctx: typer.Context,
    out: str = typer.Option(..., "--out", metavar="FILE", help="Write it to a new file, 0600: for push --sign-key."),
) -> None:
    """Make a key for an author. What is shown is its public half, for the authors_file of the workers."""
    from dagseal.cli import secret_input
    from integrity.fields import to_base64
    from vocabulary.keys import SigningKey

    key = SigningKey.generate()
    secret_input.write_new(out, key.seed.hex())
    shown = {"author_key": to_base64(key.public.raw), "author_key_id": key.public.key_id, "key_file": out}
    printing.item(run_of(ctx), shown)

"""backup and restore: the service's rows, archives and logs as one file. Both work on its state itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import typer

from dagseal.cli import printing
from dagseal.cli.context import run_of
from dagseal.cli.exits import NotVerifiedError, UsageError
from integrity.errors import ConflictError


def register(app: typer.Typer) -> None:
    app.command()(backup)
    app.command()(restore)


def backup(
    ctx: typer.Context,
    out: str = typer.Option(..., "--out", metavar="FILE|-", help="A new file, or stdout."),
    unsafe_with_keys: bool = typer.Option(
        False, "--unsafe-with-keys", help="Also the signing key and the row key: whoever has the file has every secret."
    ),
) -> None:
    """Write everything that the service has into one signed file, while it runs or not; without its keys.

    The settings are the API's (--config FILE of the API).
    """
    import asyncio
    from dataclasses import asdict

    from submit_api import backups, logging_setup, settings

    logging_setup.configure()
    run = run_of(ctx)
    loaded = settings.load(run.config)
    try:
        with _new_file(out) as file:
            done = asyncio.run(backups.backup(loaded, file, unsafe_with_keys=unsafe_with_keys))
    except OSError as error:
        raise NotVerifiedError(f"the backup could not be written: {error}") from None
    if not unsafe_with_keys:
        run.note(f"the keys are not in it: keep {loaded.signing_key_file} and {loaded.row_key_file} in another place")
    if out != "-":
        printing.item(run.without_config_file(), asdict(done))


def restore(
    ctx: typer.Context,
    file: str = typer.Argument(..., metavar="FILE|-", help="What 'dagseal backup' wrote."),
    keep_queued: bool = typer.Option(
        False,
        "--keep-queued",
        help="The service was stopped before the backup was made: what is queued has not run since.",
    ),
) -> None:
    """Put a backup into an empty state folder and an empty database, whole or not at all.

    The settings are the API's (--config FILE of the API); its key files are to be there, unless the backup holds them.
    """
    import asyncio
    from dataclasses import asdict

    from submit_api import logging_setup, restoring, settings

    logging_setup.configure()
    run = run_of(ctx)
    try:
        with _old_file(file) as source:
            done = asyncio.run(restoring.restore(settings.load(run.config), source, keep_queued=keep_queued))
    except OSError as error:
        raise NotVerifiedError(f"the backup could not be restored: {error}") from None
    run.note("what was revoked after the backup (tokens, releases, workers) is valid again: revoke it again")
    printing.item(run.without_config_file(), asdict(done))


@contextmanager
def _new_file(path: str) -> Iterator[IO[bytes]]:
    """A file that has its name only once it is whole and on disk; or stdout."""
    if path == "-":
        if sys.stdout.isatty():
            raise UsageError("--out -: a backup is not for a terminal, send it into a pipe or a file")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if os.path.lexists(path):
        raise ConflictError(f"{path} is there already: name a new file")
    partial = f"{path}.partial"
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(fd)
        os.link(partial, path, follow_symlinks=False)
    finally:
        os.unlink(partial)
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _old_file(path: str) -> Iterator[IO[bytes]]:
    if path == "-":
        yield sys.stdin.buffer
        return
    with open(path, "rb") as file:
        yield file

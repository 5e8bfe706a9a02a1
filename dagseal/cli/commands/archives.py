"""check, push, list, show, history, cat: archives and their releases."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from dagseal.cli import pages, printing
from dagseal.cli.commands import ownership, spreading
from dagseal.cli.commands.launches import seconds
from dagseal.cli.context import Run, run_of
from dagseal.cli.exits import REFUSED, UsageError, code_of

if TYPE_CHECKING:
    from worker_cache.client import Client

CHUNK_BYTES = 256 * 1024
BAR_FROM_BYTES = 1024 * 1024
_REFERENCE = re.compile(r"([^@]+)(?:@([1-9][0-9]{0,8}))?")
RELEASE_COLUMNS = ("archive", "number", "state", "digest", "size", "owner", "group", "submitted_by", "created_at")


def register(app: typer.Typer) -> None:
    app.command()(check)
    app.command()(push)
    app.command("list")(list_archives)
    app.command()(show)
    app.command()(history)
    app.command()(cat)


def check(ctx: typer.Context, paths: list[str] = typer.Argument(..., metavar="PATH...")) -> None:
    """Judge files or folders by the archive rules, here, without running or sending anything."""
    from dagseal.cli import archive_input
    from integrity.digests import Digest
    from integrity.errors import ArchiveError, MalformedError
    from vocabulary import archives

    run, found = run_of(ctx), []
    for path in paths:
        row: dict[str, Any] = {"path": path, "verdict": "ok", "rule": "", "entry": "", "detail": ""}
        try:
            named = archive_input.read(path)
            archive = archives.read(named.name, named.data)
            archives.check_identifiers(archive)
            row |= {"name": named.name, "digest": str(Digest.of(named.data)), "size": len(named.data)}
            row |= {"members": [member.name for member in archive.members]}
            row["detail"] = f"{len(archive.members)} file{'s' if len(archive.members) > 1 else ''}"
        except ArchiveError as error:
            row |= {"verdict": "refused", "rule": error.rule, "entry": error.entry, "detail": error.detail}
        except MalformedError as error:
            row |= {"verdict": "refused", "rule": "name", "detail": str(error)}
        found.append(row)
    printing.rows(run, found, ("path", "verdict", "rule", "entry", "detail", "digest"))
    if any(row["verdict"] != "ok" for row in found):
        raise typer.Exit(REFUSED)


def push(
    ctx: typer.Context,
    paths: list[str] = typer.Argument(..., metavar="PATH...", help="A .py, a .zip, or a folder, which is zipped."),
    group: str | None = typer.Option(None, "--group", help="The group that may push this archive, for a new one."),
    task_check: str | None = typer.Option(
        None, "--task-check", help="'archive' for a DAG whose description is not stable; else 'task'."
    ),
    isolation: str | None = typer.Option(
        None, "--isolation", help="'minimal', 'standard' or 'strict': not to be launched with less."
    ),
    require_caller: bool = typer.Option(
        False, "--require-caller", help="Whoever asks for a launch is to have its connections and variables too."
    ),
    name: str | None = typer.Option(None, "--name", help="Push under this name; only with one PATH."),
    sign_key: str | None = typer.Option(
        None, "--sign-key", metavar="FILE", help="Sign as the author, with a key of dagseal key author-new."
    ),
    author_signature: str | None = typer.Option(
        None, "--author-signature", metavar="FILE", help="Or a signature made before: see dagseal author-statement."
    ),
    wait: int = typer.Option(
        0, "--wait", min=0, metavar="SECONDS", help="Keep trying that long while the server is away."
    ),
    wait_workers: str | None = typer.Option(
        None, "--wait-workers", metavar="DURATION", help="Then wait so long, as 60s, until every worker holds it."
    ),
) -> None:
    """Submit archives. Each is judged here first; the server judges again and decides."""
    from dagseal.cli import archive_input, authoring
    from integrity.digests import Digest
    from integrity.errors import DagsealError
    from vocabulary import archives, authorship
    from vocabulary.claims import PROFILES

    if name is not None and len(paths) > 1:
        raise UsageError("--name goes with one PATH")
    if author_signature is not None and (len(paths) > 1 or sign_key is not None):
        raise UsageError("--author-signature goes with one PATH, and without --sign-key")
    if task_check not in (None, "task", "archive"):
        raise UsageError("--task-check is 'task' or 'archive'")
    if isolation not in (None, *PROFILES):
        raise UsageError(f"--isolation is one of {', '.join(PROFILES)}")
    patience = None if wait_workers is None else seconds(wait_workers)
    run, releases, failed = run_of(ctx), [], 0
    asked = {"group": group, "task_check": task_check, "isolation": isolation}
    query = {key: value for key, value in asked.items() if value}
    if require_caller:
        query["require_caller"] = "true"
    key = authoring.load(sign_key) if sign_key is not None else None
    for path in paths:
        try:
            named = archive_input.read(path, name)
            archives.read(named.name, named.data)
            digest, author = Digest.of(named.data), None
            if key is not None:
                author = authorship.sign(key, archive=named.name, digest=digest)
            elif author_signature is not None:
                author = authoring.given(author_signature, named.name, digest)
            new, release = push_one(run, named.name, named.data, digest, query, author, wait)
        except DagsealError as error:
            if len(paths) == 1:
                raise
            sys.stderr.write(f"dagseal: {path}: {printing.safe(str(error))}\n")
            failed = failed or code_of(error)
            continue
        releases.append(release)
        told = "submitted" if new else "is the newest release already"
        waits = ", and waits for approval" if release.get("state") == "pending" else ""
        run.note(f"{named.name}@{release.get('number')}: {told}{waits}")
    if patience is not None:
        spreading.wait(run, [release for release in releases if release["state"] == "active"], patience)
    if releases or not failed:
        printing.rows(run, releases, RELEASE_COLUMNS)
    if failed:
        raise typer.Exit(failed)


def push_one(
    run: Run, name: str, data: bytes, digest: Any, query: dict[str, str], author: bytes | None, wait: int
) -> tuple[bool, Any]:
    import asyncio
    import random
    import time

    from integrity.errors import FetchError
    from worker_cache import backoff

    async def work(client: Client) -> tuple[bool, Any]:
        deadline, delays = time.monotonic() + wait, backoff.delays(random.random)
        while True:
            try:
                with _progress(run, name, len(data)) as advance:
                    body = _pieces(data, advance)
                    return await client.put_archive(
                        name, body, size=len(data), digest=digest, query=query, author=author
                    )
            except FetchError:
                delay = next(delays)
                if time.monotonic() + delay > deadline:
                    raise
                await asyncio.sleep(delay)

    return run.call(work)


async def _pieces(data: bytes, advance: Any) -> AsyncIterator[bytes]:
    for offset in range(0, len(data), CHUNK_BYTES):
        piece = data[offset : offset + CHUNK_BYTES]
        yield piece
        advance(len(piece))


@contextmanager
def _progress(run: Run, name: str, size: int) -> Iterator[Any]:
    """A bar on stderr for what takes a moment, where somebody can see it."""
    if run.quiet or size < BAR_FROM_BYTES or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True, no_color=not run.colored(sys.stderr))
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(name, total=size)
        yield lambda count: progress.advance(task, count)


def reference(text: str) -> tuple[str, int | None]:
    """`NAME` or `NAME@N`. Raises `UsageError`."""
    from integrity import names
    from integrity.errors import MalformedError

    found = _REFERENCE.fullmatch(text)
    if not found:
        raise UsageError(f"{text!r} is not NAME or NAME@NUMBER, such as etl.py@3")
    try:
        return names.check("archive", found[1]), int(found[2]) if found[2] else None
    except MalformedError as error:
        raise UsageError(str(error)) from None


async def find_release(client: Client, name: str, number: int | None) -> Any:
    """That release; without a number the active one, or the latest where none is active."""
    from worker_cache.client import segment

    if number is None:
        archive = await client.get(f"/v1/archives/{segment(name)}")
        number = archive["active"] or archive["latest"]
    return await client.get(f"/v1/archives/{segment(name)}/releases/{number}")


def list_archives(ctx: typer.Context) -> None:
    """The archives that you may see."""
    run = run_of(ctx)
    found = run.call(pages.archives)
    printing.rows(run, found, ("name", "mode", "owner", "group", "active", "latest", "digest", "dags"))


def show(ctx: typer.Context, archive: str = typer.Argument(..., metavar="NAME[@N]|KIND:NAME")) -> None:
    """One release: the active one, or number N. With KIND (archive, connection, variable, queue) owner, group and mode."""
    run = run_of(ctx)
    if ":" in archive:
        path = ownership.path_of(*ownership.of(archive))
        printing.item(run, run.call(lambda client: client.get(path)), ownership.COLUMNS)
        return
    name, number = reference(archive)
    found = run.call(lambda client: find_release(client, name, number))
    if run.settings.output in ("json", "yaml"):
        printing.item(run, found)
        return
    printing.item(run, found, (*RELEASE_COLUMNS, "task_check", "isolation", "author_key_id", "manifest_digest"))
    tasks = [{"dag_id": dag["dag_id"], **task} for dag in found["dags"] for task in dag["tasks"]]
    sys.stdout.write("\n")
    printing.rows(run, tasks, ("dag_id", "task_id", "operator", "run_as_user", "queue", "connections", "digest"))


def history(ctx: typer.Context, name: str = typer.Argument(..., metavar="NAME")) -> None:
    """All releases of an archive, newest first."""
    run, (archive, number) = run_of(ctx), reference(name)
    if number is not None:
        raise UsageError("history takes the archive's NAME alone")
    found = run.call(lambda client: pages.releases(client, archive))
    printing.rows(run, found[::-1], (*RELEASE_COLUMNS, "revoke_reason"))


def cat(ctx: typer.Context, archive: str = typer.Argument(..., metavar="NAME[@N]")) -> None:
    """Write a release's bytes to stdout, after they were found to have its digest."""
    run, (name, number) = run_of(ctx), reference(archive)
    data = run.call(lambda client: _bytes_of(client, name, number))
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


async def _bytes_of(client: Client, name: str, number: int | None) -> bytes:
    release = await find_release(client, name, number)
    return await fetch_verified(client, release["digest"], release["size"])


async def fetch_verified(client: Client, digest_text: str, size: int) -> bytes:
    """A blob's bytes. Raises `DigestMismatchError` for others, `FetchError` for more or fewer than `size`."""
    from integrity.digests import Digest
    from integrity.errors import FetchError

    digest, data = Digest.parse(digest_text), bytearray()
    async for chunk in client.blob(digest):
        data += chunk
        if len(data) > size:
            raise FetchError(f"the server sent more than the {size} bytes of {digest}")
    whole = bytes(data)
    digest.require(Digest.of(whole), "what the server sent")
    return whole

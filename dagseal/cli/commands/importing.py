"""import-dags: an Airflow's dags folder, put on record archive by archive."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from dagseal.cli import printing
from dagseal.cli.commands import archives, ownership
from dagseal.cli.context import Run, run_of
from dagseal.cli.exits import REFUSED, UsageError, code_of

if TYPE_CHECKING:
    from dagseal.cli.importing import Planned
    from integrity.errors import DagsealError
    from worker_cache.client import Client

COLUMNS = ("source", "archive", "files", "owner", "state", "detail")
OWNER_RULES = ("folder", "default-args")


def register(app: typer.Typer) -> None:
    app.command("import-dags")(import_dags)


def import_dags(
    ctx: typer.Context,
    folder: str = typer.Argument(..., metavar="FOLDER", help="Airflow's dags folder."),
    plan: bool = typer.Option(False, "--plan", help="Say what would be pushed; push nothing, ask no server."),
    owner: str | None = typer.Option(None, "--owner", help="The owner of all; else you are, who push them."),
    owner_from: str | None = typer.Option(
        None,
        "--owner-from",
        help="'folder': the DAG file's first subfolder; 'default-args': the owner that its text names.",
    ),
    owner_map: list[str] = typer.Option([], "--owner-map", metavar="FOUND=PRINCIPAL", help="May be given again."),
    group: str | None = typer.Option(None, "--group", help="The group that may push them, for new ones."),
    task_check: str | None = typer.Option(None, "--task-check", help="As of push."),
) -> None:
    """Record an existing dags folder: each DAG file becomes an archive, with the modules of the folder that it imports.

    Which files are DAG files is Airflow's rule (.airflowignore and all). Once more is as once: what is the newest release
    already stays it. A file that cannot be recorded is reported, and the others are. Giving archives to owners takes an
    administrator.
    """
    from integrity.errors import ArchiveError, DagsealError

    if owner is not None and owner_from is not None:
        raise UsageError("--owner or --owner-from, not both")
    if owner_from not in (None, *OWNER_RULES):
        raise UsageError(f"--owner-from is one of {', '.join(OWNER_RULES)}")
    if task_check not in (None, "task", "archive"):
        raise UsageError("--task-check is 'task' or 'archive'")
    if not os.path.isdir(folder):
        raise UsageError(f"{folder} is no folder")
    owner_of = _owner_rule(owner, owner_from, owner_map)
    query = {key: value for key, value in {"group": group, "task_check": task_check}.items() if value}
    run, rows, failed = run_of(ctx), [], 0
    read = partial(_read, folder)
    for source, found in _planned(folder, read).items():
        row: dict[str, Any] = {
            "source": source,
            "archive": "",
            "files": [],
            "owner": "",
            "state": "failed",
            "detail": "",
        }
        rows.append(row)
        try:
            if isinstance(found, DagsealError):
                raise found
            whose = owner_of(found)
            row |= {"archive": found.name, "files": sorted(found.members) or [found.name], "owner": whose or ""}
            row["state"] = "planned" if plan else _record(run, found, found.data(read), query, whose)
        except DagsealError as error:
            if isinstance(error, ArchiveError) and error.rule == "no-dag-found":
                row |= {"state": "no dag", "detail": "it defines no DAG; what imports it has it along"}
                continue
            row["detail"] = str(error)
            failed = failed or code_of(error)
    printing.rows(run, rows, COLUMNS)
    if failed:
        count = sum(row["state"] == "failed" for row in rows)
        sys.stderr.write(f"dagseal: {count} of {len(rows)} files were not recorded: see above, and run it again\n")
        raise typer.Exit(failed or REFUSED)


def _planned(folder: str, read: Callable[[str], bytes]) -> dict[str, Planned | DagsealError]:
    """By DAG file; in the place of one that cannot be an archive, why."""
    from dagseal.cli import importing
    from integrity.errors import ConflictError, DagsealError

    try:
        with contextlib.redirect_stdout(sys.stderr):  # Airflow logs there from its import on
            from dagseal.airflow import dags_folder

            sources = dags_folder.dag_files(os.path.realpath(folder))
    except ModuleNotFoundError as error:
        raise UsageError(
            f"Airflow is not installed here ({error.name}), by whose rule a file is a DAG file: pip install 'dagseal[airflow]'"
        ) from None
    if not sources:
        raise UsageError(f"Airflow takes no file of {folder} for a DAG file")
    files = importing.files_of(folder)
    found: dict[str, Planned | DagsealError] = {}
    for source in sources:
        try:
            found[source] = importing.plan(source, files, read, frozenset(sources))
        except DagsealError as error:
            found[source] = error
    whole = [one for one in found.values() if isinstance(one, importing.Planned)]
    for name, same in importing.collisions(whole).items():
        for source in same:
            found[source] = ConflictError(f"{', '.join(same)} would all be the archive {name}: rename all but one")
    return found


def _owner_rule(owner: str | None, owner_from: str | None, owner_map: list[str]) -> Callable[[Planned], str | None]:
    from integrity import names

    table = dict(entry.split("=", 1) for entry in owner_map if "=" in entry)
    if len(table) != len(owner_map):
        raise UsageError("--owner-map is FOUND=PRINCIPAL, each FOUND once")

    def rule(planned: Planned) -> str | None:
        if owner_from is None:
            return None if owner is None else names.check("principal", owner)
        if owner_from == "folder":
            first, slash, _ = planned.source.partition("/")
            found = {first} if slash else set()
        else:
            found = set(planned.owners)
        if len(found) != 1:
            what = f"names {len(found)} owners ({', '.join(sorted(found))})" if found else "names no owner"
            raise UsageError(f"{planned.source} {what} by {owner_from}: record it with --owner, or push it yourself")
        (one,) = found
        return names.check("principal", table.get(one, one))

    return rule


def _record(run: Run, planned: Planned, data: bytes, query: dict[str, str], owner: str | None) -> str:
    """What became of it. The same bytes, and the same owner, are not recorded again."""
    from integrity.digests import Digest
    from vocabulary import archives as rules

    rules.read(planned.name, data)
    new, release = archives.push_one(run, planned.name, data, Digest.of(data), query, None, 0)
    waits = ", waits for approval" if release.get("state") == "pending" else ""
    if owner is not None:
        run.call(partial(_give, planned.name, owner))
    return ("recorded" if new else "unchanged") + waits


async def _give(name: str, owner: str, client: Client) -> None:
    path = ownership.path_of("archive", name)
    if (await client.get(path))["owner"] != owner:
        await client.send("PATCH", path, {"owner": owner})


def _read(folder: str, path: str) -> bytes:
    from dagseal.cli.archive_input import MAX_BYTES

    try:
        with open(os.path.join(folder, path), "rb") as file:
            return file.read(MAX_BYTES)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None

"""diff: what changed from one release to another, or to a file that was not pushed yet.

The server compares the signed manifests. A file is compared by its members only, here, without being sent or run: which dags
it defines is for `push` to find out. The exit code is 0 whether something differs or not, as 1 means that a verification
failed; `-o json` has `same`.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

from dagseal.cli import printing
from dagseal.cli.commands.archives import fetch_verified, reference
from dagseal.cli.commands.releases import path
from dagseal.cli.context import Run, run_of
from dagseal.cli.exits import UsageError

if TYPE_CHECKING:
    from worker_cache.client import Client

_COLUMNS = ("change", "what", "name", "before", "after")
_KINDS = {"settings": "setting", "members": "file", "dags": "dag", "tasks": "task"}
_SETS = {"connections": "connection", "unix_users": "unix user"}


def register(app: typer.Typer) -> None:
    app.command()(diff)


def diff(
    ctx: typer.Context,
    name: str = typer.Argument(..., metavar="NAME"),
    first: str | None = typer.Argument(None, metavar="[A]", help="A release's number, or a file or folder."),
    second: str | None = typer.Argument(None, metavar="[B]", help="The same; then A is a number."),
    text: bool = typer.Option(False, "--text", help="Also the lines that changed, of .py files."),
) -> None:
    """What changed from A to B. With A alone: from the active release to A. With neither: to the newest."""
    run, (archive, said) = run_of(ctx), reference(name)
    if said is not None:
        raise UsageError(f"diff takes the archive's NAME and numbers: dagseal diff {archive} {said}")
    to = second or first
    before = first if second is not None else None
    if before is not None and not before.isdecimal():
        raise UsageError("A is a release's number; a file can only be B")
    if to is None or to.isdecimal():
        found = run.call(lambda client: _of_releases(client, archive, before, to, text))
    else:
        found = run.call(lambda client: _with_file(client, archive, before, to, text))
    show(run, found)


def show(run: Run, found: Mapping[str, Any]) -> None:
    """A difference as a table, or whole; then the lines of text, if there are any."""
    if run.settings.output in ("json", "yaml"):
        printing.item(run, found)
        return
    run.note(f"{found['archive']}: {found['before']} -> {found['after']}: {'the same' if found['same'] else 'differs'}")
    printing.rows(run, list(_rows(found)), _COLUMNS)
    for lines in found.get("text", {}).values():
        sys.stdout.write("\n" + "".join(f"{printing.safe(line)}\n" for line in lines))


def _rows(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    only_digest = 0
    for key, what in _SETS.items():
        for change in ("gained", "lost"):
            yield from ({"change": change, "what": what, "name": name} for name in found.get(key, {}).get(change, ()))
    for key, what in _KINDS.items():
        for one in found.get(key, ()):
            if one["change"] == "digest":
                only_digest += 1
                continue
            row = {"change": one["change"], "what": what, "name": ".".join(one["name"])}
            yield row | {
                side: ", ".join(f"{k} {_short(v)}" for k, v in one[side].items()) for side in ("before", "after")
            }
    if only_digest:
        yield {
            "change": "digest",
            "what": "task",
            "name": f"{only_digest} more, as every digest binds the archive's bytes",
        }


def _short(value: object) -> str:
    return ", ".join(value) or "none" if isinstance(value, list) else "none" if value is None else str(value)


async def of_release(client: Client, archive: str, number: int, before: str | None = None) -> Any:
    """The server's answer: what changed in this release."""
    query = {"against": before} if before else {}
    return await client.get(f"{path(archive)}/releases/{number}/diff", query)


async def _of_releases(client: Client, archive: str, before: str | None, to: str | None, text: bool) -> Any:
    number = int(to) if to is not None else (await client.get(path(archive)))["latest"]
    found = await of_release(client, archive, number, before)
    if text:
        sides = [await _members(client, archive, found[side]) for side in ("before", "after")]
        found["text"] = dict(_texts(*sides, labels=(f"{archive}@{found['before']}", f"{archive}@{found['after']}")))
    return found


async def _with_file(client: Client, archive: str, before: str | None, file: str, text: bool) -> dict[str, Any]:
    from dataclasses import asdict

    from dagseal.cli import archive_input
    from integrity.digests import Digest
    from vocabulary import archives, differences
    from vocabulary.manifest import Member

    def listed(members: Mapping[str, bytes]) -> list[Member]:
        return [Member(name=name, size=len(data), digest=Digest.of(data)) for name, data in members.items()]

    named = archive_input.read(file, archive)
    ours = {member.name: member.data for member in archives.read(named.name, named.data).members}
    if before is None:
        known = await client.get(path(archive))
        before = str(known["active"] or known["latest"])
    theirs = await _members(client, archive, int(before))
    changes = [asdict(change) for change in differences.of_members(listed(theirs), listed(ours))]
    found = {"archive": archive, "before": int(before), "after": file, "same": not changes, "members": changes}
    if text:
        found["text"] = dict(_texts(theirs, ours, labels=(f"{archive}@{before}", file)))
    return found


async def _members(client: Client, archive: str, number: int) -> dict[str, bytes]:
    """The files of a release, from bytes that have its digest."""
    from vocabulary import archives

    release = await client.get(f"{path(archive)}/releases/{number}")
    data = await fetch_verified(client, release["digest"], release["size"])
    return {member.name: member.data for member in archives.read(archive, data).members}


def _texts(
    before: Mapping[str, bytes], after: Mapping[str, bytes], *, labels: tuple[str, str]
) -> Iterator[tuple[str, list[str]]]:
    """The unified diff of each .py file that changed, was added or was removed."""
    for name in sorted({*before, *after}):
        old, new = before.get(name, b""), after.get(name, b"")
        if name.endswith(".py") and old != new:
            a, b = (side.decode("utf-8", "backslashreplace").splitlines() for side in (old, new))
            yield name, list(difflib.unified_diff(a, b, f"{labels[0]}/{name}", f"{labels[1]}/{name}", lineterm=""))

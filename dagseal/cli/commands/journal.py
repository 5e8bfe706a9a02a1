"""audit verify --journal: the launcher's own journal, held against itself and against what the server was told.

Whoever may read the journal (root of that host) runs this. Its chain shows that no line was changed, removed or moved; the
server's record of each launch shows whether the agent between the two swallowed or changed a result, and, where the
whole folder is given, its record of claims shows whether lines were taken off the journal's end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
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
_PAGE = 1000
_SEAM_US = 60_000_000  # a claim may stand at the end of a file, and reach the server when the next has begun


@dataclass(slots=True)
class Told:
    """What a journal says: `launches` by id, each by the line that counts, its last claim or its result."""

    files: int = 0
    lines: int = 0
    first: dict[str, Any] = field(default_factory=dict)
    last_hash: str = ""
    claimed: set[str] = field(default_factory=set)
    granted: set[str] = field(default_factory=set)
    launches: dict[str, dict[str, Any]] = field(default_factory=dict)

    def hear(self, entry: dict[str, Any]) -> None:
        self.lines += 1
        self.first = self.first or entry
        launch_id = entry.get("launch_id", "")
        match entry.get("event"):
            case "claim":
                self.claimed.add(launch_id)
                self.launches[launch_id] = entry
            case "grant":
                self.granted.add(launch_id)
            case "result" if launch_id in self.granted and entry.get("state") == "refused":
                pass  # its ticket was tried again
            case "result":
                self.launches[launch_id] = entry

    def __str__(self) -> str:
        first = self.first.get("seq", 0)
        beginning = f", from line {first} on, after sha512:{self.first['prev']}" if first > 1 else ""
        return f"{self.lines} lines in {self.files} files, one chain{beginning}; the last is sha512:{self.last_hash}"


def verify(ctx: typer.Context, journal: Path, offline: bool) -> None:
    """Verify a launcher's journal: its chain, and that the server knows the end of each launch as the launcher knows it."""
    run = run_of(ctx)
    told = _read(journal)
    printing.verdict(run, True, str(told))
    found: list[dict[str, Any]] = []
    whole = journal.is_dir()
    if not offline and run.call(lambda client: _compare(client, told, whole=whole)):
        told = _read(journal)  # what happened meanwhile is no difference
        found = run.call(lambda client: _compare(client, told, whole=whole))
    if found:
        printing.rows(run, found, _COLUMNS)
        raise VerificationFailedError(
            f"{journal}: the server knows {len(found)} launches otherwise than the launcher that ran them: look into the agent"
            " and into who may write the journal"
        )


def _read(path: Path) -> Told:
    from notary import journal

    told, last, one = Told(), None, path
    try:
        for one in _files(path):
            last = last or journal.before(one.name)
            follows = last
            with one.open("rb") as file:
                for entry, place in journal.verify(journal.lines_of(file), last):
                    told.hear(entry)
                    last = place
            if last == follows != journal.START:
                raise MalformedError("journal: no line is left in this file")
            told.files += 1
    except OSError as error:
        raise NotVerifiedError(f"{one}: {error.strerror}: run this as the launcher's account") from None
    except MalformedError as error:
        raise VerificationFailedError(f"{one}: verification FAILED: {error}") from None
    told.last_hash = str(last[1]) if last else ""
    return told


def _files(path: Path) -> Iterator[Path]:
    """Of a folder all, in their order."""
    import os

    from notary import journal

    if not path.is_dir():
        yield path
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        names = journal.names(fd)
    finally:
        os.close(fd)
    if not names:
        raise NotVerifiedError(f"{path}: no journal is there: give the launcher's folder of journal files")
    yield from (path / name for name in names)


async def _compare(client: Client, told: Told, *, whole: bool) -> list[dict[str, Any]]:
    """Where the two differ. A launch that was refused before it had a verified ticket has no result in the journal."""
    found: list[dict[str, Any]] = []
    workers = set()
    for launch_id, entry in told.launches.items():
        row = {"line": entry["seq"], "launch_id": launch_id, "journal": entry.get("state", "claimed")}
        try:
            launch = await client.get(f"/v1/launches/{launch_id}")
        except NotFoundError:
            launch = {"state": "unknown", "worker": None, "exit_code": None}
        workers.add(launch["worker"])
        if "state" in entry:
            finding = "the server was not told" if launch["state"] in _NOT_ENDED else "the server was told otherwise"
            differs = launch["state"] != entry["state"]
        else:
            finding, differs = "the journal lost its end", launch["exit_code"] is not None
        if differs:
            found.append({**row, "server": launch["state"], "finding": finding})
    workers.discard(None)
    if not workers:
        raise NotVerifiedError(
            "the server knows no launch of this journal: only its chain was verified, as with --offline"
        )
    for name in sorted(workers) if whole else ():
        for launch_id in await _claims(client, name, told):
            row = {"launch_id": launch_id, "journal": "nothing", "server": "claimed"}
            found.append({**row, "finding": "the journal lost its claim"})
    return found


async def _claims(client: Client, worker: str, told: Told) -> list[str]:
    """The launches whose claim, signed by that worker's launcher, the server has and the journal has not."""
    since = told.first["at"] + (_SEAM_US if told.first["seq"] > 1 else 0)
    found, after = [], 0
    while page := (await client.get("/v1/audit", {"after": str(after), "limit": str(_PAGE), "principal": worker}))[
        "events"
    ]:
        after = page[-1]["seq"]
        for event in page:
            launch_id = event["object"].removeprefix("launch:")
            accepted = (event["action"], event["verdict"]) == ("launch.claim", "accepted")
            if accepted and event["at"] >= since and launch_id not in told.claimed:
                found.append(launch_id)
    return found

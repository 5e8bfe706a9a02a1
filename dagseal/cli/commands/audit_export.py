"""audit export: the audit log as lines on stdout, for another system to keep.

Promise: stdout gets whole lines only, each as the server sent it. Exit code 0 means that all was written, up to the newest
event of the beginning; with any other it broke off, and the message says after which event to go on.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import AsyncIterable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

import typer

from dagseal.cli.context import Run, run_of
from dagseal.cli.exits import UsageError
from integrity.errors import FetchError

if TYPE_CHECKING:
    from worker_cache.client import Client

FORMATS = {"jsonl": "application/jsonl", "cef": "text/x-cef"}
_CEF_NUMBER = re.compile(rb" externalId=([0-9]{1,16}) ")


def export(
    ctx: typer.Context,
    form: str = typer.Option("jsonl", "--format", metavar="jsonl|cef", help="JSON Lines, or Common Event Format."),
    after: int = typer.Option(0, "--after", min=0, metavar="SEQ", help="Go on after this event."),
    object: str | None = typer.Option(None, "--object"),
    principal: str | None = typer.Option(None, "--principal"),
    action: str | None = typer.Option(None, "--action"),
    verdict: str | None = typer.Option(None, "--verdict", metavar="accepted|refused"),
    since: str | None = typer.Option(None, "--since", metavar="TIME", help="As 2027-01-15T08:00:00Z; included."),
    until: str | None = typer.Option(None, "--until", metavar="TIME", help="Not included."),
) -> None:
    """All events, or those chosen, as lines on stdout."""
    if form not in FORMATS:
        raise UsageError(f"--format is to be one of {', '.join(FORMATS)}")
    query = filters(after, object, principal, action, verdict, since, until)
    run = run_of(ctx)
    run.call(lambda client: _export(run, client, form, query))


def filters(
    after: int,
    about: str | None,
    principal: str | None,
    action: str | None,
    verdict: str | None,
    since: str | None,
    until: str | None,
) -> dict[str, str]:
    """The query of `GET /v1/audit`, of what was given."""
    given = {
        "object": about,
        "principal": principal,
        "action": action,
        "verdict": verdict,
        "since": since,
        "until": until,
    }
    return {"after": str(after), **{key: value for key, value in given.items() if value is not None}}


async def _export(run: Run, client: Client, form: str, query: dict[str, str]) -> None:
    copied = Copied(form, int(query["after"]))
    try:
        async with aclosing(client.audit_lines(FORMATS[form], query)) as lines:
            await copied.copy(lines)
    except FetchError as error:
        raise FetchError(f"{error}; {copied}") from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise FetchError(f"whoever read the export went away; {copied}") from None
    except OSError as error:
        raise FetchError(f"the export cannot be written: {error.strerror}; {copied}") from None
    run.note(f"{copied.lines} events, up to {copied.last}")


class Copied:
    """What was written to stdout so far: `last` is the number of the last event."""

    def __init__(self, form: str, after: int) -> None:
        self._form = form
        self.lines, self.last = 0, after

    def __str__(self) -> str:
        return f"the export broke off: go on with --after {self.last}"

    async def copy(self, parts: AsyncIterable[bytes]) -> None:
        """To the end. Raises `FetchError` when that is not the end of a line."""
        rest = b""
        async for part in parts:
            whole, end, rest = (rest + part).rpartition(b"\n")
            if end:
                sys.stdout.buffer.write(whole + end)
                sys.stdout.buffer.flush()
                self.lines += whole.count(b"\n") + 1
                self.last = self._number(whole.rpartition(b"\n")[2])
        if rest:
            raise FetchError("the last line of the server's answer has no end")
        with suppress(OSError):  # a pipe or a terminal cannot be synced
            os.fsync(sys.stdout.fileno())

    def _number(self, line: bytes) -> int:
        try:
            if self._form == "cef":
                return int(_CEF_NUMBER.search(line)[1])  # type: ignore[index]
            return int(json.loads(line)["seq"])
        except (ValueError, KeyError, TypeError):
            raise FetchError("the server's answer is not an audit log") from None

"""What one run of the command line knows: the global options, and what follows from them."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import typer

from dagseal.cli import settings
from dagseal.cli.exits import UsageError
from dagseal.cli.settings import CliSettings

if TYPE_CHECKING:
    from worker_cache.client import Client

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Run:
    """The global options as they were given. `settings` reads the other sources when it is first asked for."""

    config: str | None = None
    server: str | None = None
    token_file: str | None = None
    output: str | None = None
    color: str | None = None
    quiet: bool = False
    verbose: bool = False
    no_input: bool = False
    loaded: CliSettings | None = None

    @property
    def settings(self) -> CliSettings:
        if self.loaded is None:
            flags = {
                "server": self.server,
                "token_file": self.token_file,
                "output": self.output,
                "color": self.color,
            }
            self.loaded = settings.load(flags, os.environ, self.config)
        return self.loaded

    def without_config_file(self) -> Run:
        """For commands whose --config is another process's file: the command line's own file is then the usual one."""
        return Run(
            server=self.server,
            token_file=self.token_file,
            output=self.output,
            color=self.color,
            quiet=self.quiet,
            verbose=self.verbose,
            no_input=self.no_input,
        )

    def colored(self, stream: object = None) -> bool:
        """Whether to send colours to this stream (stdout if not said)."""
        wanted = self.settings.color
        if wanted != "auto":
            return wanted == "on"
        file = stream or sys.stdout
        return not os.environ.get("NO_COLOR") and bool(getattr(file, "isatty", lambda: False)())

    def call(self, work: Callable[[Client], Awaitable[T]], *, anonymous: bool = False) -> T:
        """Run `work` with a client of the API. Raises what the client raises, or `UsageError` without a token."""
        import asyncio

        from worker_cache.client import Client
        from worker_cache.settings import read_token
        from worker_cache.transport import Transport

        found = self.settings
        if found.token_file is None and not anonymous:
            raise UsageError("no token: set DAGSEAL_TOKEN_FILE or --token-file to a file with your token (mode 0600)")
        token = read_token(found.token_file) if found.token_file else None

        async def within() -> T:
            async with Transport(
                found.server, token, unsafe_http=found.unsafe_http, ca_file=found.ca_file
            ) as transport:
                return await work(Client(transport))

        return asyncio.run(within())

    def note(self, text: str) -> None:
        """One line for a person, on stderr; not with -q."""
        if not self.quiet:
            sys.stderr.write(f"{text}\n")

    def confirm(self, question: str) -> None:
        """Ask on the terminal. Raises `UsageError` where nobody can be asked, `typer.Abort` for no."""
        if self.no_input or not sys.stdin.isatty():
            raise UsageError(f"{question} Nobody can be asked here: confirm it by an option, see --help")
        if not typer.confirm(question, err=True):
            raise typer.Abort


def run_of(ctx: typer.Context) -> Run:
    """The run that this command belongs to."""
    found = ctx.find_object(Run)
    if found is None:
        raise RuntimeError("the command was started without the main program")
    return found

"""The command `dagseal`: global options, the groups of commands, and what becomes of an error.

Promise: the user's mistakes end in one or two sentences on stderr and an exit code of `dagseal.cli.exits`, never in a
traceback. A traceback is a bug of ours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer

from dagseal.cli import exits, printing
from dagseal.cli.arguments import globals_first
from dagseal.cli.commands import (
    approving,
    archives,
    audit,
    authoring,
    backups,
    checks,
    differing,
    importing,
    launches,
    ownership,
    people,
    proving,
    publishers,
    quickstart,
    releases,
    secrets,
    services,
    tokens,
    verifying,
    workers,
)
from dagseal.cli.context import Run
from integrity.errors import DagsealError

# Typer brings its own click or uses the installed one: the class is found by its name, in either.
_USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"dagseal {version('dagseal')}\n")
        raise typer.Exit


def _globals(
    ctx: typer.Context,
    output: str | None = typer.Option(None, "-o", "--output", metavar="table|json|yaml|plain"),
    color: str | None = typer.Option(None, "--color", metavar="auto|on|off"),
    quiet: bool = typer.Option(False, "-q", "--quiet", help="No notes on stderr, only errors."),
    verbose: bool = typer.Option(False, "-v", "--verbose", help="More notes on stderr."),
    config: str | None = typer.Option(None, "--config", metavar="FILE", help="Settings, TOML."),
    server: str | None = typer.Option(None, "--server", metavar="URL", help="Or DAGSEAL_SERVER."),
    token_file: str | None = typer.Option(None, "--token-file", metavar="FILE", help="Or DAGSEAL_TOKEN_FILE."),
    no_input: bool = typer.Option(False, "--no-input", help="Never ask anything."),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """The verified-code half of Apache Airflow: submit, verify and launch exactly what was submitted.

    Exit codes: 0 ok, 1 verification failed, 2 usage, 3 could not verify, 4 not authorised, 5 not found, 6 conflict,
    7 refused, 8 the task failed, 75 try again, 130 interrupted.
    """
    ctx.obj = Run(
        config=config,
        server=server,
        token_file=token_file,
        output=output,
        color=color,
        quiet=quiet,
        verbose=verbose,
        no_input=no_input,
    )


def build() -> typer.Typer:
    """The whole command, in the order of its help."""
    app = typer.Typer(
        name="dagseal",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=_SETTINGS,
    )
    app.callback()(_globals)
    code = (archives, importing, authoring, releases, differing, approving, verifying, proving)
    access = (secrets, tokens, publishers, workers, people, ownership)
    for group in (quickstart, services, *code, launches, *access, audit, checks, backups):
        group.register(app)
    return app


def run(argv: Sequence[str]) -> int:
    """Carry out one command; its exit code."""
    try:
        command = typer.main.get_command(build())
        result = command.main(args=globals_first(argv), prog_name="dagseal", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else exits.OK
    except _USAGE_ERROR as error:
        _say(error.format_message())
        return exits.USAGE
    except DagsealError as error:
        _say(str(error))
        return exits.code_of(error)
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted")
        return exits.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away: nothing is wrong, and there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return exits.OK


def _say(text: str) -> None:
    sys.stderr.write(f"dagseal: {printing.safe(text)}\n")


def main() -> NoReturn:
    """The entry point of the installed command."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()

"""serve, agent, launcher, dag-processor, quickstart: they become another process, or start some."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from dagseal.cli.context import run_of
from dagseal.cli.exits import UsageError


def register(app: typer.Typer) -> None:
    app.command()(serve)
    app.command()(agent)
    app.command()(launcher)
    app.command("dag-processor")(dag_processor)
    app.command()(quickstart)


def serve(ctx: typer.Context) -> None:
    """Run the REST service (settings: --config FILE)."""
    _become([sys.executable, "-m", "submit_api", *_config(ctx, needed=False)])


def agent(ctx: typer.Context) -> None:
    """Run the agent of this host (settings: --config FILE)."""
    _become([sys.executable, "-m", "worker_cache", *_config(ctx, needed=True)])


def launcher(
    ctx: typer.Context,
    rootless: bool = typer.Option(False, "--rootless", help="As an ordinary user, with subordinate ids (newuidmap)."),
) -> None:
    """Run the privileged launcher of this host (settings: --config FILE).

    The file is run, not the module: with -s -P -S no third-party package is on the privileged process's path.
    """
    from importlib.util import find_spec

    found = find_spec("launcher")
    if found is None or not found.submodule_search_locations:
        raise UsageError("the package launcher is not installed here")
    main = os.path.join(found.submodule_search_locations[0], "__main__.py")
    _become([sys.executable, "-s", "-P", "-S", main, *_config(ctx, needed=True), *["--rootless"] * rootless])


def dag_processor(
    num_runs: int = typer.Option(-1, "-n", "--num-runs", help="End when each file was parsed so often."),
    bundle_name: list[str] = typer.Option([], "-B", "--bundle-name", help="Only this bundle; may be given again."),
) -> None:
    """Airflow's dag processor, parsing through the launcher (settings: airflow.cfg). Instead of `airflow dag-processor`."""
    try:
        from dagseal.airflow import dag_processing
    except ModuleNotFoundError as error:
        raise UsageError(f"Airflow is not installed here ({error.name}): pip install 'dagseal[airflow]'") from None
    dag_processing.start(num_runs=num_runs, bundle_names=bundle_name)


def quickstart(
    folder: str = typer.Option(..., "--dir", metavar="DIR", help="A new folder for everything that is started."),
    port: int | None = typer.Option(None, "--port", min=1, max=65535, help="Of the service; default: a free one."),
    as_user: str | None = typer.Option(None, "--as-user", help="Unix user of the demonstration's task."),
    keep: bool = typer.Option(False, "--keep", help="Stay until SIGTERM."),
) -> None:
    """Start everything on this host, tell the whole story once, and stop (or --keep)."""
    from pathlib import Path

    from dagseal.quickstart import quickstart as start

    raise typer.Exit(start(Path(folder), port=port, as_user=as_user, keep=keep, say=_say))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _config(ctx: typer.Context, *, needed: bool) -> list[str]:
    path = run_of(ctx).config
    if path is None and needed:
        raise UsageError("--config FILE is needed: the settings of that process")
    return ["--config", path] if path else []


def _become(words: list[str]) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(words[0], words)  # noqa: S606 - a fixed list, no shell: this process becomes that one

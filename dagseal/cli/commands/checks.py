"""fsck, doctor, config: is the state whole, is the host fit, where do settings come from."""

from __future__ import annotations

from typing import Any

import typer

from dagseal.cli import printing
from dagseal.cli.context import Run, run_of
from dagseal.cli.exits import NotVerifiedError, UsageError, VerificationFailedError

DEFAULT_SOCKET = "/run/dagseal/launcher.sock"


def register(app: typer.Typer) -> None:
    app.command()(fsck)
    app.command()(doctor)
    config = typer.Typer(no_args_is_help=True)
    config.command("list")(config_list)
    app.add_typer(config, name="config", help="This command's settings.")


def fsck(
    ctx: typer.Context,
    cache: str | None = typer.Option(None, "--cache", metavar="DIR", help="An agent's cache, on its host."),
    repair: bool = typer.Option(
        False,
        "--repair",
        help="Remove what a crash left; of a cache also move wrong bytes aside. The API must be stopped.",
    ),
) -> None:
    """Check stored state byte by byte: the API's (--config FILE of the API), or an agent's --cache. 1 for damage.

    What a crash may leave is a warning, and clean.
    """
    run = run_of(ctx)
    found = _server(run.config, repair) if cache is None else _cache(cache, repair)
    run = run.without_config_file() if cache is None else run
    damage = [finding for finding in found if finding["level"] == "damage" and not finding["repaired"]]
    if run.settings.output in ("json", "yaml"):
        printing.item(run, {"clean": not damage, "findings": found})
    else:
        for finding in found:
            text = f"{finding['level']}: {finding['rule']}: {finding['subject']}: {finding['detail']}"
            printing.verdict(run, finding not in damage, text + (" (repaired)" if finding["repaired"] else ""))
        printing.verdict(run, not damage, f"fsck: {len(damage)} damaged, {len(found) - len(damage)} other findings")
    if damage:
        raise VerificationFailedError(f"fsck: not clean: {damage[0]['subject']}: {damage[0]['detail']}")


def _cache(folder: str, repair: bool) -> list[dict[str, Any]]:
    from worker_cache import fsck as cache_fsck

    try:
        report = cache_fsck.check(folder, repair=repair)
    except OSError as error:
        raise NotVerifiedError(f"{folder} cannot be read: {error}") from None
    return [
        {
            "level": "damage" if finding.is_damage else "warning",
            "rule": finding.kind,
            "subject": finding.path,
            "detail": finding.detail,
            "repaired": finding.repaired,
        }
        for finding in report.findings
    ]


def _server(config: str | None, repair: bool) -> list[dict[str, Any]]:
    import asyncio
    from dataclasses import asdict

    from submit_api import fsck as server_fsck
    from submit_api import settings

    try:
        return [asdict(found) for found in asyncio.run(server_fsck.fsck(settings.load(config), repair=repair))]
    except OSError as error:
        raise NotVerifiedError(f"the state cannot be read: {error}") from None


def doctor(
    ctx: typer.Context,
    user: list[str] = typer.Option([], "--user", help="A unix user that tasks run as; may be given more than once."),
    launcher_config: str | None = typer.Option(
        None, "--launcher-config", metavar="FILE", help="Take the unix users and the socket from the launcher's policy."
    ),
    launcher_socket: str | None = typer.Option(None, "--launcher-socket", metavar="PATH"),
    offline: bool = typer.Option(False, "--offline", help="Leave out the server and the launcher."),
    airflow: bool = typer.Option(
        False, "--airflow", help="Instead: does this host's Airflow run all through dagseal? Prints the lines to add."
    ),
    component: str = typer.Option(
        "",
        "--component",
        metavar="NAME",
        help="Only what this one of Airflow's needs: scheduler, worker, dag-processor, triggerer or api-server.",
    ),
) -> None:
    """Is this host fit to run tasks? Each finding says what to do. 1 when something is not right."""
    from dagseal.cli import doctoring, trying

    run = run_of(ctx)
    if airflow:
        _airflow(run, component)
        return
    if component:
        raise UsageError("--component is one of Airflow's: give --airflow, too")
    users, socket, needed = list(user), launcher_socket or DEFAULT_SOCKET, {"standard"}
    notary: list[str] = []
    if launcher_config is not None:
        from launcher import policy

        found = policy.load(launcher_config)
        users += sorted(found.users.allowed - set(users))
        socket = launcher_socket or found.socket
        notary = [found.notary] if found.notary else []
        needed = {found.isolation.profile, found.isolation.describe, *found.isolation.queues.values()}
    checks = [*doctoring.host_checks([*users, *notary]), *trying.mode_checks(users, needed)]
    if not offline:
        checks += [doctoring.launcher_check(socket), _server_check(run)]
    if run.settings.output in ("json", "yaml"):
        printing.rows(run, [{"check": c.name, "state": c.state, "detail": c.detail} for c in checks], ())
    else:
        for check in checks:
            printing.verdict(run, check.state != "failed", f"{check.name}: {check.detail}")
    failed = sum(check.state == "failed" for check in checks)
    if failed:
        raise VerificationFailedError(f"doctor: {failed} of {len(checks)} checks failed")


def _airflow(run: Run, component: str) -> None:
    import contextlib
    import os
    import sys

    from dagseal.airflow.installation import REACHES

    if component and component not in REACHES:  # said before Airflow's import, which takes seconds
        raise UsageError(f"--component is one of {', '.join(REACHES)}, not '{component}'")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Airflow logs there from its import on
            from dagseal.airflow import findings, looking

            found = findings.findings(looking.look(os.environ, component))
    except ModuleNotFoundError as error:
        raise UsageError(f"Airflow is not installed here ({error.name}): pip install 'dagseal[airflow]'") from None
    failed = sum(finding.state == "failed" for finding in found)
    if run.settings.output in ("json", "yaml"):
        rows = [
            {"check": f.name, "state": f.state, "detail": f.detail, "section": f.section, "line": f.line} for f in found
        ]
        printing.rows(run, rows, ())
    else:
        for finding in found:
            printing.verdict(run, finding.state != "failed", f"{finding.name}: {finding.detail}")
        if added := findings.lines(found):
            sys.stdout.write(f"\nTo be in airflow.cfg:\n\n{added}\n")
    if failed:
        raise VerificationFailedError(f"doctor: {failed} of {len(found)} checks failed")


def _server_check(run: Run) -> Any:
    from dagseal.cli.diagnoses import Diagnosis
    from integrity.errors import DagsealError

    try:
        run.call(lambda client: client.get("/readyz"), anonymous=True)
    except DagsealError as error:
        return Diagnosis(name="server", state="failed", detail=str(error))
    return Diagnosis(name="server", state="ok", detail=f"{run.settings.server} is ready")


def config_list(
    ctx: typer.Context,
    sources: bool = typer.Option(False, "--sources", help="Also say where each value comes from."),
) -> None:
    """The settings in force."""
    from dagseal.cli.settings import DEFAULTS

    run = run_of(ctx)
    found = [{"key": key, "value": getattr(run.settings, key), "source": run.settings.sources[key]} for key in DEFAULTS]
    if not sources:
        found = [{"key": row["key"], "value": row["value"]} for row in found]
    printing.rows(run, found, ("key", "value", "source") if sources else ("key", "value"))

"""impersonation and group: who may run as which unix user, and who belongs together."""

from __future__ import annotations

import typer

from dagseal.cli import printing
from dagseal.cli.context import run_of
from dagseal.cli.exits import PolicyError

_RULE_COLUMNS = ("id", "effect", "subject_kind", "subject", "dag_glob", "unix_user", "queue_glob", "created_by")
_MATCH_COLUMNS = ("decides", "id", "effect", "subject_kind", "subject", "role", "dag_glob", "unix_user", "queue_glob")
_EXPLAINED = ("verdict", "unix_user", "named_by", "queue", "archive", "release", "owner", "rule")

_GROUP_COLUMNS = ("name", "members", "approvals")


def register(app: typer.Typer) -> None:
    rules = typer.Typer(no_args_is_help=True)
    rules.command()(allow)
    rules.command()(deny)
    rules.command()(explain)
    rules.command("list")(list_rules)
    rules.command("rm")(remove_rule)
    app.add_typer(rules, name="impersonation", help="Whose tasks may run as which unix user.")
    groups = typer.Typer(no_args_is_help=True)
    groups.command("set")(set_group)
    groups.command("list")(list_groups)
    app.add_typer(groups, name="group", help="Groups that own archives and get grants.")


def allow(
    ctx: typer.Context,
    subject: str = typer.Argument(..., metavar="OWNER", help="Whose tasks; with --group the group's."),
    as_user: str = typer.Option(..., "--as-user", help="The unix user that they may run as."),
    group: bool = typer.Option(False, "--group", help="OWNER is a group."),
    dag: str = typer.Option("*", "--dag", metavar="GLOB"),
    queue: str = typer.Option("*", "--queue", metavar="GLOB"),
) -> None:
    """Let the tasks of an owner or a group run as a unix user."""
    _add(ctx, "allow", subject, as_user, group, dag, queue)


def deny(
    ctx: typer.Context,
    subject: str = typer.Argument(..., metavar="PRINCIPAL", help="Who may not; with --group nobody of the group."),
    as_user: str = typer.Option(..., "--as-user", help="The unix user that no task may run as."),
    group: bool = typer.Option(False, "--group", help="PRINCIPAL is a group."),
    dag: str = typer.Option("*", "--dag", metavar="GLOB"),
    queue: str = typer.Option("*", "--queue", metavar="GLOB"),
) -> None:
    """Refuse it, whatever allows it: to owners, to those who submitted the code, and to those who launch it."""
    _add(ctx, "deny", subject, as_user, group, dag, queue)


def _add(ctx: typer.Context, effect: str, subject: str, as_user: str, group: bool, dag: str, queue: str) -> None:
    body = {
        "effect": effect,
        "subject_kind": "group" if group else "principal",
        "subject": subject,
        "dag_glob": dag,
        "unix_user": as_user,
        "queue_glob": queue,
    }
    run = run_of(ctx)
    printing.item(run, run.call(lambda client: client.send("POST", "/v1/impersonation-rules", body)), _RULE_COLUMNS)


def explain(
    ctx: typer.Context,
    dag_id: str = typer.Argument(..., metavar="DAG"),
    task_id: str = typer.Argument(..., metavar="TASK"),
    as_user: str | None = typer.Option(None, "--as-user", help="As 'dagseal launch --as-user' would."),
    queue: str | None = typer.Option(None, "--queue", help="As 'dagseal launch --queue' would."),
) -> None:
    """As which unix user a launch of yours would run, and the rule that decides. Exits with 7 where it would be refused."""
    run = run_of(ctx)
    query = {"dag_id": dag_id, "task_id": task_id}
    query |= {key: value for key, value in (("run_as_user", as_user), ("queue", queue)) if value is not None}
    found = run.call(lambda client: client.get("/v1/impersonation-rules/explain", query))
    printing.item(run, found, _EXPLAINED)
    if run.settings.output in ("table", "plain") and found["matches"]:
        printing.rows(run, found["matches"], _MATCH_COLUMNS)
    if found["verdict"] != "allowed":
        raise PolicyError(found["ask"])


def list_rules(ctx: typer.Context) -> None:
    """All rules."""
    run = run_of(ctx)
    printing.rows(run, run.call(lambda client: client.get("/v1/impersonation-rules"))["rules"], _RULE_COLUMNS)


def remove_rule(ctx: typer.Context, rule_id: str = typer.Argument(..., metavar="ID")) -> None:
    """Take a rule away."""
    from worker_cache.client import segment

    run = run_of(ctx)
    run.call(lambda client: client.send("DELETE", f"/v1/impersonation-rules/{segment(rule_id)}"))
    run.note(f"rule {rule_id} removed")


def set_group(
    ctx: typer.Context,
    name: str = typer.Argument(..., metavar="NAME"),
    members: list[str] = typer.Argument(
        None, metavar="[MEMBER...]", help="All members; none empties the group, but not beside --approvals."
    ),
    approvals: int | None = typer.Option(
        None, "--approvals", min=0, max=10, help="How many other members must approve a release before it is launched."
    ),
) -> None:
    """Say who is in a group, and how many of them must approve a release of its archives."""
    from worker_cache.client import segment

    run = run_of(ctx)
    body: dict[str, object] = {} if approvals is None else {"approvals": approvals}
    if members or approvals is None:
        body |= {"members": members or []}
    found = run.call(lambda client: client.send("PUT", f"/v1/groups/{segment(name)}", body))
    printing.item(run, found, _GROUP_COLUMNS)


def list_groups(ctx: typer.Context) -> None:
    """All groups and their members."""
    run = run_of(ctx)
    printing.rows(run, run.call(lambda client: client.get("/v1/groups"))["groups"], _GROUP_COLUMNS)

"""Launches: the states, and the rules that permit one.

The table is the whole state machine; nothing changes a launch's state but `step`. The rules take records and say no by
raising; they do no I/O, so they are asked when a launch is reserved and again before its ticket is signed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

from integrity import claims, names
from integrity.errors import ConflictError, MalformedError, OutOfScopeError
from integrity.manifest import TaskEntry
from submit_api.refusals import BelowFloorError, InvalidRequestError, UnapprovedError
from submit_api.registry.records import Launch, Release, Rule, Secret

ENDS = frozenset(
    {
        "success",
        "failed",
        "skipped",
        "up_for_retry",
        "up_for_reschedule",
        "deferred",
        "cancelled",
        "refused",
        "lost",
    }
)

TRANSITIONS: dict[str, frozenset[str]] = {
    "queued": frozenset({"offered", "cancelled", "refused"}),
    "offered": frozenset({"queued", "running", "cancelled", "refused", "failed"}),
    "running": ENDS,
    **{end: frozenset() for end in ENDS},
}

RUN_ID_DATES = ("manual__", "scheduled__", "backfill__", "asset_triggered__")


def step(launch: Launch, to: str) -> str:
    """`to`, when this launch may go there. Raises `ConflictError`."""
    if to not in TRANSITIONS[launch.state]:
        raise ConflictError(f"launch {launch.id} is {launch.state}: it cannot become {to}")
    return to


def unix_user(wanted: str | None, task: TaskEntry, default: str) -> str:
    """The request's, else the signed manifest's, else the configured one. Raises when there is none."""
    chosen = wanted or task.run_as_user or default
    if not chosen:
        raise InvalidRequestError(
            f"task {task.task_id} names no run_as_user and launches.default_impersonation is not set: "
            "say which unix user, as run_as_user in the request or in the DAG"
        )
    return names.check("unix user", chosen)


def require_impersonation(
    rules: Iterable[Rule], *, owner: str, groups: Collection[str], dag_id: str, user: str, queue: str
) -> None:
    """Some rule lets this owner's dag run as `user` in `queue`. Rules permit or refuse; they never choose."""
    for rule in rules:
        subjects = (owner,) if rule.subject_kind == "principal" else groups
        if (
            rule.subject in subjects
            and fnmatchcase(dag_id, rule.dag_glob)
            and rule.unix_user == user
            and fnmatchcase(queue, rule.queue_glob)
        ):
            return
    raise OutOfScopeError(
        f"no rule lets {owner} run dag {dag_id} as unix user {user} in queue {queue}: an administrator can add it with "
        f"'dagseal impersonation allow {owner} --as-user {user} --dag {dag_id} --queue {queue}'"
    )


def require_connections(task: TaskEntry, *, owner: str, granted: Iterable[Secret], existing: Collection[str]) -> None:
    """Every connection that the task names is there and granted to the owner or its groups."""
    have = {secret.name for secret in granted if secret.kind == "connection"}
    for name in task.connections:
        if name not in existing:
            raise OutOfScopeError(
                f"task {task.task_id} uses connection {name!r}, which does not exist: an administrator can import it "
                f"with 'dagseal connection import FILE' and then grant it to {owner}"
            )
        if name not in have:
            raise OutOfScopeError(
                f"task {task.task_id} uses connection {name!r}, which is not granted to {owner} or its groups: "
                f"an administrator can do so with 'dagseal connection grant {name} --to {owner}'"
            )


def unlaunchable(release: Release) -> str | None:
    """Why this release is not launched, or None."""
    if release.revoked_at is not None:
        return f"was revoked ({release.revoke_reason})" if release.revoke_reason else "was revoked"
    if release.retired_at is not None:
        return "was retired, and its bytes are gone"
    if release.waits:
        left = max(release.approvals - len(release.approved_by), 1)  # one who approved may have left the group
        return f"waits for approval by {left} of group {', '.join(release.approval_groups)}"
    return None


def require_launchable(release: Release) -> None:
    """Raises `ConflictError` for a revoked release, `UnapprovedError` for one that waits."""
    why = unlaunchable(release)
    if release.waits and release.revoked_at is None:
        raise UnapprovedError(
            f"{release.archive}@{release.number} {why}: a member other than {release.submitted_by} can do so with "
            f"'dagseal approve {release.archive}@{release.number}'"
        )
    if why is not None:
        raise ConflictError(f"{release.archive}@{release.number} {why}: activate another release, or push a new one")


def require_pinned(release: Release, run_id: str, active: int | None) -> None:
    """A run does not go on with another release unseen. Raises `ConflictError` when its own cannot be launched any more."""
    why = unlaunchable(release)
    if why is not None:
        instead = f"release {active} is active" if active is not None else "none is active now"
        raise ConflictError(
            f"run {run_id} began with {release.archive}@{release.number}, which {why}: to go on with other code, name the "
            f"release, by --release or as 'release' ({instead}), or begin a new run"
        )


def require_isolation(attestation: Mapping[str, object], floors: Mapping[str, str | None]) -> None:
    """The highest floor is met by the profile that the launcher attests to. `floors`: who asks -> for which, if any."""
    asked = {who: floor for who, floor in floors.items() if floor is not None}
    who = max(asked, key=lambda one: claims.PROFILES.index(asked[one]), default="")
    attested = attestation.get("profile")
    if asked and not claims.meets(attested, asked[who]):
        shown = attested if attested in claims.PROFILES else "none that is known"
        raise BelowFloorError(
            f"{who} asks for isolation profile {asked[who]} or more, the launcher attests to {shown}: launch it where the "
            "launcher's [isolation] has that profile for this queue"
        )


def queue_of(wanted: str | None, task: TaskEntry, default: str) -> str:
    """The request's, else the manifest's, else the configured one."""
    try:
        return names.check("queue", wanted or task.queue or default)
    except MalformedError as error:
        raise InvalidRequestError(str(error)) from None

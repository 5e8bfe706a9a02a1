"""Launches: the states, and the rules that permit one.

The table is the whole state machine; nothing changes a launch's state but `step`. The rules take records and say no by
raising; they do no I/O, so they are asked when a launch is reserved and again before its ticket is signed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from integrity import names
from integrity.errors import (
    ConflictError,
    DigestMismatchError,
    ExpiredError,
    MalformedError,
    NotOwnerError,
    OutOfScopeError,
)
from submit_api import modes
from submit_api.refusals import CANCELLED, BelowFloorError, EndedError, InvalidRequestError, UnapprovedError
from submit_api.registry.records import Archive, Launch, Queue, Release
from vocabulary import claims
from vocabulary.claims import STATES
from vocabulary.manifest import Manifest, TaskEntry

ENDS = frozenset(STATES)
TRANSITIONS: dict[str, frozenset[str]] = {
    "queued": frozenset({"offered", "cancelled", "refused"}),
    "offered": frozenset({"queued", "running", "cancelled", "refused", "failed"}),
    "running": ENDS,
    **{end: frozenset() for end in STATES},
}

RUN_ID_DATES = ("manual__", "scheduled__", "backfill__", "asset_triggered__")


def step(launch: Launch, to: str) -> str:
    """`to`, when this launch may go there. Raises `ConflictError`."""
    if to not in TRANSITIONS[launch.state]:
        raise ConflictError(f"launch {launch.id} is {launch.state}: it cannot become {to}")
    return to


def require_takeable(launch: Launch, queues: Collection[str]) -> None:
    """A reservation that is, or may yet be, offered to a worker of these queues. Raises `OutOfScopeError`, and `EndedError` for
    one that was taken by somebody, or that nobody will have."""
    if launch.queue not in queues:
        raise OutOfScopeError(
            f"task instance {launch.task_instance} was reserved for queue {launch.queue}, and is taken for "
            f"{', '.join(sorted(queues))}: a worker that is enrolled for {launch.queue} can take it"
        )
    if launch.state in ("refused", "cancelled"):
        slug = launch.error if launch.state == "refused" else launch.error or CANCELLED
        raise EndedError(launch.detail or f"launch {launch.id} was {launch.state}", slug)
    if launch.state not in ("queued", "offered"):
        raise EndedError(
            f"launch {launch.id} of task instance {launch.task_instance} was taken already and is {launch.state}: each "
            "queueing is reserved anew"
        )


def late(launch: Launch) -> ExpiredError:
    return ExpiredError(
        f"no worker took launch {launch.id} in the time for which it was reserved: queue the task again"
    )


def require_in_time(launch: Launch, now_us: int) -> None:
    """Raises `ExpiredError`."""
    if launch.valid_until is not None and now_us >= launch.valid_until:
        raise late(launch)


def require_recorded_task(release: Release, dag_id: str, task: TaskEntry, digest: str | None) -> None:
    """Airflow's serialised task, by its digest, is the one that was recorded. Raises `DigestMismatchError`."""
    if release.task_check == "task" and digest != str(task.digest):
        raise DigestMismatchError(
            f"Airflow's serialised task is not the one that was recorded: {dag_id}.{task.task_id} has digest "
            f"{digest or 'none'} there, the manifest of {release.archive}@{release.number} says {task.digest}"
        )


def require_queue(queue: Queue | None, *, owner: str, groups: frozenset[str]) -> None:
    """Raises `NotOwnerError` for a queue that this owner may not use. One that nobody has put on record is open to all."""
    if queue is not None and not modes.permits(queue, modes.EXECUTE, principal=owner, groups=groups):
        raise NotOwnerError(
            f"queue {queue.name} belongs to {queue.owner} and group {queue.group} with mode {modes.shown(queue.mode)}: "
            f"{owner} may not run in it; ask {queue.owner}, or launch it in another queue"
        )


def caller_besides(manifest: Manifest, principal: str) -> str | None:
    """Who has to have what the task gets, besides the release's owner: who asked for the launch, where the release says so."""
    return principal if manifest.require_caller else None


def require_connections(
    task: TaskEntry,
    *,
    owner: str,
    granted: Collection[tuple[str, str]],
    existing: Collection[str],
    caller: str | None = None,
) -> None:
    """Every connection that the task names is there, and among what the owner may use (kind and name); with `caller` what he
    may use, who asked for the launch of a release that requires it."""
    who = (
        f"{caller}, who asks for a launch of {owner}'s release, which requires that he has it too," if caller else owner
    )
    for name in task.connections:
        if name not in existing:
            raise OutOfScopeError(
                f"task {task.task_id} uses connection {name!r}, which does not exist: an administrator can import it "
                f"with 'dagseal connection import FILE' and then grant it to {owner}"
            )
        if ("connection", name) not in granted:
            raise OutOfScopeError(
                f"task {task.task_id} uses connection {name!r}, which is not granted to {who} or its groups: "
                f"an administrator can do so with 'dagseal connection grant {name} --to {caller or owner}'"
            )


def require_readable(task: TaskEntry, archive: Archive, *, dag_id: str, reader: str, groups: frozenset[str]) -> None:
    """The task reads XComs of dag `dag_id`, of this archive: who answers for that may read the archive."""
    if not modes.permits(archive, modes.READ, principal=reader, groups=groups):
        raise OutOfScopeError(
            f"task {task.task_id} reads XComs of dag {dag_id}, which belongs to {archive.owner} and group {archive.group} with "
            f"mode {modes.shown(archive.mode)}; {reader} may not read it: ask {archive.owner}, or an administrator to add "
            f"{reader} to group {archive.group}"
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

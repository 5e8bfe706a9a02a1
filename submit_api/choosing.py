"""What a launch would be, and whether it may be: its release, queue, unix user, connections and XComs.

A run keeps the release that it began with, though another is active by now, unless its caller asks for one; what Airflow
queues has the release of the set that its run is pinned to. `choose` and `require_all` decide when a launch is reserved,
`authorise` decides the same again when its ticket is signed and at its claim.
"""

from __future__ import annotations

from dataclasses import dataclass

from integrity.errors import ConflictError, NotFoundError, OutOfScopeError
from submit_api import impersonation, launches, modes, permissions, scopes
from submit_api.facts import Facts
from submit_api.identity import Caller
from submit_api.impersonation import Party, Question, Role, Source, Verdict
from submit_api.registry import archives, ledger
from submit_api.registry.records import Archive, Launch, Release
from vocabulary.manifest import TaskEntry

ASKED, PINNED, ACTIVE = "asked for", "which the run began with", "the active one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a launch would be: which release (and why that one) and task, whose authority it has as its owner's groups, in which
    queue, as which unix user, who named him, the verdict, and who besides the owner has to have what it gets."""

    release: Release
    why: str
    task: TaskEntry
    groups: frozenset[str]
    queue: str
    user: str
    source: Source
    verdict: Verdict
    besides: str | None


async def choose(
    facts: Facts,
    caller: Caller,
    release: Release,
    why: str,
    *,
    dag_id: str,
    task_id: str,
    run_as_user: str | None = None,
    queue: str | None = None,
) -> Chosen:
    """The choice and the judgement of a reservation of what was resolved; nothing is reserved. Raises what `reserve` raises,
    but for the verdict, which is in what is returned."""
    config = facts.service.settings.launches
    manifest = (await facts.manifest_of(release)).manifest
    task = manifest.task(dag_id, task_id)
    user, source = impersonation.choose_user(run_as_user, task, config.default_impersonation)
    chosen_queue = launches.queue_of(queue, task, config.default_queue)
    groups = await facts.groups_behind(release)
    await require_queue(facts, release, groups, chosen_queue)
    verdict = await judge(facts, release, groups, dag_id=dag_id, user=user, queue=chosen_queue, caller=caller.principal)
    return Chosen(
        release=release,
        why=why,
        task=task,
        groups=groups,
        queue=chosen_queue,
        user=user,
        source=source,
        verdict=verdict,
        besides=launches.caller_besides(manifest, caller.principal),
    )


async def permitted(facts: Facts, caller: Caller, dag_id: str) -> Archive:
    """The archive of a dag that this caller may launch. Raises `NotFoundError` or `UnauthorizedError`."""
    archive = await facts.archive_of(dag_id)
    if archive is None:
        raise NotFoundError(f"no release defines dag {dag_id!r}: push its file first")
    permissions.require(caller, modes.EXECUTE, archive, f"dag {dag_id} of archive {archive.name}")
    permissions.require_scope(caller, scopes.LAUNCH, dag_id)
    return archive


async def resolve(
    facts: Facts, caller: Caller, dag_id: str, run_id: str | None, number: int | None
) -> tuple[Release, str]:
    """The release that a launch in this run of this dag means, if the caller may launch it, and by what it was chosen: it was
    asked for, the run began with it, or it is the active one."""
    archive = await permitted(facts, caller, dag_id)
    tx = facts.tx
    run = run_id if number is None else None
    pinned = await ledger.release_of_run(tx, dag_id, run, archive.name) if run is not None else None
    if number is not None:
        chosen, why = number, ASKED
    elif pinned is not None:
        chosen, why = pinned, PINNED
    elif archive.active is not None:
        chosen, why = archive.active, ACTIVE
    else:
        newest = await archives.release(tx, archive.name, archive.latest)
        if newest is not None and newest.waits:
            launches.require_launchable(newest)
        raise ConflictError(f"archive {archive.name} has no active release: activate one, or push a new one")
    release = await archives.release(tx, archive.name, chosen)
    if release is None:
        raise NotFoundError(f"archive {archive.name} has no release {chosen}; the latest is {archive.latest}")
    if run is not None and why == PINNED:
        launches.require_pinned(release, run, archive.active)
    launches.require_launchable(release)
    return release, why


async def require_queue(facts: Facts, release: Release, groups: frozenset[str], queue: str) -> None:
    """The release's owner, with these groups, may run in it. Raises `NotOwnerError`."""
    launches.require_queue(await facts.queue(queue), owner=release.owner, groups=groups)


async def judge(
    facts: Facts, release: Release, groups: frozenset[str], *, dag_id: str, user: str, queue: str, caller: str
) -> Verdict:
    """The impersonation rules' verdict on a launch that `caller` asks for, by the rules and groups of this moment."""

    async def party(role: Role, principal: str) -> Party:
        return Party(role=role, principal=principal, groups=await facts.groups_of(principal))

    question = Question(
        owner=Party(role=impersonation.OWNER, principal=release.owner, groups=groups),
        others=(
            await party(impersonation.SUBMITTER, release.submitted_by),
            await party(impersonation.CALLER, caller),
        ),
        dag_id=dag_id,
        user=user,
        queue=queue,
    )
    return impersonation.decide(await facts.rules(), question)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorised:
    """The id of the rule that allows a launch, and the groups whose authority its owner has in it."""

    rule: str
    groups: frozenset[str]


async def authorise(facts: Facts, release: Release, task: TaskEntry, launch: Launch, besides: str | None) -> Authorised:
    """What was reserved is judged again: this queue, and what `require_all` asks. Raises `UnauthorizedError`, and
    `NotFoundError` for a dag that is not there."""
    groups = await facts.groups_behind(release)
    await require_queue(facts, release, groups, launch.queue)
    verdict = await judge(
        facts, release, groups, dag_id=launch.dag_id, user=launch.unix_user, queue=launch.queue, caller=launch.principal
    )
    rule = await require_all(facts, release, groups, task, verdict, besides)
    return Authorised(rule=rule, groups=groups)


async def require_all(
    facts: Facts,
    release: Release,
    groups: frozenset[str],
    task: TaskEntry,
    verdict: Verdict,
    besides: str | None,
) -> str:
    """The rules allow it, and the release's owner may use the connections and read the XComs of the dags that the task names;
    `besides` may, too (`launches.caller_besides`). Whether a secrets backend has what it would be asked for is found out when
    it is claimed. Returns the id of the rule. Raises `OutOfScopeError`, and `NotFoundError` for a dag that is not there."""
    try:
        rule = verdict.require()
        await _require_secrets(facts, release, task, release.owner, groups)
    except OutOfScopeError as error:
        withheld = sorted(await facts.groups_of(release.owner) - groups)
        if not withheld:
            raise
        hint = f"what group {', '.join(withheld)} may is for archives of that group only, as it asks for approvals"
        told = OutOfScopeError(f"{error} ({hint})")
        told.rule = error.rule
        raise told from None
    if besides is not None:
        await _require_secrets(facts, release, task, besides, await facts.groups_of(besides))
    return rule


async def _require_secrets(
    facts: Facts, release: Release, task: TaskEntry, reader: str, groups: frozenset[str]
) -> None:
    existing = {name for name in task.connections if facts.service.backends.covers("connection", name)}
    if task.connections:
        existing |= await facts.stored_names(frozenset(("connection", name) for name in task.connections))
    granted = await facts.granted_names(reader, groups)
    caller = reader if reader != release.owner else None
    launches.require_connections(task, owner=release.owner, granted=granted, existing=existing, caller=caller)
    for other in task.xcom_dags:
        archive = await facts.archive_of(other)
        if archive is None:
            raise NotFoundError(
                f"task {task.task_id} reads XComs of dag {other!r}, which no release defines: push its file first"
            )
        launches.require_readable(task, archive, dag_id=other, reader=reader, groups=groups)


async def entitled(facts: Facts, owner: str, groups: frozenset[str], besides: str | None) -> set[tuple[str, str]]:
    """Kind and name of what a launch is given: what its owner may use, with these groups, and `besides` too if there is one."""
    found = await facts.granted_names(owner, groups)
    if besides is not None:
        found = found & await facts.granted_names(besides, await facts.groups_of(besides))
    return found

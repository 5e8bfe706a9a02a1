"""The caller's side of launches: reserve, look, wait, cancel.

A run keeps the release that it began with, though another is active by now, unless its caller asks for one. A reservation
is checked whole: the dag's release, the caller, the unix user, the rule that permits it, the connections.
The stored bytes are checked when a worker takes it (`submit_api.dispatching`), just before a ticket is signed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from integrity.errors import ConflictError, NotFoundError, OutOfScopeError
from integrity.manifest import TaskEntry
from submit_api import audit, impersonation, launches, modes, permissions, scopes
from submit_api.identity import USER, Caller
from submit_api.impersonation import Party, Question, Role, Source, Verdict
from submit_api.models import LaunchRequest
from submit_api.registry import archives, ledger, ownership, people, secrets
from submit_api.registry.database import Transaction
from submit_api.registry.records import Archive, Launch, Release
from submit_api.service import Service
from submit_api.signals import QUEUE, of_launch

ASKED, PINNED, ACTIVE = "asked for", "which the run began with", "the active one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a launch would be: which release (and why that one) and task, in which queue, as which unix user, who named him,
    the verdict, and who besides the owner has to have what it gets."""

    release: Release
    why: str
    task: TaskEntry
    queue: str
    user: str
    source: Source
    verdict: Verdict
    besides: str | None


async def choose(
    service: Service,
    tx: Transaction,
    caller: Caller,
    *,
    dag_id: str,
    task_id: str,
    run_id: str | None = None,
    run_as_user: str | None = None,
    queue: str | None = None,
    number: int | None = None,
) -> Chosen:
    """The choice and the judgement of a reservation; nothing is reserved. Raises what `reserve` raises, but for the
    verdict, which is in what is returned."""
    config = service.settings.launches
    release, why = await resolve(tx, caller, dag_id, run_id, number)
    manifest = (await service.manifest_of(release)).manifest
    task = manifest.task(dag_id, task_id)
    user, source = impersonation.choose_user(run_as_user, task, config.default_impersonation)
    chosen_queue = launches.queue_of(queue, task, config.default_queue)
    await require_queue(tx, release, chosen_queue)
    verdict = await judge(tx, release, dag_id=dag_id, user=user, queue=chosen_queue, caller=caller.principal)
    return Chosen(
        release=release,
        why=why,
        task=task,
        queue=chosen_queue,
        user=user,
        source=source,
        verdict=verdict,
        besides=launches.caller_besides(manifest, caller.principal),
    )


async def reserve(service: Service, caller: Caller, wanted: LaunchRequest) -> Launch:
    """A queued launch. Raises `NotFoundError`, `UnauthorizedError`, `ConflictError` or `InvalidRequestError`."""
    config = service.settings.launches
    async with service.database.write() as tx:
        chosen = await choose(
            service,
            tx,
            caller,
            dag_id=wanted.dag_id,
            task_id=wanted.task_id,
            run_id=wanted.run_id,
            run_as_user=wanted.run_as_user,
            queue=wanted.queue,
            number=wanted.release,
        )
        release = chosen.release
        rule = await require_all(service, tx, release, chosen.task, chosen.verdict, chosen.besides)
        earlier = await ledger.find_try(
            tx, wanted.dag_id, wanted.task_id, wanted.run_id, wanted.map_index, wanted.try_number
        )
        if earlier is not None:
            raise ConflictError(
                f"try {wanted.try_number} of {wanted.dag_id}.{wanted.task_id} in run {wanted.run_id} is launch "
                f"{earlier.id} ({earlier.state}): launch it again with try_number {wanted.try_number + 1}"
            )
        launch = Launch(
            id=service.new_id(),
            state="queued",
            dag_id=wanted.dag_id,
            task_id=wanted.task_id,
            run_id=wanted.run_id,
            map_index=wanted.map_index,
            try_number=wanted.try_number,
            archive=release.archive,
            release=release.number,
            digest=release.digest,
            unix_user=chosen.user,
            queue=chosen.queue,
            owner=release.owner,
            group=release.group,
            principal=caller.principal,
            timeout_seconds=wanted.timeout_seconds or config.default_timeout_seconds,
            created_at=service.now_us(),
        )
        await ledger.add(tx, launch)
        await audit.accepted(
            tx,
            at=launch.created_at,
            caller=caller,
            action="launch.create",
            about=f"launch:{launch.id}",
            digest=launch.digest,
            detail=f"{launch.dag_id}.{launch.task_id} run {launch.run_id} try {launch.try_number} of "
            f"{launch.archive}@{launch.release}, {chosen.why}, as {launch.unix_user} in {launch.queue}",
            rule=rule,
        )
    service.signals.notify(QUEUE)
    return launch


async def resolve(
    tx: Transaction, caller: Caller, dag_id: str, run_id: str | None, number: int | None
) -> tuple[Release, str]:
    """The release that a launch in this run of this dag means, if the caller may launch it, and by what it was chosen: it was
    asked for, the run began with it, or it is the active one."""
    archive = await _archive_of(tx, dag_id)
    if archive is None:
        raise NotFoundError(f"no release defines dag {dag_id!r}: push its file first")
    permissions.require(caller, modes.EXECUTE, archive, f"dag {dag_id} of archive {archive.name}")
    permissions.require_scope(caller, scopes.LAUNCH, dag_id)
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


async def require_queue(tx: Transaction, release: Release, queue: str) -> None:
    """The release's owner may run in it. Raises `NotOwnerError`."""
    groups = await people.groups_behind(tx, release.owner, release.group)
    launches.require_queue(await ownership.queue(tx, queue), owner=release.owner, groups=groups)


async def judge(tx: Transaction, release: Release, *, dag_id: str, user: str, queue: str, caller: str) -> Verdict:
    """The impersonation rules' verdict on a launch that `caller` asks for, by the rules and groups of this moment."""

    async def party(role: Role, principal: str) -> Party:
        return Party(role=role, principal=principal, groups=await people.groups_of(tx, principal))

    question = Question(
        owner=Party(
            role=impersonation.OWNER,
            principal=release.owner,
            groups=await people.groups_behind(tx, release.owner, release.group),
        ),
        others=(
            await party(impersonation.SUBMITTER, release.submitted_by),
            await party(impersonation.CALLER, caller),
        ),
        dag_id=dag_id,
        user=user,
        queue=queue,
    )
    return impersonation.decide(await secrets.rules(tx), question)


async def authorise(
    service: Service, tx: Transaction, release: Release, task: TaskEntry, launch: Launch, besides: str | None
) -> str:
    """What was reserved is judged again: this queue, and what `require_all` asks. Returns the id of the rule that allows it.
    Raises `UnauthorizedError`, and `NotFoundError` for a dag that is not there."""
    await require_queue(tx, release, launch.queue)
    verdict = await judge(
        tx, release, dag_id=launch.dag_id, user=launch.unix_user, queue=launch.queue, caller=launch.principal
    )
    return await require_all(service, tx, release, task, verdict, besides)


async def require_all(
    service: Service, tx: Transaction, release: Release, task: TaskEntry, verdict: Verdict, besides: str | None
) -> str:
    """The rules allow it, and the release's owner may use the connections and read the XComs of the dags that the task names;
    `besides` may, too (`launches.caller_besides`). Whether a secrets backend has what it would be asked for is found out when
    it is claimed. Returns the id of the rule. Raises `OutOfScopeError`, and `NotFoundError` for a dag that is not there."""
    groups = await people.groups_behind(tx, release.owner, release.group)
    try:
        rule = verdict.require()
        await _require_secrets(service, tx, release, task, release.owner, groups)
    except OutOfScopeError as error:
        withheld = sorted(await people.groups_of(tx, release.owner) - groups)
        if not withheld:
            raise
        hint = f"what group {', '.join(withheld)} may is for archives of that group only, as it asks for approvals"
        told = OutOfScopeError(f"{error} ({hint})")
        told.rule = error.rule
        raise told from None
    if besides is not None:
        await _require_secrets(service, tx, release, task, besides, await people.groups_of(tx, besides))
    return rule


async def _require_secrets(
    service: Service, tx: Transaction, release: Release, task: TaskEntry, reader: str, groups: frozenset[str]
) -> None:
    existing = {name for name in task.connections if service.backends.covers("connection", name)}
    if task.connections:
        existing |= {secret.name for secret in await secrets.listed(tx, "connection")}
    granted = await secrets.granted_names(tx, reader, groups)
    caller = reader if reader != release.owner else None
    launches.require_connections(task, owner=release.owner, granted=granted, existing=existing, caller=caller)
    for other in task.xcom_dags:
        archive = await _archive_of(tx, other)
        if archive is None:
            raise NotFoundError(
                f"task {task.task_id} reads XComs of dag {other!r}, which no release defines: push its file first"
            )
        launches.require_readable(task, archive, dag_id=other, reader=reader, groups=groups)


async def entitled(tx: Transaction, owner: str, group: str, besides: str | None) -> set[tuple[str, str]]:
    """Kind and name of what a launch of a release of this owner and group is given: what the owner may use, and `besides` too
    if there is one."""
    found = await secrets.granted_names(tx, owner, await people.groups_behind(tx, owner, group))
    if besides is not None:
        found &= await secrets.granted_names(tx, besides, await people.groups_of(tx, besides))
    return found


async def _archive_of(tx: Transaction, dag_id: str) -> Archive | None:
    name = (await archives.archives_of_dags(tx, [dag_id])).get(dag_id)
    return await archives.find(tx, name) if name else None


async def find(service: Service, caller: Caller, launch_id: str, wanted: int = modes.READ) -> Launch:
    """A launch of an archive on which the caller has this bit, or that the caller made. Raises `NotFoundError`,
    `NotOwnerError`."""
    async with service.database.read() as tx:
        launch = await ledger.find(tx, launch_id)
        archive = await archives.find(tx, launch.archive) if launch else None
    if launch is None or archive is None:
        raise NotFoundError(f"there is no launch {launch_id}")
    if caller.kind != USER or caller.principal != launch.principal:
        permissions.require(caller, wanted, archive, f"launch {launch.id} of archive {archive.name}")
    permissions.require_scope(caller, scopes.LAUNCH, launch.dag_id)
    return launch


async def wait_for_end(service: Service, caller: Caller, launch_id: str, seconds: float) -> Launch:
    """The launch when it has ended, or as it is after so long."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    with service.signals.listen(of_launch(launch_id)) as listener:
        while True:
            listener.event.clear()
            launch = await find(service, caller, launch_id)
            if launch.state in launches.ENDS or loop.time() >= deadline or service.signals.closed:
                return launch
            await listener.wait(deadline - loop.time())


async def read_log(
    service: Service, caller: Caller, launch_id: str, offset: int, seconds: float, *, whole_lines: bool
) -> tuple[Launch, bytes]:
    """The log from `offset`: at once when there is some or the launch has ended, else after so long at most. With
    `whole_lines` what is not ended by a newline has to wait, unless it is as much as is read at one time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    with service.signals.listen(of_launch(launch_id)) as listener:
        while True:
            listener.event.clear()
            launch = await find(service, caller, launch_id)
            most = service.settings.limits.max_log_chunk_bytes
            count = min(launch.log_held_bytes - offset, most)
            data = await asyncio.to_thread(service.logs.read, launch.id, offset, count) if count > 0 else b""
            ended = launch.state in launches.ENDS
            if whole_lines and not (ended and count < most):
                data = data[: data.rfind(b"\n") + 1] or (data if count == most else b"")
            if data:
                return launch, data
            if ended or loop.time() >= deadline or service.signals.closed:
                return launch, b""
            await listener.wait(deadline - loop.time())


async def cancel(service: Service, caller: Caller, launch_id: str) -> Launch:
    """Before the claim it is cancelled at once; a running one is told to stop with its worker's next heartbeat."""
    await find(service, caller, launch_id, modes.EXECUTE)
    async with service.database.write() as tx:
        launch = await ledger.find(tx, launch_id)
        if launch is None or launch.state in launches.ENDS:
            raise ConflictError(f"launch {launch_id} has ended already ({launch.state if launch else 'gone'})")
        now = service.now_us()
        if launch.state == "running":
            await ledger.change(tx, launch.id, cancel_requested=True)
        else:
            state = launches.step(launch, "cancelled")
            await ledger.change(tx, launch.id, state=state, ended_at=now, detail=f"cancelled by {caller.principal}")
        await audit.accepted(
            tx, at=now, caller=caller, action="launch.cancel", about=f"launch:{launch.id}", digest=launch.digest
        )
    service.signals.notify(of_launch(launch_id))
    return await find(service, caller, launch_id, modes.EXECUTE)

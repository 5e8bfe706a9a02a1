"""The caller's side of launches: reserve, look, wait, cancel.

A reservation is checked whole: the dag's release, the caller, the unix user, the rule that permits it, the connections.
The stored bytes are checked when a worker takes it (`submit_api.dispatching`), just before a ticket is signed.
"""

from __future__ import annotations

import asyncio

from integrity.errors import ConflictError, NotFoundError
from integrity.manifest import TaskEntry
from submit_api import audit, launches, permissions, scopes
from submit_api.identity import Caller
from submit_api.models import LaunchRequest
from submit_api.registry import archives, ledger, people, secrets
from submit_api.registry.database import Transaction
from submit_api.registry.records import Archive, Launch, Release
from submit_api.service import Service
from submit_api.signals import QUEUE, of_launch


async def reserve(service: Service, caller: Caller, wanted: LaunchRequest) -> Launch:
    """A queued launch. Raises `NotFoundError`, `UnauthorizedError`, `ConflictError` or `InvalidRequestError`."""
    config = service.settings.launches
    async with service.database.write() as tx:
        release = await resolve(tx, caller, wanted.dag_id, wanted.release)
        manifest = (await service.manifest_of(release)).manifest
        task = manifest.task(wanted.dag_id, wanted.task_id)
        user = launches.unix_user(wanted.run_as_user, task, config.default_impersonation)
        queue = launches.queue_of(wanted.queue, task, config.default_queue)
        besides = launches.caller_besides(manifest, caller.principal)
        await authorise(service, tx, release, task, dag_id=wanted.dag_id, user=user, queue=queue, besides=besides)
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
            unix_user=user,
            queue=queue,
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
            f"{launch.archive}@{launch.release} as {launch.unix_user} in {launch.queue}",
        )
    service.signals.notify(QUEUE)
    return launch


async def resolve(tx: Transaction, caller: Caller, dag_id: str, number: int | None) -> Release:
    """The release that a launch of this dag means, if the caller may launch it."""
    archive = await _archive_of(tx, dag_id)
    if archive is None:
        raise NotFoundError(f"no release defines dag {dag_id!r}: push its file first")
    permissions.require_member(caller, archive.owner, archive.group, f"dag {dag_id} of archive {archive.name}")
    permissions.require_scope(caller, scopes.LAUNCH, dag_id)
    chosen = number if number is not None else archive.active
    if chosen is None:
        raise ConflictError(f"archive {archive.name} has no active release: activate one, or push a new one")
    release = await archives.release(tx, archive.name, chosen)
    if release is None:
        raise NotFoundError(f"archive {archive.name} has no release {chosen}; the latest is {archive.latest}")
    launches.require_launchable(release)
    return release


async def authorise(
    service: Service,
    tx: Transaction,
    release: Release,
    task: TaskEntry,
    *,
    dag_id: str,
    user: str,
    queue: str,
    besides: str | None,
) -> None:
    """What the release's owner may: this unix user, these connections, the XComs of these dags; the last two `besides` may too
    (`launches.caller_besides`). Whether a secrets backend has what it would be asked for is found out when it is claimed.
    Raises `OutOfScopeError`, and `NotFoundError` for a dag that is not there."""
    groups = await people.groups_of(tx, release.owner)
    launches.require_impersonation(
        await secrets.rules(tx), owner=release.owner, groups=groups, dag_id=dag_id, user=user, queue=queue
    )
    existing = {name for name in task.connections if service.backends.covers("connection", name)}
    if task.connections:
        existing |= {secret.name for secret in await secrets.listed(tx, "connection")}
    for caller in (None, besides) if besides else (None,):
        reader = caller or release.owner
        groups = await people.groups_of(tx, reader)
        granted = await secrets.granted_names(tx, reader, groups)
        launches.require_connections(task, owner=release.owner, granted=granted, existing=existing, caller=caller)
        for other in task.xcom_dags:
            archive = await _archive_of(tx, other)
            if archive is None:
                raise NotFoundError(
                    f"task {task.task_id} reads XComs of dag {other!r}, which no release defines: push its file first"
                )
            launches.require_readable(task, archive, dag_id=other, reader=reader, groups=groups)


async def entitled(tx: Transaction, owner: str, besides: str | None) -> set[tuple[str, str]]:
    """Kind and name of what a launch is given: what is granted to the owner, and to `besides` too if there is one."""
    found = await secrets.granted_names(tx, owner, await people.groups_of(tx, owner))
    if besides is not None:
        found &= await secrets.granted_names(tx, besides, await people.groups_of(tx, besides))
    return found


async def _archive_of(tx: Transaction, dag_id: str) -> Archive | None:
    name = (await archives.archives_of_dags(tx, [dag_id])).get(dag_id)
    return await archives.find(tx, name) if name else None


async def find(service: Service, caller: Caller, launch_id: str) -> Launch:
    """A launch that the caller may see. Raises `NotFoundError`, `NotOwnerError`."""
    async with service.database.read() as tx:
        launch = await ledger.find(tx, launch_id)
    if launch is None:
        raise NotFoundError(f"there is no launch {launch_id}")
    permissions.require_member(caller, launch.owner, launch.group, f"launch {launch.id}")
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
    await find(service, caller, launch_id)
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
    return await find(service, caller, launch_id)

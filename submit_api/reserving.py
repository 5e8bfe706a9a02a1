"""The caller's side of launches: reserve, look, wait, cancel.

A reservation is checked whole (`submit_api.choosing`): the dag's release, the caller, the queue, the unix user, the rule that
permits it, the connections. The stored bytes are checked when a worker takes it (`submit_api.dispatching`), just before a
ticket is signed.
"""

from __future__ import annotations

import asyncio

from integrity.errors import ConflictError, NotFoundError
from submit_api import audit, choosing, launches, modes, permissions, scopes
from submit_api.facts import Facts
from submit_api.identity import USER, Caller
from submit_api.models.launches import LaunchRequest
from submit_api.registry import archives, ledger
from submit_api.registry.records import Launch
from submit_api.service import Service
from submit_api.signals import QUEUE, of_launch, of_offers


async def reserve(service: Service, caller: Caller, wanted: LaunchRequest) -> Launch:
    """A queued launch. Raises `NotFoundError`, `UnauthorizedError`, `ConflictError` or `InvalidRequestError`."""
    config = service.settings.launches
    async with service.database.write() as tx:
        facts = Facts(service, tx)
        release, why = await choosing.resolve(facts, caller, wanted.dag_id, wanted.run_id, wanted.release)
        chosen = await choosing.choose(
            facts,
            caller,
            release,
            why,
            dag_id=wanted.dag_id,
            task_id=wanted.task_id,
            run_as_user=wanted.run_as_user,
            queue=wanted.queue,
        )
        rule = await choosing.require_all(facts, release, chosen.groups, chosen.task, chosen.verdict, chosen.besides)
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


async def find(service: Service, caller: Caller, launch_id: str, wanted: int = modes.READ) -> Launch:
    """A launch of an archive on which the caller has this bit, or that the caller made. Raises `NotFoundError`,
    `NotOwnerError`."""
    async with service.database.read() as tx:
        launch = await ledger.find(tx, launch_id)
        archive = await archives.find(tx, launch.archive) if launch else None
    own = launch is not None and caller.kind == USER and (caller.admin or caller.principal == launch.principal)
    if launch is None or (archive is None and not own):
        raise NotFoundError(f"there is no launch {launch_id}")
    if archive is not None and not own:
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
    service.signals.notify(of_offers(launch.task_instance))  # who waits for this one is told
    return await find(service, caller, launch_id, modes.EXECUTE)

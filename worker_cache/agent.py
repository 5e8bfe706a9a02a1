"""The agent's loop: some slots that each take a launch, carry it out, and take the next; beside them the log is followed, what
it makes active is fetched, and what is held is reported.

Promise: nothing is taken while the launcher is away, for it would keep the launch from a host that could run it. When told
to stop, the agent takes nothing more, lets what runs end for a while, cancels the rest, and leaves in the spool what the
API has not acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from integrity.errors import DagsealError
from worker_cache import delivery, launcher_link, launching
from worker_cache.launcher_link import Identity
from worker_cache.launchers import Launcher
from worker_cache.waiting import unless
from worker_cache.workplace import Workplace

TAKE_WAIT_SECONDS = 25
CANCEL_SECONDS = 15.0


async def run(
    place: Workplace,
    *,
    slots: int,
    grace_seconds: float,
    supervised: Callable[[], Iterable[asyncio.Task[None]]] = tuple,
) -> None:
    """Work until `place.stopping` is set; returns when every slot ended, and each launch that is then `supervised`."""
    async with asyncio.TaskGroup() as group:
        for launch_id in place.spool.pending():
            group.create_task(delivery.deliver_kept(place, launch_id))
        beside = [
            group.create_task(place.follower.follow(place.pause, place.delays, seconds=place.log_sync_seconds)),
            group.create_task(place.keeper.keep(place.delays)),
            group.create_task(place.keeper.report(place.follower)),
        ]
        # One long poll for all free slots: several would all wake for one launch, and but one would get it.
        taking = asyncio.Lock()
        working = [group.create_task(_slot(place, taking)) for _ in range(slots)]
        place.log.info("agent started", worker=place.worker, queues=list(place.queues), slots=slots)
        await place.stopping.wait()
        place.log.info("agent stopping: nothing more is taken")
        _, running = await asyncio.wait([*working, *supervised()], timeout=grace_seconds)
        if running:
            place.log.warning("cancelling what still runs", launches=len(running))
            place.cancelling.set()
            _, running = await asyncio.wait(running, timeout=CANCEL_SECONDS)
        for task in (*beside, *running):  # the launcher did not answer: closing its connections kills the tasks
            task.cancel()


async def _slot(place: Workplace, taking: asyncio.Lock) -> None:
    delays = place.delays()
    while not place.stopping.is_set():
        try:
            async with taking:
                if place.stopping.is_set():
                    return
                identity = await identify(place.launcher)
                offered = await unless(_take(place), place.stopping)  # an offer lost so is offered again
        except DagsealError as error:
            place.log.warning("nothing taken", slug=error.slug, error=str(error))
            await place.pause(next(delays))
            continue
        if offered is None:
            continue
        if await launching.carry_out(place, offered, audience=identity.verify_key.key_id):
            delays = place.delays()
        else:
            await place.pause(next(delays))


async def _take(place: Workplace) -> Any | None:
    return await place.api.take(place.worker, list(place.queues), wait_seconds=TAKE_WAIT_SECONDS)


async def identify(launcher: Launcher) -> Identity:
    """Who the launcher is now. Raises `FetchError` or `MalformedError`."""
    async with launcher_link.connect(launcher) as link:
        return await link.identity()

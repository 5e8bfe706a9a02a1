"""Bringing logs and results to the API until it has acknowledged them: now, after an outage, or after a restart.

A result is sent after the whole log. What the API refuses for good is put aside, with the reason in our log: the
launcher's journal still has it.
"""

from __future__ import annotations

import contextlib
import os

from integrity.errors import DagsealError, FetchError
from worker_cache.log_relay import KeptLog, LogRelay
from worker_cache.workplace import Workplace


async def ship_log(place: Workplace, log: KeptLog, launch_id: str) -> bool:
    """Ship until the log is closed and all is sent; False when the agent stops while the API is away."""
    with contextlib.closing(LogRelay(place.api, launch_id, log)) as relay:
        delays = place.delays()
        while True:
            try:
                if not await relay.ship_next():
                    return True
                delays = place.delays()
            except FetchError as error:
                place.log.warning("log not delivered yet", launch_id=launch_id, error=str(error))
                if not await place.pause(next(delays)):
                    return False
            except DagsealError as error:
                place.log.error("the API refused the log", launch_id=launch_id, error=str(error))
                return True


async def send_result(place: Workplace, launch_id: str) -> bool:
    """Send the spooled result; False when the agent stops while the API is away."""
    envelope = place.spool.result(launch_id)
    if envelope is None:
        place.log.warning("a log without a result: the task died with its agent", launch_id=launch_id)
        place.spool.forget(launch_id)
        return True
    delays = place.delays()
    while True:
        try:
            state, _ = await place.api.result(launch_id, envelope)
        except FetchError as error:
            place.log.warning("result not delivered yet", launch_id=launch_id, error=str(error))
            if not await place.pause(next(delays)):
                return False
        except DagsealError as error:
            place.log.error("the API refused the result", launch_id=launch_id, slug=error.slug, error=str(error))
            place.spool.reject(launch_id)
            return True
        else:
            place.log.info("result delivered", launch_id=launch_id, state=state)
            place.spool.forget(launch_id)
            return True


async def deliver_kept(place: Workplace, launch_id: str) -> None:
    """Deliver what an earlier run of this agent left in the spool."""
    fd = place.spool.open_log(launch_id)
    try:
        log = KeptLog(fd)
        log.close()
        if await ship_log(place, log, launch_id):
            await send_result(place, launch_id)
    finally:
        os.close(fd)

"""`run`: serve until told to stop, as the only process that works on this state, or as one of several that take turns.

Those with `api.standby` are replicas of which one serves. The others wait without listening, and the first that gets the
locks opens everything anew; one that lost its database to another ends, so that it is started again and waits. So nothing
that is kept in memory has to agree between processes (ADR-0028).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal

import structlog

from integrity.errors import SettingsError
from submit_api import rekeying, retiring
from submit_api.refusals import TakenError
from submit_api.running import opened, serving, state_lock
from submit_api.service import Service
from submit_api.settings import Settings

_TURN_SECONDS = 1.0
_log = structlog.get_logger("submit_api")


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises `TakenError` while another process serves this database, where a standby waits, and
    when one has taken the place of this standby."""
    stop, taken = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as held:
        service = await _own(settings, held, stop)
        if service is None:
            return
        await rekeying.settle(service)
        for name in await service.blobs.sweep():
            _log.warning("swept", file=name)
        for digest in await retiring.sweep(service):
            _log.warning("swept", blob=digest)
        async with serving(service, taken if settings.api.standby else None) as listener:
            _log.info("ready", host=settings.api.host, port=listener.port, key=service.keys.signing.public.key_id)
            ends = [asyncio.create_task(event.wait()) for event in (stop, taken)]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()
            _log.info("stopping")
        if taken.is_set():
            raise TakenError(
                "another process serves this database now: start this one again, and it waits for its turn"
            )


async def _own(settings: Settings, held: contextlib.AsyncExitStack, stop: asyncio.Event) -> Service | None:
    """The service, kept open by `held`. A standby waits for its turn, and gets None when it is told to stop first."""
    waits = False
    while not stop.is_set():
        async with contextlib.AsyncExitStack() as trying:
            try:
                _lock(settings, trying)
                service = await trying.enter_async_context(opened(settings, sole=True))
            except TakenError as error:
                if not settings.api.standby:
                    raise
                if not waits:
                    _log.info("standby", reason=str(error))
                waits = True
            else:
                held.push_async_exit(trying.pop_all())
                return service
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _TURN_SECONDS)
    return None


def _lock(settings: Settings, stack: contextlib.AsyncExitStack) -> None:
    """A replica may have the same state folder, on storage that several hosts mount."""
    try:
        stack.enter_context(state_lock(settings))
    except SettingsError as error:
        if settings.api.standby:
            raise TakenError(str(error)) from None
        raise

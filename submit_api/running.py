"""Open everything, serve, watch, and close everything: the life of one API process.

One process works on a state folder: it holds `api.lock`. At start it brings the tables up to date, ends a rotation of
keys that a crash cut off, and sweeps what one left of uploads.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import structlog
from sqlalchemy.exc import SQLAlchemyError

from integrity.errors import DagsealError, SettingsError
from submit_api import dispatching, keyfiles, rekeying
from submit_api.app import build_app
from submit_api.backends.lookup import Backends
from submit_api.blobs import BlobStore
from submit_api.describing import Describer, LauncherDescriber
from submit_api.effects import Clock, Randomness, SystemClock, SystemRandomness
from submit_api.logs import LogStore
from submit_api.registry import migrate
from submit_api.registry.database import Database
from submit_api.server import Listener, listen
from submit_api.service import Service
from submit_api.settings import Settings
from submit_api.signals import Signals

_log = structlog.get_logger("submit_api")


@contextmanager
def state_lock(settings: Settings) -> Iterator[None]:
    """Be the only one. Raises `SettingsError` while another process works on this state folder."""
    os.makedirs(settings.api.state_folder, mode=0o700, exist_ok=True)
    path = os.path.join(settings.api.state_folder, "api.lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(
                f"another process works on {settings.api.state_folder}: stop it first, or take another state folder"
            ) from None
        yield
    finally:
        os.close(fd)


@asynccontextmanager
async def opened(
    settings: Settings,
    *,
    describer: Describer | None = None,
    clock: Clock | None = None,
    randomness: Randomness | None = None,
    migrating: bool = True,
) -> AsyncIterator[Service]:
    """The service, its tables brought up to date. Effects that are not given are the machine's."""
    keys = keyfiles.load(settings)
    limits = settings.limits
    database = Database(settings.database_url, busy_timeout_seconds=settings.database.busy_timeout_seconds)
    backends = Backends(settings, now=asyncio.get_running_loop().time)
    with contextlib.ExitStack() as stack:
        blobs = BlobStore(
            settings.blobs_folder,
            inline_bytes=limits.inline_bytes,
            cached_blob_bytes=limits.cached_blob_bytes,
            cache_bytes=limits.blob_cache_bytes,
        )
        stack.callback(blobs.close)
        logs = LogStore(settings.logs_folder)
        stack.callback(logs.close)
        try:
            if migrating:
                await migrate.upgrade(database)
                await database.settle()
            yield Service(
                settings=settings,
                keys=keys,
                database=database,
                blobs=blobs,
                logs=logs,
                describer=describer or LauncherDescriber(settings.api.launcher_socket, seconds=limits.describe_seconds),
                clock=clock or SystemClock(),
                randomness=randomness or SystemRandomness(),
                signals=Signals(),
                backends=backends,
            )
        finally:
            await backends.close()
            await database.close()


@asynccontextmanager
async def serving(service: Service) -> AsyncIterator[Listener]:
    """Listen, and meanwhile watch over launches and rewrite what rests under older keys."""
    settings = service.settings
    listener = await listen(build_app(service), settings.api.host, settings.api.port, settings.limits)
    beside = [asyncio.create_task(_watch(service)), asyncio.create_task(rekeying.keep_rewriting(service))]
    try:
        yield listener
    finally:
        for task in beside:
            task.cancel()
        for task in beside:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        service.signals.close()
        await listener.close()


async def _watch(service: Service) -> None:
    while True:
        try:
            await dispatching.expire(service)
        except (DagsealError, SQLAlchemyError, OSError) as error:
            _log.error("watch_failed", error=type(error).__name__)
        await asyncio.sleep(service.settings.launches.watch_interval_seconds)


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with state_lock(settings):
        async with opened(settings) as service:
            await rekeying.settle(service)
            for name in service.blobs.sweep():
                _log.warning("swept", file=name)
            async with serving(service) as listener:
                _log.info("ready", host=settings.api.host, port=listener.port, key=service.keys.signing.public.key_id)
                await stop.wait()
                _log.info("stopping")

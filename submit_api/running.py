"""Open everything, serve, watch, and close everything: the life of one API process.

One process works on a state folder: it holds `api.lock`. At start it brings the tables up to date, ends a rotation of
keys that a crash cut off, and sweeps what one left of uploads and of retired releases. While it serves it watches over
launches, and retires releases.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import structlog
from sqlalchemy.exc import SQLAlchemyError

from integrity.errors import DagsealError, SettingsError
from submit_api import audit_retention, dispatching, keyfiles, rekeying, retiring, transparency
from submit_api.admission import Admission
from submit_api.app import build_app, polls, record_left_out
from submit_api.backends.lookup import Backends
from submit_api.batching import Batches
from submit_api.blobs.opening import open_store
from submit_api.describing import Describer, LauncherDescriber
from submit_api.drift import Reports
from submit_api.effects import Clock, Randomness, SystemClock, SystemRandomness
from submit_api.keyfiles import Keys
from submit_api.logs import LogStore
from submit_api.nonces import Nonces
from submit_api.oidc.fetching import HttpFetcher
from submit_api.oidc.issuerkeys import IssuerKeys
from submit_api.oidc.verifying import TrustedIssuer
from submit_api.refusals import TakenError
from submit_api.registry import migrate, rows
from submit_api.registry.database import Database
from submit_api.server import Listener, listen
from submit_api.service import Service
from submit_api.settings import Settings
from submit_api.signals import Signals
from submit_api.strangers import Strangers
from submit_api.throttling import Throttle
from submit_api.transparency import TransparencyLog

MOST_NONCES = 65_536  # of one key: about a thousand requests in each second, and a few megabytes
RESTORE_MARKER = "restore-unfinished"
RESTORE_AGAIN = "a restore began here and did not end: run 'dagseal restore' again, with the same backup"
_log = structlog.get_logger("submit_api")


def restore_unfinished(settings: Settings) -> bool:
    """Whether what is in the state folder is half a restore."""
    return os.path.lexists(os.path.join(settings.api.state_folder, RESTORE_MARKER))


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
    sole: bool = False,
    restoring: bool = False,
) -> AsyncIterator[Service]:
    """The service, its tables brought up to date. Effects that are not given are the machine's. `sole`: the only one
    that serves or repairs this database; holds `state_lock` as well. Raises `UnavailableError` while it cannot be."""
    if restore_unfinished(settings) and not restoring:
        raise SettingsError(f"{settings.api.state_folder}: {RESTORE_AGAIN}")
    keys = keyfiles.load(settings)
    clock = clock or SystemClock()
    limits = settings.limits
    database = Database(settings.database_section, sole=sole)
    backends = Backends(settings, now=asyncio.get_running_loop().time)
    with contextlib.ExitStack() as stack:
        logs = LogStore(settings.logs_folder)
        stack.callback(logs.close)
        fetcher = HttpFetcher(settings.oidc)
        randomness = randomness or SystemRandomness()
        try:
            if migrating:
                await migrate.upgrade(database)
                await database.settle()
            keys = await _in_order(settings, keys, database, clock.now_us() if migrating else None)
            blobs = open_store(settings, keys.public[0].key_id)
            stack.callback(blobs.close)
            if sole:
                await blobs.claim()
            yield Service(
                settings=settings,
                keys=keys,
                database=database,
                blobs=blobs,
                logs=logs,
                transparency=TransparencyLog(database, keys.signing, clock),
                describer=describer
                or LauncherDescriber(
                    settings.api.launcher_socket, seconds=limits.describe_seconds, at_once=limits.max_descriptions
                ),
                admission=Admission(
                    uploads_per_principal=limits.max_uploads_per_principal, inspections=limits.max_inspections
                ),
                recordings=Batches(most=limits.max_recorded_together),
                clock=clock,
                randomness=randomness,
                signals=Signals(),
                strangers=Strangers(settings.audit.unauthenticated_per_minute),
                issuers={
                    issuer.issuer: TrustedIssuer(
                        settings=issuer, keys=IssuerKeys(issuer, settings.oidc, fetcher, clock)
                    )
                    for issuer in settings.oidc.issuers
                },
                failures=Throttle(
                    clock,
                    burst=settings.failures.burst,
                    seconds_each=settings.failures.seconds_each,
                    max_keys=settings.failures.max_clients,
                ),
                backends=backends,
                nonces=Nonces(most_of_one=MOST_NONCES),
                reports=Reports(),
                epoch=randomness.token_bytes(16).hex(),
            )
        finally:
            await fetcher.close()
            await backends.close()
            await database.close()


async def _in_order(settings: Settings, keys: Keys, database: Database, now: int | None) -> Keys:
    """The keys with those before them, as the log has them; with `now` the log is begun where there is none, and a handover
    that was cut off is ended. Raises `SettingsError` where the log's newest key is another."""
    try:
        async with database.read() as tx:
            if now is None and await rows.revision(tx) != rows.newest():
                return keys
            chain = await transparency.chain(tx)
    except SQLAlchemyError as error:
        raise SettingsError(f"the database cannot be read: {type(error).__name__}") from None
    if not chain and now is not None:
        async with database.write() as tx:
            await transparency.begin(tx, keys.signing, now)
    elif chain and chain[-1] != keys.signing.public:
        if now is None:
            return keys  # fsck says so
        prepared = keyfiles.prepared_signing_key(settings)
        if prepared is None or prepared.public != chain[-1]:
            raise SettingsError(
                f"{settings.signing_key_file} is key {keys.signing.public.key_id[:16]}…, and the log was handed on to "
                f"{chain[-1].key_id[:16]}…: put that key there"
            )
        keyfiles.count_signing_key(settings, prepared.public)
        keys = keyfiles.load(settings)
    return replace(keys, earlier=chain[:-1])


@asynccontextmanager
async def serving(service: Service, taken: asyncio.Event | None = None) -> AsyncIterator[Listener]:
    """Listen, and meanwhile watch over launches and rewrite what rests under older keys. `taken` is set when another process
    has taken the place of this one."""
    settings = service.settings
    app = build_app(service)
    listener = await listen(app, polls(app), settings.api.host, settings.api.port, settings.limits)
    beside = [asyncio.create_task(_watch(service, taken)), asyncio.create_task(rekeying.keep_rewriting(service))]
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
        await record_left_out(service, anyway=True)


async def _watch(service: Service, taken: asyncio.Event | None) -> None:
    loop = asyncio.get_running_loop()
    due, swept_at = loop.time(), 0
    while True:
        try:
            if taken is not None:
                await service.database.hold()
            await dispatching.expire(service)
            await record_left_out(service)
            if loop.time() >= due:
                due = loop.time() + service.settings.retention.interval_seconds
                await retiring.retire(service)
            if not 0 <= service.now_us() - swept_at < audit_retention.SWEEP_US:
                swept_at = service.now_us()
                await audit_retention.remove_old(service)
        except TakenError as error:
            _log.error("taken_over", reason=str(error))
            if taken is not None:
                taken.set()
        except (DagsealError, SQLAlchemyError, OSError) as error:
            _log.error("watch_failed", error=type(error).__name__)
        await asyncio.sleep(service.settings.launches.watch_interval_seconds)

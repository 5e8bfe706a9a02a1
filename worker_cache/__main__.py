"""`python -m worker_cache --config FILE`: run the agent until SIGTERM.

Logs are JSON lines on stderr. Exit codes: 0 stopped as asked, 2 the configuration is not usable.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack

import structlog

from integrity.errors import DagsealError, FetchError
from vocabulary.logview import LogView
from worker_cache import agent, authors, mirrors, readers, serving, settings
from worker_cache.cache import Cache
from worker_cache.client import Client
from worker_cache.following import Follower
from worker_cache.keeping import Keeper
from worker_cache.launchers import Launcher
from worker_cache.logstore import LogStore
from worker_cache.releasesocket import ReleaseSocket
from worker_cache.setfolders import SetFolders
from worker_cache.settings import MIB, AgentSettings
from worker_cache.spool import Spool
from worker_cache.store import Store
from worker_cache.tasksocket import TaskSocket
from worker_cache.transport import Transport
from worker_cache.trees import Trees
from worker_cache.workplace import Workplace

USAGE = 2


def main() -> int:
    """Parse, run, and say in one line what is wrong with the configuration."""
    parser = argparse.ArgumentParser(prog="python -m worker_cache", description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE", help="TOML with an [agent] table")
    given = parser.parse_args()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        asyncio.run(_run(settings.load(given.config, os.environ)))
    except DagsealError as error:
        sys.stderr.write(f"dagseal agent: {error}\n")
        return USAGE
    return 0


async def _run(found: AgentSettings) -> None:
    log = structlog.get_logger(process="agent", worker=found.worker)
    os.umask(0o077)
    whose = authors.load(found.authors_file) if found.authors_file is not None else authors.ANYBODY
    store, spool, launcher = Store.open(found.cache_dir), Spool(found.spool_dir), found.launcher()
    kept = LogStore(store.log_folder())
    try:
        known, _ = await asyncio.gather(asyncio.to_thread(kept.load, found.server_key), _greet(launcher, log))
        signer = found.signer()
        token = found.token(os.environ) if signer is None else None
        async with AsyncExitStack() as stack:
            transport = await stack.enter_async_context(
                Transport(found.server, token, signer=signer, unsafe_http=found.unsafe_http, ca_file=found.ca_file)
            )
            api = Client(transport)
            cache = Cache(
                store,
                api.blob,
                max_blob_bytes=found.max_blob_mib * MIB,
                batch=api.blobs,
                mirrors=await mirrors.open_all(found.mirrors, stack),
                mirrors_first=found.mirrors.first,
                limits=found.cache_limits,
            )
            stack.push_async_callback(cache.close)
            cache.start()
            if address := found.mirrors.serve_at():
                await stack.enter_async_context(serving.serving(cache, *address))
            keeper = Keeper(
                cache=cache,
                api=api,
                authors=whose,
                worker=found.worker,
                queues=frozenset(found.queues),
                report_seconds=found.report_seconds,
                log=log,
            )
            follower = Follower(
                api,
                kept,
                known,
                pinned=found.server_key,
                max_age_seconds=found.max_log_age_seconds,
                now=time.time,
                log=log,
                changed=lambda view: _tell(view, keeper, folders),
                offer=cache.offer,
            )
            trees = Trees(found.trees_dir, max_bytes=found.max_trees_mib * MIB) if found.trees_dir is not None else None
            folders = SetFolders(
                put=api.put_set,
                get=api.get_set,
                view=lambda: follower.view,
                fetch=lambda release: cache.open(release.digest, size=release.size),
                trees=trees,
                authors=whose,
            )
            if found.releases_socket is not None:
                releases = ReleaseSocket(
                    found.releases_socket,
                    readers=readers.load(found.readers_file) if found.readers_file is not None else {},
                    folders=folders,
                    open_cached=lambda release: cache.open_held(release.digest),
                    log=log,
                )
                stack.push_async_callback(releases.close)
            place = Workplace(
                api=api,
                cache=cache,
                follower=follower,
                authors=whose,
                keeper=keeper,
                spool=spool,
                launcher=launcher,
                worker=found.worker,
                queues=tuple(found.queues),
                heartbeat_seconds=found.heartbeat_seconds,
                log_sync_seconds=found.log_sync_seconds,
                now=time.time,
                sleep=asyncio.sleep,
                jitter=random.random,
                log=log,
            )
            supervised: Callable[[], Iterable[asyncio.Task[None]]] = tuple
            if found.tasks_socket is not None:
                tasks = TaskSocket(found.tasks_socket, place, accounts=found.task_uids(), max_tasks=found.max_tasks)
                stack.push_async_callback(tasks.close)
                supervised = tasks.under_way
            _stop_on_signals(place)
            await agent.run(place, slots=found.slots, grace_seconds=found.stop_grace_seconds, supervised=supervised)
    finally:
        await launcher.close()
        spool.close()
        kept.close()
        store.close()
    log.info("agent stopped")


def _tell(view: LogView, keeper: Keeper, folders: SetFolders) -> None:
    keeper.changed(view)
    folders.changed()


async def _greet(launcher: Launcher, log: structlog.typing.FilteringBoundLogger) -> None:
    """Say at start what the launcher says of itself. An absent launcher is waited for, not fatal."""
    try:
        identity = await agent.identify(launcher)
    except FetchError as error:
        log.warning("no launcher yet", error=str(error))
        return
    log.info("launcher found", key_id=identity.verify_key.key_id, privileged=identity.privileged)
    for warning in identity.warnings:
        log.warning("the launcher warns", warning=warning)


def _stop_on_signals(place: Workplace) -> None:
    """The first signal lets running tasks end, the second cancels them."""

    def stop() -> None:
        if place.stopping.is_set():
            place.cancelling.set()
        place.stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)


if __name__ == "__main__":
    sys.exit(main())

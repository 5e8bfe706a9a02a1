"""The unprivileged half: tickets, bytes, claims, grants, logs, the journal, and everything that callers and tasks say.

Promise: it has dropped before it reads any of that, and before it has a key. It holds the launcher's keys and one grant at a
time; it can become nobody. What takes privileges it asks the monitor for (`notary.asking`).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import time
from functools import partial

from integrity.errors import MalformedError, SettingsError
from launcher.channel import Channel
from launcher.kinds import Kind
from launcher.log import log
from launcher.monitor import FRAME_BYTES
from launcher.policy import Policy
from launcher.separation import Place
from notary import context as contexts
from notary import packages
from notary.asking import Asking
from notary.journal import Journal
from notary.server import Server
from notary.tasklog import TaskLog
from notary.taskprocess import TaskProcess
from notary.unpromised import warnings
from notary.warmpool import PoolRules, WarmPool
from notary.warmprocess import WarmProcess
from vocabulary.keys import KeyRing, VerifyKey, fingerprint

_DESCRIPTION_LOG_BYTES = 64 * 1024
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


def serve(place: Place, monitor: socket.socket) -> None:
    """Until a signal, the end of stdin, or of the monitor. Raises `SettingsError`."""
    asyncio.run(_serve(place, monitor))


def _ring(policy: Policy) -> KeyRing:
    try:
        return KeyRing([VerifyKey(raw) for raw in policy.api_keys])
    except MalformedError as error:
        raise SettingsError(f"trust.api_keys: {error}") from None


def _build(place: Place, control: socket.socket) -> contexts.Context:
    """Everything that lives as long as the daemon. Raises `SettingsError`."""
    policy, limits = place.policy, place.policy.limits
    ring = _ring(policy)
    state_fd = contexts.open_private(policy.state_dir)
    installed = packages.folder()
    monitor = Asking(Channel(control, limit=FRAME_BYTES))

    def now_us() -> int:
        return time.time_ns() // 1000

    async def fork(warm: WarmProcess) -> TaskProcess:
        open_log = partial(
            TaskLog,
            max_bytes=limits.max_log_bytes if warm.kind.purpose == "run" else _DESCRIPTION_LOG_BYTES,
            bytes_per_second=limits.log_bytes_per_second,
            now_us=now_us,
        )
        return await TaskProcess.fork(warm, monitor, open_log=open_log, max_frame=limits.max_task_frame_bytes)

    async def start(kind: Kind) -> WarmProcess:
        return await WarmProcess.start(kind, monitor, timeout_seconds=limits.warm_start_timeout_seconds)

    return contexts.Context(
        policy=policy,
        ring=ring,
        keys=contexts.load_keys(contexts.open_folder(state_fd, "keys")),
        journal=Journal(contexts.open_folder(state_fd, "journal"), now_us=now_us),
        pool=WarmPool(
            rules=PoolRules(
                spares=limits.warm_spares, max_tasks=limits.warm_max_tasks, idle_seconds=limits.warm_idle_seconds
            ),
            start=start,
            fork=fork,
            stamp=lambda: os.stat(installed).st_mtime_ns,
        ),
        monitor=monitor,
        mode=place.mode,
        owner=place.owner,
        limits=place.limits,
        now_us=now_us,
    )


async def _serve(place: Place, monitor: socket.socket) -> None:
    context = _build(place, monitor)
    server = Server(context)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, server.stop)
    context.monitor.when_gone(server.stop)
    context.journal.write(
        "start",
        privileged=context.privileged,
        trees=place.trees,
        limits=place.limits,
        memory_locked=_lock_memory(),
    )
    log(
        "ready",
        socket=place.policy.socket if place.caller is None else "stdin",
        fingerprint=fingerprint(context.keys.signing.public, context.keys.sealing.public),
        privileged=context.privileged,
        mode=place.mode,
        warnings=warnings(place.policy, place.mode),
    )
    if place.caller is None:
        await server.serve_listener(place.door)
    else:
        await server.serve_caller(place.door, place.caller)
    context.journal.write("stop")


def _lock_memory() -> bool:
    """Keep this process's memory out of swap (mlockall(2)), page by page as it is used; False where the host does not permit
    it. Forks and what they exec do not inherit it."""
    return bool(ctypes.CDLL(None).mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0)

"""The agent's `tasks.sock`: a supervisor of Airflow's asks for its task to be run. One connection is one launch.

    → launch {task_instance, dag_id, task_id, run_id, map_index, try_number} + 1 fd    the task's end of the supervisor's socket
    ← offered {launch_id, archive, release, digest, unix_user, xcom_dags}
    → start {}                                  Airflow agreed: only now the launch is claimed
    ← log {data}                                any number
    ← ended {state, error, detail, exit_code}   the last word
    ← refused {error, detail}                   instead, before the claim; the last word
    → cancel {grace_seconds}                    at any time

Promise: only the accounts that the settings name are heard, by the kernel's word for who asks (SO_PEERCRED). What is offered
was verified as every offer, and is the try that was asked for. The task lives no longer than its supervisor: when the
connection ends, its tree is killed, and its result brought to the API all the same.

A supervisor that reads its log slowly keeps nobody waiting and costs no memory: it is sent what the spool has on disk, as the
API is, and has `supervisors.LAST_SECONDS` for the rest once the task has ended. While the API or the launcher cannot be
reached, and while as many tasks run as may, the question stays open: how long, the asker decides. A connection that ends
without a last word: the agent went away.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Any

from integrity.errors import DagsealError, FetchError, MalformedError, UnauthorizedError
from integrity.fields import Fields
from vocabulary.keys import VerifyKey
from worker_cache import agent, framing, launching, problems, trust
from worker_cache.launching import Beside, Ready
from worker_cache.localsocket import LocalSocket
from worker_cache.supervisors import MAX_REQUEST_BYTES, Asker, Telling
from worker_cache.trust import Instance
from worker_cache.waiting import unless
from worker_cache.workplace import Workplace

MAX_WAITING = 256  # beside those that run
WANTED_GRACE_SECONDS = 5  # when the API or this agent wants the end
ASK_SECONDS = 10.0
_MAX_TASK_INSTANCE_CHARS = 64
_DRIFTED = "drifted"


class TaskSocket:
    """One listening socket. `close` ends it and every conversation."""

    def __init__(self, path: str, place: Workplace, *, accounts: frozenset[int], max_tasks: int) -> None:
        """`accounts` by uid. Raises `SettingsError`."""
        self._place = place
        self._accounts = accounts
        self._free = asyncio.Semaphore(max_tasks)
        self._socket = LocalSocket(
            path, self._serve, setting="tasks_socket", most=max_tasks + MAX_WAITING, log=place.log
        )

    async def close(self) -> None:
        await self._socket.close()

    def under_way(self) -> Iterable[asyncio.Task[None]]:
        return tuple(self._socket.answering)

    async def _serve(self, peer: socket.socket, uid: int) -> None:
        try:
            if uid not in self._accounts:
                raise UnauthorizedError(f"uid {uid} may not start tasks here: name its account in tasks_accounts")
            async with asyncio.timeout(ASK_SECONDS):
                task_instance, asked, task_end = await _question(peer)
        except EOFError:
            return
        except DagsealError as error:
            self._place.log.warning("task not started", uid=uid, slug=error.slug, error=str(error))
            await Asker(peer).say("refused", error=error.slug, detail=str(error))
            return
        with task_end:
            asker = Asker(peer)
            hearing = asyncio.create_task(asker.hear())
            try:
                await self._attend(asker, task_instance, asked, task_end)
            finally:
                hearing.cancel()
                await asyncio.gather(hearing, return_exceptions=True)

    async def _attend(self, asker: Asker, task_instance: str, asked: Instance, task_end: socket.socket) -> None:
        stopping = self._place.stopping
        if not await unless(self._free.acquire(), asker.gone, stopping):
            return
        try:
            async with AsyncExitStack() as stack:
                found = await unless(self._offer(asker, stack, task_instance, asked), asker.gone, stopping)
                if found is None:
                    return
                ready, launcher = found
                await asker.say("offered", **_offered(ready))
                running = asyncio.create_task(self._run(asker, ready, launcher, task_end))
                try:
                    await unless(_either(running, asker.started), asker.gone, asker.cancelled, stopping)
                    if asker.started.is_set() or running.done():
                        await running
                        return
                finally:
                    running.cancel()
                    await asyncio.gather(running, return_exceptions=True)
                if asker.cancelled.is_set():
                    await self._refuse(
                        asker, ready.offer.offer.launch_id, "cancelled", "its supervisor wants it no more"
                    )
        finally:
            self._free.release()

    async def _offer(
        self, asker: Asker, stack: AsyncExitStack, task_instance: str, asked: Instance
    ) -> tuple[Ready, VerifyKey] | None:
        """What may be started, and the launcher's key; None when it was refused, which was told."""
        place, delays = self._place, self._place.delays()
        while True:
            launch_id = None
            try:
                launcher = (await agent.identify(place.launcher)).verify_key
                offered = await self._take(task_instance)
                if offered is None:
                    delays = place.delays()
                    continue
                launch_id = trust.launch_id_of(offered)
                checking = launching.checked(place, offered, audience=launcher.key_id, asked=asked)
                return await stack.enter_async_context(checking), launcher
            except FetchError as error:
                place.log.warning("task waits", task_instance=task_instance, error=str(error))
            except DagsealError as error:
                slug = problems.named(error)
                if slug != _DRIFTED:
                    await self._refuse(asker, launch_id, slug, str(error))
                    return None
                place.log.warning("task waits", task_instance=task_instance, error=str(error))
            await place.sleep(next(delays))

    async def _take(self, task_instance: str) -> Any | None:
        place = self._place
        return await place.api.take(
            place.worker, list(place.queues), wait_seconds=agent.TAKE_WAIT_SECONDS, task_instance=task_instance
        )

    async def _refuse(self, asker: Asker, launch_id: str | None, slug: str, detail: str) -> None:
        """Tell the asker, and the API where it is this host that refuses."""
        await asker.say("refused", error=slug, detail=detail)
        if launch_id is not None:
            await launching.report_refusal(self._place, launch_id, slug, detail)

    async def _run(self, asker: Asker, ready: Ready, launcher: VerifyKey, task_end: socket.socket) -> None:
        launch_id = ready.offer.offer.launch_id
        telling = Telling(asker, launcher)
        beside = Beside(
            task_end=task_end,
            started=asker.started,
            grace_seconds=WANTED_GRACE_SECONDS,
            wishes=asker.wishes,
            claimed=telling.claimed,
            ended=telling.ended,
            refused=telling.refused,
        )
        try:
            await launching.run(self._place, ready, beside)
        except FetchError as error:
            self._place.log.warning("launch not started or lost", launch_id=launch_id, error=str(error))
            telling.failed(error)
        except DagsealError as error:
            telling.failed(error)
            await launching.report_refusal(self._place, launch_id, error.slug, str(error))
        except OSError as error:
            self._place.log.error(
                "this host cannot keep the launch's log or result", launch_id=launch_id, error=str(error)
            )
            telling.failed(error)
        finally:
            await telling.close(asker.gone)


async def _either(running: asyncio.Task[None], started: asyncio.Event) -> None:
    """Return when it was started, or ended before."""
    starting = asyncio.ensure_future(started.wait())
    try:
        await asyncio.wait({running, starting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        starting.cancel()


async def _question(peer: socket.socket) -> tuple[str, Instance, socket.socket]:
    """Task instance, its names, and the task's end of the supervisor's socket. Raises `MalformedError`, `EOFError`."""
    message, fd = await framing.receive_with_fd(peer, limit=MAX_REQUEST_BYTES)
    task_end = _socket(fd)
    try:
        if message.kind != "launch":
            raise MalformedError("here one asks for a launch, first of all")
        fields = message.fields
        task_instance = fields.text("task_instance", max_chars=_MAX_TASK_INSTANCE_CHARS)
        asked = _instance(fields)
        fields.done()
    except BaseException:
        task_end.close()
        raise
    return task_instance, asked, task_end


def _instance(fields: Fields) -> Instance:
    return Instance(
        dag_id=fields.name("dag_id", "dag_id"),
        task_id=fields.name("task_id", "task_id"),
        run_id=fields.name("run_id", "run_id"),
        map_index=fields.integer("map_index", least=-1),
        try_number=fields.integer("try_number", least=1),
    )


def _socket(fd: int) -> socket.socket:
    """A connected unix stream socket: what else it is given the launcher would refuse, after the ticket was used up."""
    try:
        found = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        raise MalformedError("the descriptor is no socket") from None
    try:
        found.getpeername()
        connected = (found.family, found.type) == (socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:
        connected = False
    if not connected:
        found.close()
        raise MalformedError("the descriptor is to be a connected unix stream socket")
    return found


def _offered(ready: Ready) -> dict[str, Any]:
    offer, ticket = ready.offer.offer, ready.offer.ticket.ticket
    return {
        "launch_id": offer.launch_id,
        "archive": offer.archive,
        "release": ticket.release,
        "digest": str(offer.digest),
        "unix_user": ticket.unix_user,
        "xcom_dags": list(offer.xcom_dags),
    }

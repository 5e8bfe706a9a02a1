"""One launch, from offer to acknowledged result.

    verify the offer → ask the log → is it its author's? → fetch and verify the bytes
        → run → claim → grant (or deny) → log … → result → acknowledged

A refusal is reported; what only failed (network, launcher away) before the claim is not: the ticket expires and the API
offers the launch again. After the claim everything goes through the spool. Leaving this module closes the launcher's
connection, and with it the task's whole tree.

A supervised launch goes the same way; who supervises it stands `Beside` it (`worker_cache.tasksocket`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from integrity.errors import DagsealError, FetchError, SignatureError
from worker_cache import delivery, launcher_link, trust
from worker_cache.launcher_link import ClaimMade, Ended, Link, Log, Refused
from worker_cache.log_relay import KeptLog
from worker_cache.trust import Instance, Offer, VerifiedOffer
from worker_cache.waiting import unless
from worker_cache.workplace import Workplace


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """An offer that may be run here, and a descriptor of its verified bytes."""

    offer: VerifiedOffer
    archive: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """Who hears of a launch, and may end it; by default nobody.

    `task_end`, the task's end of its supervisor's socket, is closed when the launcher has it. `grace_seconds`: what the task is
    given to end by itself when the API or this agent wants it to; each of `wishes` to cancel comes with its own. What is told
    is told at once, and waits for nobody: the log, from the claim on; then the result, on disk; or instead why there is none.
    Until it is `started`, if that is given, the launcher prepares, and nothing is claimed (ADR-0031).
    """

    task_end: socket.socket | None = None
    started: asyncio.Event | None = None
    grace_seconds: int = 0
    wishes: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    claimed: Callable[[KeptLog], None] = lambda log: None
    ended: Callable[[bytes], None] = lambda result: None
    refused: Callable[[str, str], None] = lambda slug, detail: None


async def carry_out(place: Workplace, offered: Any, *, audience: str) -> bool:
    """Do what `take` offered; False when the launcher or the network failed, so that the caller slows down."""
    launch_id = trust.launch_id_of(offered)
    if launch_id is None:
        place.log.error("the API offered a launch without an id")
        return False
    try:
        async with checked(place, offered, audience=audience) as ready:
            await run(place, ready, Beside())
    except FetchError as error:
        place.log.warning("launch not started or lost", launch_id=launch_id, error=str(error))
        return False
    except DagsealError as error:
        await report_refusal(place, launch_id, error.slug, str(error))
    except OSError as error:
        place.log.error("this host cannot keep the launch's log or result", launch_id=launch_id, error=str(error))
        return False
    return True


@contextlib.asynccontextmanager
async def checked(
    place: Workplace, offered: Any, *, audience: str, asked: Instance | None = None
) -> AsyncIterator[Ready]:
    """Everything that is to hold before the launcher is asked, and the bytes: pinned while inside. `asked`: by a supervisor."""
    offer = await _verified(place, Offer.from_json(offered), audience, asked)
    place.authors.require(await place.follower.require_launchable(offer.manifest))
    digest = offer.offer.digest
    with place.cache.pin(digest):
        archive = await place.cache.open(digest, size=offer.manifest.manifest.size)
        try:
            yield Ready(offer=offer, archive=archive)
        finally:
            os.close(archive)


async def _verified(place: Workplace, offer: Offer, audience: str, asked: Instance | None) -> VerifiedOffer:
    """Where the API's key was handed on a moment ago, the log says so, if it is asked."""

    def verify() -> VerifiedOffer:
        keys, queues = place.follower.keys, frozenset(place.queues)
        return trust.verify(offer, keys, audience=audience, queues=queues, asked=asked, now=int(place.now()))

    try:
        return verify()
    except SignatureError:
        await place.follower.sync()
        return verify()


async def run(place: Workplace, ready: Ready, beside: Beside) -> None:
    """From the launcher's `run` to the acknowledged result. Raises `FetchError` when there is none, or another error before
    there could be one."""
    offer = ready.offer
    launch_id = offer.offer.launch_id
    async with launcher_link.connect(place.launcher) as link:
        await link.run(
            ticket=offer.offer.ticket,
            manifest=offer.offer.manifest,
            archive_fd=ready.archive,
            supervisor_fd=beside.task_end.fileno() if beside.task_end is not None else None,
        )
        if beside.task_end is not None:
            beside.task_end.close()
        cancelling = asyncio.create_task(_cancel_when_wished(place, link, beside))
        try:
            event = await link.event()
            if isinstance(event, ClaimMade) and beside.started is not None:
                await beside.started.wait()
            match event:
                case Refused(error=slug, detail=detail):
                    beside.refused(slug, detail)
                    await report_refusal(place, launch_id, slug, detail)
                    return
                case ClaimMade(envelope=claim):
                    await _claimed(place, offer, link, claim, beside)
                    return
                case Ended(envelope=result):
                    _keep(place, launch_id, result)
                    beside.ended(result)
                case Log():
                    raise FetchError("the launcher sent a log before a claim: this is not its protocol")
        finally:
            cancelling.cancel()
            await asyncio.gather(cancelling, return_exceptions=True)
    await delivery.send_result(place, launch_id)


def _keep(place: Workplace, launch_id: str, result: bytes) -> None:
    fd = place.spool.open_log(launch_id)
    try:
        place.spool.keep_result(launch_id, result, log_fd=fd)
    finally:
        os.close(fd)


async def _claimed(place: Workplace, offer: VerifiedOffer, link: Link, claim: bytes, beside: Beside) -> None:
    """From the claim on nothing may be lost: log and result are on disk before anybody is told."""
    launch_id = offer.offer.launch_id
    log_fd = place.spool.open_log(launch_id)
    log = KeptLog(log_fd)
    wanted = asyncio.Event()
    shipping = asyncio.create_task(delivery.ship_log(place, log, launch_id))
    tasks: list[asyncio.Task[Any]] = [shipping]
    try:
        beside.claimed(log)
        if await _answer_claim(place, offer, link, claim):
            place.log.info("launch claimed", launch_id=launch_id, digest=str(offer.offer.digest))
            tasks.append(asyncio.create_task(_beat(place, launch_id, wanted)))
        tasks.append(asyncio.create_task(_wish_when_wanted(place, beside, wanted)))
        try:
            result = await _until_ended(link, log)
            place.spool.keep_result(launch_id, result, log_fd=log_fd)
        finally:
            log.close()
        beside.ended(result)
        if await shipping:
            await delivery.send_result(place, launch_id)
    except DagsealError as error:
        # The launcher died or spoke nonsense: the launch ends as lost. What the task printed is still worth having.
        if await shipping:
            place.spool.forget(launch_id)
        raise FetchError(f"no result after the claim: {error}") from None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        os.close(log_fd)


async def _answer_claim(place: Workplace, offer: VerifiedOffer, link: Link, claim: bytes) -> bool:
    """Relay claim and grant; True when the launcher got the grant. The same claim is repeated while the ticket lives."""
    delays = place.delays()
    while True:
        try:
            grant = await place.api.claim(offer.offer.launch_id, claim)
        except FetchError as error:
            if place.now() < offer.ticket.ticket.expires_at and await place.pause(next(delays)):
                continue
            denied = f"the API did not answer the claim in time: {error}"
        except DagsealError as error:
            denied = str(error)
        else:
            denied = ""
        # A launcher that was cancelled meanwhile hears neither: its result is there to be read all the same.
        with contextlib.suppress(FetchError):
            await (link.deny(denied) if denied else link.grant(grant))
        return not denied


async def _until_ended(link: Link, log: KeptLog) -> bytes:
    while True:
        match await link.event():
            case Log(data=data):
                log.append(data)
            case Ended(envelope=envelope):
                return envelope
            case Refused(error=slug, detail=detail):
                raise FetchError(f"the launcher gave up after its claim ({slug}: {detail}) and signed no result")
            case ClaimMade():
                raise FetchError("the launcher claimed twice: this is not its protocol")


async def _beat(place: Workplace, launch_id: str, wanted: asyncio.Event) -> None:
    """Heartbeats, of which the claim was the first, until cancelled from outside; sets `wanted` when the API asks to cancel or
    calls the launch over."""
    while True:
        await place.sleep(place.heartbeat_seconds)
        try:
            state, cancel = await place.api.heartbeat(launch_id)
        except FetchError as error:
            place.log.warning("heartbeat not delivered", launch_id=launch_id, error=str(error))
        except DagsealError as error:
            place.log.error("the API refused the heartbeat", launch_id=launch_id, error=str(error))
            wanted.set()
        else:
            if cancel or state != "running":
                wanted.set()


async def _wish_when_wanted(place: Workplace, beside: Beside, wanted: asyncio.Event) -> None:
    await unless(wanted.wait(), place.cancelling)
    beside.wishes.put_nowait(beside.grace_seconds)


async def _cancel_when_wished(place: Workplace, link: Link, beside: Beside) -> None:
    """The first is with its grace; whoever wishes again will not wait for it: the launcher takes a second one so."""
    if beside.started is not None:
        await beside.started.wait()
    try:
        while True:
            await link.cancel(await beside.wishes.get())
    except FetchError as error:
        place.log.warning("the launcher could not be asked to cancel", error=str(error))


async def report_refusal(place: Workplace, launch_id: str, slug: str, detail: str) -> None:
    """This host will not run it: say so, if the API can be reached within a while."""
    place.log.error("launch refused", launch_id=launch_id, slug=slug, detail=detail)
    delays = place.delays()
    for _ in range(5):
        try:
            await place.api.refuse(launch_id, error=slug, detail=detail)
            return
        except FetchError as error:
            place.log.warning("refusal not delivered yet", launch_id=launch_id, error=str(error))
            if not await place.pause(next(delays)):
                return
        except DagsealError as error:
            place.log.error("the API did not accept the refusal", launch_id=launch_id, error=str(error))
            return

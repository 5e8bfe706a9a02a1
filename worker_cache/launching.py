"""One launch, from offer to acknowledged result.

    verify the offer → ask the log → is it its author's? → fetch and verify the bytes
        → run → claim → grant (or deny) → log … → result → acknowledged

A refusal is reported; what only failed (network, launcher away) before the claim is not: the ticket expires and the API
offers the launch again. After the claim everything goes through the spool. Leaving this module closes the launcher's
connection, and with it the task's whole tree.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from integrity.errors import DagsealError, FetchError, SignatureError
from worker_cache import delivery, launcher_link, trust
from worker_cache.launcher_link import ClaimMade, Ended, Link, Log, Refused
from worker_cache.log_relay import LogRelay
from worker_cache.trust import Offer, VerifiedOffer
from worker_cache.workplace import Workplace


async def carry_out(place: Workplace, offered: Any, *, audience: str) -> bool:
    """Do what `take` offered; False when the launcher or the network failed, so that the caller slows down."""
    launch_id = trust.launch_id_of(offered)
    if launch_id is None:
        place.log.error("the API offered a launch without an id")
        return False
    try:
        offer = await _verified(place, Offer.from_json(offered), audience)
        place.authors.require(await place.follower.require_launchable(offer.manifest))
        await _run(place, offer)
    except FetchError as error:
        place.log.warning("launch not started or lost", launch_id=launch_id, error=str(error))
        return False
    except DagsealError as error:
        await _report_refusal(place, launch_id, error.slug, str(error))
    except OSError as error:
        place.log.error("this host cannot keep the launch's log or result", launch_id=launch_id, error=str(error))
        return False
    return True


async def _verified(place: Workplace, offer: Offer, audience: str) -> VerifiedOffer:
    """Where the API's key was handed on a moment ago, the log says so, if it is asked."""

    def verify() -> VerifiedOffer:
        keys, queues = place.follower.keys, frozenset(place.queues)
        return trust.verify(offer, keys, audience=audience, queues=queues, now=int(place.now()))

    try:
        return verify()
    except SignatureError:
        await place.follower.sync()
        return verify()


async def _run(place: Workplace, offer: VerifiedOffer) -> None:
    with place.cache.pin(offer.offer.digest):
        await _run_pinned(place, offer)


async def _run_pinned(place: Workplace, offer: VerifiedOffer) -> None:
    launch_id = offer.offer.launch_id
    archive = await place.cache.open(offer.offer.digest, size=offer.manifest.manifest.size)
    try:
        async with launcher_link.connect(place.launcher) as link:
            await link.run(ticket=offer.offer.ticket, manifest=offer.offer.manifest, archive_fd=archive)
            match await link.event():
                case Refused(error=slug, detail=detail):
                    await _report_refusal(place, launch_id, slug, detail)
                    return
                case ClaimMade(envelope=claim):
                    await _claimed(place, offer, link, claim)
                    return
                case Ended(envelope=result):
                    _keep(place, launch_id, result)
                case Log():
                    raise FetchError("the launcher sent a log before a claim: this is not its protocol")
        await delivery.send_result(place, launch_id)
    finally:
        os.close(archive)


def _keep(place: Workplace, launch_id: str, result: bytes) -> None:
    fd = place.spool.open_log(launch_id)
    try:
        place.spool.keep_result(launch_id, result, log_fd=fd)
    finally:
        os.close(fd)


async def _claimed(place: Workplace, offer: VerifiedOffer, link: Link, claim: bytes) -> None:
    """From the claim on nothing may be lost: log and result are on disk before anybody is told."""
    launch_id = offer.offer.launch_id
    log_fd = place.spool.open_log(launch_id)
    relay = LogRelay(place.api, launch_id, log_fd)
    wanted = asyncio.Event()
    shipping = asyncio.create_task(delivery.ship_log(place, relay, launch_id))
    tasks: list[asyncio.Task[Any]] = [shipping]
    try:
        if await _answer_claim(place, offer, link, claim):
            place.log.info("launch claimed", launch_id=launch_id, digest=str(offer.offer.digest))
            tasks.append(asyncio.create_task(_beat(place, launch_id, wanted)))
        tasks.append(asyncio.create_task(_cancel_when_wanted(place, link, wanted)))
        try:
            result = await _until_ended(link, relay)
            place.spool.keep_result(launch_id, result, log_fd=log_fd)
        finally:
            relay.close()
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
            await link.deny(f"the API did not answer the claim in time: {error}")
            return False
        except DagsealError as error:
            await link.deny(str(error))
            return False
        await link.grant(grant)
        return True


async def _until_ended(link: Link, relay: LogRelay) -> bytes:
    while True:
        match await link.event():
            case Log(data=data):
                relay.append(data)
            case Ended(envelope=envelope):
                return envelope
            case Refused(error=slug, detail=detail):
                raise FetchError(f"the launcher gave up after its claim ({slug}: {detail}) and signed no result")
            case ClaimMade():
                raise FetchError("the launcher claimed twice: this is not its protocol")


async def _beat(place: Workplace, launch_id: str, wanted: asyncio.Event) -> None:
    """Heartbeats until cancelled from outside; sets `wanted` when the API asks to cancel or calls the launch over."""
    while True:
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
        await place.sleep(place.heartbeat_seconds)


async def _cancel_when_wanted(place: Workplace, link: Link, wanted: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(wanted.wait()), asyncio.ensure_future(place.cancelling.wait())]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
    try:
        await link.cancel()
    except FetchError as error:
        place.log.warning("the launcher could not be asked to cancel", error=str(error))


async def _report_refusal(place: Workplace, launch_id: str, slug: str, detail: str) -> None:
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

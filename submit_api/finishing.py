"""The worker's side of launches, last part: what an agent says of a launch that it has, until its launcher's signed result.

Promise: only the worker that has a launch is heard of it. A heartbeat and the log are the agent's word; after a claim how a
launch ended is the launcher's word alone. What was said already is answered alike when it is said again.
"""

from __future__ import annotations

import asyncio

from integrity.errors import ConflictError, DigestMismatchError, ExpiredError, NotFoundError, OutOfScopeError
from submit_api import audit, connections, dispatching, launches
from submit_api.identity import Caller
from submit_api.registry import ledger
from submit_api.registry.database import Transaction
from submit_api.registry.records import Launch
from submit_api.registry.text import storable
from submit_api.service import Service
from submit_api.signals import of_launch, of_offers
from vocabulary import claims
from vocabulary.claims import Result, VerifiedResult
from vocabulary.keys import VerifyKey

BEFORE_CLAIM = frozenset({"refused", "failed", "cancelled"})


async def heartbeat(service: Service, caller: Caller, launch_id: str) -> Launch:
    """The launch after its worker was heard; an ended one is only told."""
    async with service.database.write() as tx:
        launch = await own(tx, caller, launch_id)
        if launch.state == "running":
            await ledger.change(tx, launch.id, heartbeat_at=service.now_us())
        return launch


async def refuse(service: Service, caller: Caller, launch_id: str, slug: str, detail: str) -> Launch:
    """The agent's word that its launcher would not take the ticket. After a claim only a signed result counts."""
    async with service.database.write() as tx:
        launch = await own(tx, caller, launch_id)
        if launch.state == "refused":
            return launch
        if launch.claim_digest is not None:
            raise OutOfScopeError(f"launch {launch.id} was claimed: only its launcher's signed result can end it")
        now = service.now_us()
        state = launches.step(launch, "refused")
        await ledger.change(tx, launch.id, state=state, error=slug, detail=storable(detail), ended_at=now)
        await audit.accepted(
            tx,
            at=now,
            caller=caller,
            action="launch.state",
            about=f"launch:{launch.id}",
            digest=launch.digest,
            verdict=audit.REFUSED,
            detail=f"{slug}: {detail}",
            rule=slug,
        )
        ended = await ledger.find(tx, launch.id)
    notify(service, launch)
    return ended or launch


async def append_log(service: Service, caller: Caller, launch_id: str, offset: int, data: bytes) -> int:
    """Bytes that are held already are answered, not doubled; what is over the cap is counted and dropped."""
    async with service.database.write() as tx:
        launch = await own(tx, caller, launch_id)
        if offset > launch.log_bytes:
            raise ConflictError(f"the log of launch {launch.id} has {launch.log_bytes} bytes: go on from there")
        fresh = data[launch.log_bytes - offset :]
        if not fresh:
            return launch.log_bytes
        if launch.state in launches.ENDS:
            raise ConflictError(f"launch {launch.id} has ended ({launch.state}): its log is closed")
        kept = fresh[: max(service.settings.limits.max_log_bytes - launch.log_held_bytes, 0)]
        if launch.log_truncated:
            kept = b""
        if kept:
            await asyncio.to_thread(service.logs.append, launch.id, launch.log_held_bytes, kept)
        received = launch.log_bytes + len(fresh)
        await ledger.change(
            tx,
            launch.id,
            log_bytes=received,
            log_held_bytes=launch.log_held_bytes + len(kept),
            log_truncated=launch.log_truncated or len(kept) < len(fresh),
            heartbeat_at=service.now_us(),
        )
    service.signals.notify(of_launch(launch_id))
    return received


async def finish(service: Service, caller: Caller, launch_id: str, envelope: bytes) -> Launch:
    """Store the launcher's signed result, once; the same result again is answered alike."""
    worker = await dispatching.enrolled(service, caller, caller.principal)
    verified = await asyncio.to_thread(claims.verify_result, envelope, VerifyKey(worker.verify_key))
    result = verified.result
    async with service.database.read() as tx:
        seen = await own(tx, caller, launch_id)
    log_digest = await asyncio.to_thread(service.logs.digest, seen.id, seen.log_held_bytes)
    async with service.database.write() as tx:
        launch = await own(tx, caller, launch_id)
        if result.launch_id != launch.id:
            raise OutOfScopeError(f"the result is of launch {result.launch_id}, not of {launch.id}")
        if launch.result_digest == str(verified.digest):
            return launch
        if str(result.ticket_digest) != launch.ticket_digest:
            raise ExpiredError(f"the result is of another ticket than the one launch {launch.id} ran with")
        if launch.state == result.state == "refused" and launch.result_digest is None:
            await ledger.change(tx, launch.id, result_digest=str(verified.digest), exit_code=result.exit_code)
        else:
            await _store(service, tx, caller, launch, verified)
            if log_digest != result.log_digest:
                await audit.accepted(
                    tx,
                    at=service.now_us(),
                    caller=caller,
                    action="launch.log.check",
                    about=f"launch:{launch.id}",
                    digest=str(result.log_digest),
                    verdict=audit.REFUSED,
                    rule=DigestMismatchError.slug,
                    detail=f"the launcher signed {result.log_bytes} bytes of log, {seen.log_held_bytes} held here differ",
                )
        ended = await ledger.find(tx, launch.id)
    notify(service, launch)
    return ended or launch


async def _store(service: Service, tx: Transaction, caller: Caller, launch: Launch, verified: VerifiedResult) -> None:
    result: Result = verified.result
    if launch.claim_digest is None and result.state not in BEFORE_CLAIM:
        raise ConflictError(f"launch {launch.id} was not claimed: it cannot end as {result.state}")
    now = service.now_us()
    await ledger.change(
        tx,
        launch.id,
        state=launches.step(launch, result.state),
        result_digest=str(verified.digest),
        exit_code=result.exit_code,
        error=storable(result.error),
        detail=storable(result.detail),
        timings_us={**result.timings_us, "max_rss_kib": result.max_rss_kib},
        log_truncated=launch.log_truncated or result.log_truncated,
        log_digest=str(result.log_digest),
        ended_at=now,
    )
    if launch.claim_digest is not None and not launch.supervised:  # those of a supervised one are Airflow's
        pushed = {storable(xcom.key): xcom.value for xcom in result.xcoms}
        stored = [connections.seal_xcom(service.keys.rows, launch, key, value) for key, value in pushed.items()]
        await ledger.replace_xcoms(tx, launch, stored)
    # What a task says when it has its secrets is for the launch's members, not for the log that is passed on.
    said = result.detail if launch.claim_digest is None else ""
    await audit.accepted(
        tx,
        at=now,
        caller=caller,
        action="launch.end",
        about=f"launch:{launch.id}",
        digest=str(verified.digest),
        verdict=audit.REFUSED if result.state == "refused" else audit.ACCEPTED,
        rule=result.error[:100] if result.state == "refused" else "",
        detail=f"{result.state}, exit code {result.exit_code} {result.error} {said}".strip(),
    )


async def own(tx: Transaction, caller: Caller, launch_id: str) -> Launch:
    """The launch, which this worker has. Raises `NotFoundError`, `OutOfScopeError`."""
    launch = await ledger.find(tx, launch_id)
    if launch is None:
        raise NotFoundError(f"there is no launch {launch_id}")
    if launch.worker != caller.principal:
        raise OutOfScopeError(f"launch {launch.id} is not with worker {caller.principal}: take again")
    return launch


def notify(service: Service, launch: Launch) -> None:
    """It ended: the next reservation of its task instance may be offered."""
    service.signals.notify(of_launch(launch.id))
    if launch.supervised:
        service.signals.notify(of_offers(launch.task_instance))

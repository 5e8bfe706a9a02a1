"""The worker's side of launches, second half: the claim that is answered with secrets, heartbeats, logs, the result.

A claim is granted when: 1 the enrolled launcher signed it; 2 it is of this launch's newest ticket; 3 nobody claimed
before; 4 the ticket has not run out; 5 the release is neither revoked nor waits for approval, and its manifest's
signature holds; 6 the task digest is the signed one (unless the release says task_check = archive); 7 the isolation that
the launcher attests to is no less than the signed manifest and the queue ask for; 8 the connections are still granted. A
failure of 5 to 8 ends the launch. What is delivered is audited by name, in the transaction that makes the launch `running`.
"""

from __future__ import annotations

import asyncio

from integrity.errors import (
    ConflictError,
    DagsealError,
    DigestMismatchError,
    ExpiredError,
    NotFoundError,
    OutOfScopeError,
    ReplayError,
    SecurityError,
)
from submit_api import audit, connections, dispatching, granting, launches
from submit_api.backends.lookup import Name
from submit_api.effects import MICROSECONDS
from submit_api.identity import Caller
from submit_api.registry import ledger, secrets
from submit_api.registry.database import Transaction
from submit_api.registry.records import Launch, Worker
from submit_api.registry.text import storable
from submit_api.service import Service
from submit_api.signals import of_launch, of_offers
from vocabulary import claims, grants
from vocabulary.claims import Result, VerifiedClaim, VerifiedResult
from vocabulary.keys import SealTo, VerifyKey

BEFORE_CLAIM = frozenset({"refused", "failed", "cancelled"})


async def claim(service: Service, caller: Caller, launch_id: str, envelope: bytes) -> bytes:
    """The grant's envelope. Raises a `SecurityError` that says which of the checks failed."""
    worker = await dispatching.enrolled(service, caller, caller.principal)
    verified = claims.verify_claim(envelope, VerifyKey(worker.verify_key))
    fetched: dict[Name, str] = {}
    failure: DagsealError | None = None
    try:
        fetched = await _from_backends(service, caller, worker, launch_id, verified)
    except (SecurityError, ConflictError, NotFoundError) as error:
        failure = error
    async with service.database.write() as tx:
        launch = await _own(tx, caller, launch_id)
        _require_current(launch, verified, service.now_us())
        try:
            if failure is not None:
                raise failure
            return await _grant(service, tx, caller, worker, launch, verified, fetched)
        except (SecurityError, ConflictError, NotFoundError) as error:
            await dispatching.end_refused(service, tx, caller, launch, error, action="launch.claim")
            failure = error
    _notify(service, launch)
    raise failure


def _require_current(launch: Launch, verified: VerifiedClaim, now_us: int) -> None:
    found = verified.claim
    if launch.claim_digest is not None:
        raise ReplayError(f"launch {launch.id} was claimed already: a ticket is good for one claim")
    if found.launch_id != launch.id:
        raise OutOfScopeError(f"the claim is of launch {found.launch_id}, not of {launch.id}")
    if launch.state in launches.ENDS:
        raise ConflictError(f"launch {launch.id} has ended already ({launch.state})")
    if found.ticket_id != launch.ticket_id or str(found.ticket_digest) != launch.ticket_digest:
        raise ExpiredError(f"the claim is of an older ticket of launch {launch.id}: take again")
    if launch.ticket_expires_at is None or now_us // MICROSECONDS >= launch.ticket_expires_at:
        raise ExpiredError(f"the ticket of launch {launch.id} ran out at {launch.ticket_expires_at}: take again")


async def _from_backends(
    service: Service, caller: Caller, worker: Worker, launch_id: str, verified: VerifiedClaim
) -> dict[Name, str]:
    """What secrets backends have of the names that the launch is entitled to; outside of any transaction, as they are slow."""
    if not service.backends.configured:
        return {}
    async with service.database.read() as tx:
        launch = await _own(tx, caller, launch_id)
        _require_current(launch, verified, service.now_us())
        allowed = await granting.permitted(service, tx, worker, launch, verified)
        built_in = await granting.stored(tx, allowed.names)
    return await service.backends.fetch(allowed.names, built_in=built_in)


async def _grant(
    service: Service,
    tx: Transaction,
    caller: Caller,
    worker: Worker,
    launch: Launch,
    verified: VerifiedClaim,
    fetched: dict[Name, str],
) -> bytes:
    allowed = await granting.permitted(service, tx, worker, launch, verified)
    found, delivered = await granting.gather(service, tx, launch, allowed, fetched)
    envelope = grants.seal(
        found,
        launch_id=launch.id,
        ticket_digest=verified.claim.ticket_digest,
        claim_digest=verified.digest,
        to=SealTo(worker.sealing_key),
        key=service.keys.signing,
    )
    now = service.now_us()
    await ledger.change(
        tx,
        launch.id,
        state=launches.step(launch, "running"),
        claim_digest=str(verified.digest),
        task_digest=str(verified.claim.task_digest),
        attestation=verified.claim.attestation,
        started_at=now,
        heartbeat_at=now,
    )
    if not launch.supervised:
        await ledger.replace_xcoms(tx, launch, ())
    about = f"launch:{launch.id}"
    await audit.accepted(
        tx,
        at=now,
        caller=caller,
        action="launch.claim",
        about=about,
        digest=str(verified.digest),
        detail=f"ticket {launch.ticket_id}, {len(delivered)} secrets delivered",
        rule=allowed.rule,
    )
    by = await secrets.granted_by(tx, launch.owner, allowed.groups) if delivered else {}
    granted = {f"{kind}:{name}": grant for (kind, name), grant in by.items()}
    for name in delivered:
        kind = name.partition(":")[0]
        await audit.accepted(
            tx,
            at=now,
            caller=caller,
            action="secret.deliver",
            about=name,
            digest=str(verified.digest),
            detail=about,
            rule=granted.get(name) or ("archive:r" if kind == "xcoms" else f"{kind}:x"),
        )
    return envelope


async def heartbeat(service: Service, caller: Caller, launch_id: str) -> Launch:
    """The launch after its worker was heard; an ended one is only told."""
    async with service.database.write() as tx:
        launch = await _own(tx, caller, launch_id)
        if launch.state == "running":
            await ledger.change(tx, launch.id, heartbeat_at=service.now_us())
        return launch


async def refuse(service: Service, caller: Caller, launch_id: str, slug: str, detail: str) -> Launch:
    """The agent's word that its launcher would not take the ticket. After a claim only a signed result counts."""
    async with service.database.write() as tx:
        launch = await _own(tx, caller, launch_id)
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
    _notify(service, launch)
    return ended or launch


async def finish(service: Service, caller: Caller, launch_id: str, envelope: bytes) -> Launch:
    """Store the launcher's signed result, once; the same result again is answered alike."""
    worker = await dispatching.enrolled(service, caller, caller.principal)
    verified = await asyncio.to_thread(claims.verify_result, envelope, VerifyKey(worker.verify_key))
    result = verified.result
    async with service.database.read() as tx:
        seen = await _own(tx, caller, launch_id)
    log_digest = await asyncio.to_thread(service.logs.digest, seen.id, seen.log_held_bytes)
    async with service.database.write() as tx:
        launch = await _own(tx, caller, launch_id)
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
    _notify(service, launch)
    return ended or launch


def _notify(service: Service, launch: Launch) -> None:
    """It ended: the next reservation of its task instance may be offered."""
    service.signals.notify(of_launch(launch.id))
    if launch.supervised:
        service.signals.notify(of_offers(launch.task_instance))


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


async def append_log(service: Service, caller: Caller, launch_id: str, offset: int, data: bytes) -> int:
    """Bytes that are held already are answered, not doubled; what is over the cap is counted and dropped."""
    async with service.database.write() as tx:
        launch = await _own(tx, caller, launch_id)
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


async def _own(tx: Transaction, caller: Caller, launch_id: str) -> Launch:
    launch = await ledger.find(tx, launch_id)
    if launch is None:
        raise NotFoundError(f"there is no launch {launch_id}")
    if launch.worker != caller.principal:
        raise OutOfScopeError(f"launch {launch.id} is not with worker {caller.principal}: take again")
    return launch

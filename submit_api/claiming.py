"""The worker's side of launches, second part: the claim that is answered with secrets.

A claim is granted when: 1 the enrolled launcher signed it; 2 it is of this launch's newest ticket; 3 nobody claimed
before; 4 the ticket has not run out; 5 the release is neither revoked nor waits for approval, and its manifest's
signature holds; 6 the task digest is the signed one (unless the release says task_check = archive); 7 the isolation that
the launcher attests to is no less than the signed manifest and the queue ask for; 8 the connections are still granted. A
failure of 5 to 8 ends the launch. What is delivered is audited by name, in the transaction that makes the launch `running`.
"""

from __future__ import annotations

from integrity.errors import (
    ConflictError,
    DagsealError,
    ExpiredError,
    NotFoundError,
    OutOfScopeError,
    ReplayError,
    SecurityError,
)
from submit_api import audit, dispatching, granting, launches
from submit_api.backends.lookup import Name
from submit_api.effects import MICROSECONDS
from submit_api.finishing import notify, own
from submit_api.identity import Caller
from submit_api.registry import ledger, secrets
from submit_api.registry.database import Transaction
from submit_api.registry.records import Launch, Worker
from submit_api.service import Service
from vocabulary import claims, grants
from vocabulary.claims import VerifiedClaim
from vocabulary.keys import SealTo, VerifyKey


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
        launch = await own(tx, caller, launch_id)
        _require_current(launch, verified, service.now_us())
        try:
            if failure is not None:
                raise failure
            return await _grant(service, tx, caller, worker, launch, verified, fetched)
        except (SecurityError, ConflictError, NotFoundError) as error:
            await dispatching.end_refused(service, tx, caller, launch, error, action="launch.claim")
            failure = error
    notify(service, launch)
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
        launch = await own(tx, caller, launch_id)
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

"""The worker's side of launches, first part: offer one launch with a signed ticket, and watch over those that are out.

Before a ticket is signed: 1 the stored bytes still have their digest; 2 the launch is still queued; 3 its release is
neither revoked nor waits for approval; 4 the manifest's signature holds; 5 the owner's rule and grants still permit it. What
fails ends the launch as `refused`, audited in the same transaction. No secret is in a ticket.

What is supervised (ADR-0026) is offered to whoever names its task instance, is enrolled for its queue and is first; never to
who takes what there is. Of one task instance nothing is offered while another of its launches is out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from integrity.digests import Digest
from integrity.errors import ConflictError, DagsealError, FetchError, NotFoundError, OutOfScopeError, SecurityError
from submit_api import audit, choosing, launches
from submit_api.effects import MICROSECONDS
from submit_api.facts import Facts
from submit_api.identity import Caller
from submit_api.refusals import DriftedError
from submit_api.registry import archives, ledger, people
from submit_api.registry.database import Transaction
from submit_api.registry.records import Launch, Release, Worker
from submit_api.service import Service
from submit_api.signals import of_launch, of_offers
from vocabulary import tickets
from vocabulary.keys import VerifyKey
from vocabulary.manifest import VerifiedManifest
from vocabulary.tickets import Ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a worker takes away: the envelopes of ticket and manifest."""

    launch: Launch
    ticket: bytes
    manifest: bytes
    xcom_dags: tuple[str, ...]


async def take(
    service: Service,
    caller: Caller,
    name: str,
    queues: list[str],
    seconds: float,
    gone: Callable[[], bool],
    task_instance: str | None = None,
) -> Offer | None:
    """The oldest queued launch of these queues, or the newest reservation of this task instance; None after so long. Raises
    `EndedError` for a reservation that will never be offered (again).

    A worker that is `gone` gets no offer: its ticket would keep the launch from others until it expires.
    """
    worker = await enrolled(service, caller, name)
    if worker.drifted:
        drifted = DriftedError(
            f"worker {name} has drifted: {worker.drifted}; see 'dagseal fsck --cache --repair' on its host"
        )
        drifted.add_note(audit.RECORDED)
        raise drifted
    outside = sorted(set(queues) - set(worker.queues))
    if outside:
        raise OutOfScopeError(
            f"worker {name} is not enrolled for queue {outside[0]}, only for {', '.join(worker.queues)}"
        )
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    with service.signals.listen(of_offers(task_instance)) as listener:
        while not gone():
            listener.event.clear()
            offer = await _offer_next(service, caller, worker, queues, task_instance)
            if offer is not None:
                return offer
            if await expire(service):
                continue
            if loop.time() >= deadline or service.signals.closed:
                return None
            await listener.wait(deadline - loop.time())
    return None


async def enrolled(service: Service, caller: Caller, name: str) -> Worker:
    """The caller's own row. Raises `OutOfScopeError` for another worker's name or a revoked one."""
    if caller.principal != name:
        raise OutOfScopeError(f"this is worker {caller.principal}, not {name}")
    if caller.enrolled is not None:
        return caller.enrolled
    async with service.database.read() as tx:
        worker = await people.worker(tx, name)
    if worker is None or worker.revoked_at is not None:
        raise OutOfScopeError(f"worker {name} is not enrolled: an administrator can enrol it again")
    return worker


async def _next(service: Service, queues: list[str], task_instance: str | None) -> Launch | None:
    """What may be offered now."""
    if task_instance is None:
        async with service.database.read() as tx:
            return await ledger.oldest_queued(tx, queues)
    async with service.database.glance() as tx:
        return await _reserved(tx, queues, task_instance)


async def _reserved(tx: Transaction, queues: list[str], task_instance: str) -> Launch | None:
    """As `_next`. Raises `NotFoundError` for what nobody reserved: who sends it reserves it first."""
    launch, unended = await ledger.reserved_for(tx, task_instance)
    if launch is None:
        raise NotFoundError(f"task instance {task_instance} was not reserved: whoever sent it was not the scheduler")
    launches.require_takeable(launch, queues)
    return launch if all(one.state == "queued" for one in (launch, *unended)) else None


async def _offer_next(
    service: Service, caller: Caller, worker: Worker, queues: list[str], task_instance: str | None
) -> Offer | None:
    while True:
        launch = await _next(service, queues, task_instance)
        if launch is None:
            return None
        failure: DagsealError | None = None
        try:
            await service.blobs.verify(Digest.parse(launch.digest))
        except (SecurityError, NotFoundError) as error:
            failure = error
        async with service.database.write() as tx:
            if await people.worker(tx, worker.name) != worker:
                raise OutOfScopeError(f"worker {worker.name} was revoked, joined anew or drifted while it waited")
            if task_instance is None:
                current = await ledger.find(tx, launch.id)
            else:
                current = await _reserved(tx, queues, task_instance)
            if current is None or (current.id, current.state) != (launch.id, "queued"):
                continue  # somebody else took or cancelled it meanwhile
            offer: Offer | None = None
            if failure is None:
                try:
                    offer = await _mint(service, tx, caller, current, worker)
                except (SecurityError, ConflictError, NotFoundError) as error:
                    failure = error
            if failure is not None:
                await end_refused(service, tx, caller, current, failure, action="launch.offer")
        if offer is not None:
            return offer
        service.signals.notify(of_launch(launch.id))


async def _mint(service: Service, tx: Transaction, caller: Caller, launch: Launch, worker: Worker) -> Offer:
    release, verified = await launchable(service, tx, launch)
    task = verified.manifest.task(launch.dag_id, launch.task_id)
    besides = launches.caller_besides(verified.manifest, launch.principal)
    rule = (await choosing.authorise(Facts(service, tx), release, task, launch, besides)).rule
    now = service.now_us()
    launches.require_in_time(launch, now)
    issued_at = now // MICROSECONDS
    ticket = Ticket(
        ticket_id=service.new_id(),
        launch_id=launch.id,
        audience=VerifyKey(worker.verify_key).key_id,
        queue=launch.queue,
        archive=launch.archive,
        release=launch.release,
        digest=Digest.parse(launch.digest),
        manifest_digest=verified.digest,
        dag_id=launch.dag_id,
        task_id=launch.task_id,
        run_id=launch.run_id,
        map_index=launch.map_index,
        try_number=launch.try_number,
        task_digest=task.digest if release.task_check == "task" else None,
        unix_user=launch.unix_user,
        rule=rule,
        owner=launch.owner,
        principal=launch.principal,
        issued_at=issued_at,
        expires_at=issued_at + service.settings.launches.ticket_seconds,
        timeout_seconds=launch.timeout_seconds,
        supervised=launch.supervised,
    )
    await ledger.change(
        tx,
        launch.id,
        state=launches.step(launch, "offered"),
        worker=worker.name,
        ticket_id=ticket.ticket_id,
        ticket_digest=str(Digest.of(ticket.to_bytes())),
        ticket_expires_at=ticket.expires_at,
    )
    await audit.accepted(
        tx,
        at=now,
        caller=caller,
        action="launch.offer",
        about=f"launch:{launch.id}",
        digest=launch.digest,
        detail=f"ticket {ticket.ticket_id} for launcher {ticket.audience[:16]} until {ticket.expires_at}",
        rule=rule,
    )
    return Offer(
        launch=launch,
        ticket=tickets.sign(ticket, service.keys.signing),
        manifest=release.manifest,
        xcom_dags=task.xcom_dags,
    )


async def launchable(service: Service, tx: Transaction, launch: Launch) -> tuple[Release, VerifiedManifest]:
    """The launch's release, which may be launched now, and its verified manifest."""
    release = await archives.release(tx, launch.archive, launch.release)
    if release is None:
        raise NotFoundError(f"release {launch.archive}@{launch.release} is gone")
    launches.require_launchable(release)
    return release, await service.manifest_of(release)


async def end_refused(
    service: Service, tx: Transaction, caller: Caller, launch: Launch, error: DagsealError, *, action: str
) -> None:
    """The launch ends here, and the audit says why."""
    now = service.now_us()
    await ledger.change(
        tx,
        launch.id,
        state=launches.step(launch, "refused"),
        error=error.slug,
        detail=str(error)[: audit.MAX_DETAIL_CHARS],
        ended_at=now,
    )
    await audit.accepted(
        tx,
        at=now,
        caller=caller,
        action=action,
        about=f"launch:{launch.id}",
        digest=launch.digest,
        verdict=audit.REFUSED,
        detail=f"{error.slug}: {error}",
        rule=audit.rule_of(error),
    )
    error.add_note(audit.RECORDED)


async def expire(service: Service) -> bool:
    """Offers whose ticket ran out are queued again; running launches that fell silent are lost; what was reserved and not taken
    in its time is refused. Whether there was any."""
    now = service.now_us()
    silent_since = now - service.settings.launches.lost_after_seconds * MICROSECONDS
    async with service.database.read() as tx:
        if not (
            await ledger.expired_offers(tx, now // MICROSECONDS)
            or await ledger.silent(tx, silent_since)
            or await ledger.lapsed(tx, now)
        ):
            return False
    changed: list[Launch] = []
    async with service.database.write() as tx:
        for launch in await ledger.expired_offers(tx, now // MICROSECONDS):
            await ledger.change(
                tx, launch.id, state=launches.step(launch, "queued"), worker=None, ticket_id=None, ticket_digest=None
            )
            await _watched(tx, now, launch, "launch.requeue", "its ticket ran out unclaimed")
            changed.append(launch)
        for launch in await ledger.silent(tx, silent_since):
            why = f"no heartbeat of worker {launch.worker} for {service.settings.launches.lost_after_seconds} seconds"
            state = launches.step(launch, "lost")
            await ledger.change(tx, launch.id, state=state, error=FetchError.slug, detail=why, ended_at=now)
            await _watched(tx, now, launch, "launch.lost", why)
            changed.append(launch)
        for launch in await ledger.lapsed(tx, now):
            await end_refused(service, tx, audit.SERVICE, launch, launches.late(launch), action="launch.expire")
            changed.append(launch)
    for launch in changed:
        service.signals.notify(of_launch(launch.id))
        service.signals.notify(of_offers(launch.task_instance))
    return bool(changed)


async def _watched(tx: Transaction, now: int, launch: Launch, action: str, why: str) -> None:
    await audit.accepted(
        tx, at=now, caller=audit.SERVICE, action=action, about=f"launch:{launch.id}", digest=launch.digest, detail=why
    )

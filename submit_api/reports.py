"""What the workers say of themselves, and what follows from it.

Reports are kept in memory: an agent that hears of another process of this service reports again. That a worker has drifted
is on record, with its audit event, until it has not any more: in between it is offered nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from integrity.digests import Digest
from submit_api import audit, dispatching, drift
from submit_api.drift import Due, Report, Standing
from submit_api.effects import MICROSECONDS
from submit_api.identity import Caller
from submit_api.registry import leaves, people
from submit_api.registry.database import Transaction
from submit_api.registry.records import Archive, Release, Worker
from submit_api.service import Service
from vocabulary import holdings


async def receive(service: Service, caller: Caller, name: str, report: Report) -> Standing:
    """Raises `OutOfScopeError` for another worker's name."""
    worker = await dispatching.enrolled(service, caller, name)
    async with service.database.read() as tx:
        due = await _due(service, tx, worker, report)
    found = drift.judge(report, due)
    service.reports.newest[name] = (report, found)
    drifted = found.why if found.state == drift.DRIFTED else ""
    if bool(drifted) != bool(worker.drifted):
        await _turn(service, caller, worker, found)
    return found


async def _turn(service: Service, caller: Caller, worker: Worker, found: Standing) -> None:
    """From drifted to not, or back."""
    bad = found.state == drift.DRIFTED
    async with service.database.write() as tx:
        await people.set_drifted(tx, worker.name, found.why if bad else "")
        await audit.accepted(
            tx,
            at=service.now_us(),
            caller=caller,
            action="worker.drift" if bad else "worker.mend",
            about=f"worker:{worker.name}",
            verdict=audit.REFUSED if bad else audit.ACCEPTED,
            detail=f"{found.why}: it is offered no launch" if bad else f"it is {found.state} again",
        )


async def _due(service: Service, tx: Transaction, worker: Worker, report: Report) -> Due:
    size = (await leaves.tree(tx)).size
    held, queues = service.reports, frozenset(worker.queues)
    if held.size != size:
        held.size, held.due = size, {}
    if queues not in held.due:
        held.due[queues] = holdings.root(await _wanted(tx, queues))
    seen = await leaves.tree_of(tx, report.log_size) if report.log_size <= size else None
    return Due(log_size=size, log_root=seen.root if seen else None, held_root=held.due[queues])


async def _wanted(tx: Transaction, queues: frozenset[str]) -> Iterable[Digest]:
    """As `LogView.wanted`, from the leaves of the active releases."""
    found = set()
    for entry in await leaves.of_active(tx):
        leaf = json.loads(entry)
        if not leaf["queues"] or not queues.isdisjoint(leaf["queues"]):
            found.add(Digest.parse(leaf["digest"]))
    return found


def standing(service: Service, worker: Worker) -> tuple[Report | None, Standing]:
    """Of a worker, now."""
    silent_seconds = service.settings.launches.silent_after_seconds
    report, judged = service.reports.newest.get(worker.name, (None, None))
    if worker.drifted:
        return report, Standing(state=drift.DRIFTED, why=worker.drifted)
    if judged is None or drift.is_silent(report, now=service.now_us(), silent_us=silent_seconds * MICROSECONDS):
        return report, Standing(state=drift.SILENT, why=f"no report for {silent_seconds} seconds")
    return report, judged


async def spread(service: Service, tx: Transaction, archive: Archive, release: Release) -> list[tuple[str, str, bool]]:
    """Of each worker: its name, its state, and whether it holds the bytes of this release, verified. Workers fetch what is
    active, and say nothing of other releases."""
    leaf = await leaves.of_release(tx, release.archive, release.number)
    found = []
    for worker in await people.workers(tx):
        if worker.revoked_at is None:
            report, now = standing(service, worker)
            sound = archive.active == release.number and now.state in (drift.VERIFIED, drift.BEHIND)
            found.append((worker.name, now.state, sound and report is not None and report.has(release.sha512, leaf)))
    return found

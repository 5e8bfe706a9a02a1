"""What a claimed launch is given: first whether it may be given anything, then the values, by name.

The checks are those of a claim from its fifth on (`submit_api.claiming`). They are done before a secret is opened and before a
secrets backend is asked, and again in the transaction that delivers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from integrity.errors import DigestMismatchError, NotFoundError
from submit_api import choosing, connections, dispatching, launches
from submit_api.backends.lookup import Name
from submit_api.effects import MICROSECONDS
from submit_api.facts import Facts
from submit_api.registry import ledger, secrets
from submit_api.registry.database import Transaction
from submit_api.registry.records import Launch, StoredXcom, Worker
from submit_api.service import Service
from vocabulary.claims import VerifiedClaim
from vocabulary.grants import Secrets
from vocabulary.manifest import TaskEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Permitted:
    """The task of a launch that passed the checks, the names (kind and name) that it is entitled to, the impersonation rule
    that allows it, and the groups whose authority its owner has in it."""

    task: TaskEntry
    names: frozenset[Name]
    rule: str
    groups: frozenset[str]


async def permitted(
    service: Service, tx: Transaction, worker: Worker, launch: Launch, verified: VerifiedClaim
) -> Permitted:
    """Raises what says why not: `SecurityError`, `ConflictError` or `NotFoundError`."""
    release, manifest = await dispatching.launchable(service, tx, launch)
    task = manifest.manifest.task(launch.dag_id, launch.task_id)
    if release.task_check == "task" and task.digest != verified.claim.task_digest:
        raise DigestMismatchError(
            f"task {launch.dag_id}.{launch.task_id} has digest {verified.claim.task_digest} on worker {worker.name}, "
            f"the manifest says {task.digest}"
        )
    floors = {
        f"release {release.archive}@{release.number}": manifest.manifest.isolation,
        f"queue {launch.queue}": service.settings.launches.floor_of(launch.queue),
    }
    launches.require_isolation(verified.claim.attestation, floors)
    besides = launches.caller_besides(manifest.manifest, launch.principal)
    facts = Facts(service, tx)
    found = await choosing.authorise(facts, release, task, launch, besides)
    names = await choosing.entitled(facts, launch.owner, found.groups, besides)
    return Permitted(task=task, names=frozenset(names), rule=found.rule, groups=found.groups)


async def stored(tx: Transaction, names: frozenset[Name]) -> set[Name]:
    """Those that the built-in store has."""
    return {(row.kind, row.name) for row in await secrets.of_names(tx, names)}


async def gather(
    service: Service, tx: Transaction, launch: Launch, allowed: Permitted, fetched: dict[Name, str]
) -> tuple[Secrets, list[str]]:
    """What the task gets, and the names of the secrets in it; `fetched` is from secrets backends. Raises `SignatureError` for
    a row that was changed, and `NotFoundError` where a connection that the task needs is nowhere."""
    opened = {name: value for name, value in fetched.items() if name in allowed.names}
    for row in await secrets.of_names(tx, {name for name in allowed.names if not service.backends.owns(*name)}):
        opened[row.kind, row.name] = connections.open_secret(service.keys.rows, row)
    for needed in allowed.task.connections:
        if ("connection", needed) not in opened:
            raise NotFoundError(
                f"task {allowed.task.task_id} uses connection {needed!r}, which no secrets backend has: put it there"
            )
    opened = dict(sorted(opened.items()))
    found = Secrets(
        connections={name: value for (kind, name), value in opened.items() if kind == "connection"},
        variables={name: value for (kind, name), value in opened.items() if kind == "variable"},
        xcoms=(),
        run={},
    )
    delivered = [f"{kind}:{name}" for kind, name in opened]
    if launch.supervised:  # the rest is Airflow's to tell
        return found, delivered
    upstream = [
        _xcom(service, xcom)
        for xcom in await ledger.xcoms_of_run(tx, launch.dag_id, launch.run_id)
        if xcom.task_id != launch.task_id
    ]
    others = [other for other in allowed.task.xcom_dags if other != launch.dag_id]
    for other in others:
        of_run = await ledger.xcoms_of_run(tx, other, launch.run_id)
        upstream += [{**_xcom(service, xcom), "dag_id": other} for xcom in of_run]
    started = await ledger.run_started_at(tx, launch.dag_id, launch.run_id)
    start_date = _iso(started if started is not None else launch.created_at)
    run = {
        "dag_id": launch.dag_id,
        "run_id": launch.run_id,
        "start_date": start_date,
        # All tasks of a run see one logical date, also where the run id does not hold it.
        "logical_date": _logical_date(launch.run_id) or start_date,
    }
    found = replace(found, xcoms=tuple(upstream), run=run)
    return found, [*delivered, *(f"xcoms:{other}" for other in others)]


def _xcom(service: Service, xcom: StoredXcom) -> dict[str, Any]:
    value = connections.open_xcom(service.keys.rows, xcom)
    return {"task_id": xcom.task_id, "map_index": xcom.map_index, "key": xcom.key, "value": value}


def _iso(at_us: int) -> str:
    return datetime.fromtimestamp(at_us // MICROSECONDS, UTC).isoformat()


def _logical_date(run_id: str) -> str:
    """Airflow's own run ids carry their logical date; another run id has none."""
    for prefix in launches.RUN_ID_DATES:
        if run_id.startswith(prefix):
            try:
                found = datetime.fromisoformat(run_id.removeprefix(prefix))
            except ValueError:
                return ""
            return found.isoformat() if found.tzinfo else ""
    return ""

"""Rows for `tests.bench.scale`, written straight into the tables: many at once, without syncing, into a database that nobody
has open yet. Releases have manifests that the service's own key signed, since lists verify them; their blobs are not there."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import create_engine, event, func, insert, select
from sqlalchemy.engine import Connection, Engine

from integrity.digests import Digest
from submit_api.registry.records import Activation, Archive, Launch, Release, columns
from submit_api.registry.tables import ActivationRow, ArchiveRow, DagRow, EventRow, LaunchRow, ReleaseRow, TaskRow
from tests.bench.audit_pages import START, STEP_US
from tests.bench.audit_pages import row as event_row
from tests.integration.submit_api.api_rig import dag_entry
from vocabulary import manifest as manifests
from vocabulary.keys import SigningKey
from vocabulary.manifest import Manifest, Member

DEEP = "deep.py"  # the one with very many releases
FEW, HALF = "alice", "bob"  # who may see twenty archives, and who may see half of them
OF_FEW = 20
_AT_ONCE = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """`releases` are those of one archive, and as many archives there are beside it with one each."""

    releases: int
    events: int
    launches: int


def wide(number: int) -> str:
    return f"team{number:06d}.py"


def fill(path: str, size: Size, key: SigningKey) -> None:
    """Raises for a database that has rows of these already."""
    engine = create_engine(f"sqlite:///{path}")
    event.listen(engine, "connect", _unsafe)
    with engine.begin() as connection:
        names = [wide(number) for number in range(size.releases)]
        _add(connection, ArchiveRow, (columns(_archive(number, name)) for number, name in enumerate(names)))
        deep = Archive(
            name=DEEP, owner="admin", group="admin", latest=size.releases, active=size.releases, created_at=START,
            mode=0o770, activation=size.releases,
        )  # fmt: skip
        _add(connection, ArchiveRow, [columns(deep)])
        _add(connection, DagRow, ({"dag_id": name[:-3], "archive": name} for name in [*names, DEEP]))
        every = [*((name, 1, _owner(n)) for n, name in enumerate(names)), *_of_deep(size)]
        _add(connection, ReleaseRow, (columns(_release(name, number, owner, key)) for name, number, owner in every))
        _add(connection, TaskRow, (_task(name, number) for name, number, _ in every))
        _add(connection, ActivationRow, (columns(_activation(name, number)) for name, number, _ in every))
        _add(connection, LaunchRow, (columns(_launch(number, size)) for number in range(size.launches)))
        first = (connection.scalar(select(func.max(EventRow.seq))) or 0) + 1
        _add(connection, EventRow, (event_row(seq) for seq in range(first, first + size.events)))
    _settle(engine)


def _unsafe(connection: sqlite3.Connection, _: object) -> None:
    for pragma in ("synchronous=OFF", "cache_size=-400000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _settle(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()


def _add(connection: Connection, row: type, values: Iterable[dict[str, Any]]) -> None:
    left = iter(values)
    while some := list(islice(left, _AT_ONCE)):
        connection.execute(insert(row), some)


def _owner(number: int) -> str:
    if number < OF_FEW:
        return FEW
    return HALF if number % 2 else f"user-{number % 40}"


def _archive(number: int, name: str) -> Archive:
    return Archive(
        name=name, owner=_owner(number), group=f"group-{number % 40}", latest=1, active=1, created_at=START,
        mode=0o770, activation=1,
    )  # fmt: skip


def _of_deep(size: Size) -> Iterator[tuple[str, int, str]]:
    return ((DEEP, number, "admin") for number in range(1, size.releases + 1))


def _release(name: str, number: int, owner: str, key: SigningKey) -> Release:
    data = f"# release {number} of {name}\n".encode()
    said = Manifest(
        archive=name, number=number, digest=Digest.of(data), size=len(data), owner=owner, group=owner,
        members=(Member(name=name, size=len(data), digest=Digest.of(data)),), submitted_by=owner,
        created_at=START // 1_000_000, task_check="task", airflow_version="3.3.2",
        dags=(dag_entry(name[:-3], member=name),), isolation=None, require_caller=False,
    )  # fmt: skip
    return Release(
        archive=name, number=number, digest=str(said.digest), size=said.size, owner=owner, group=owner,
        submitted_by=owner, created_at=START + number, revoked_at=None, task_check="task", isolation=None,
        manifest=manifests.sign(said, key), manifest_digest=str(Digest.of(said.to_bytes())),
    )  # fmt: skip


def _task(name: str, number: int) -> dict[str, Any]:
    (task,) = dag_entry(name[:-3]).tasks
    return {
        "archive": name, "number": number, "dag_id": name[:-3], "task_id": task.task_id, "digest": str(task.digest),
        "run_as_user": task.run_as_user, "connections": [],
    }  # fmt: skip


def _activation(name: str, number: int) -> Activation:
    return Activation(
        archive=name, seq=number, number=number, was=number - 1 or None, before=number - 1, at=START, principal="admin"
    )


def _launch(number: int, size: Size) -> Launch:
    """Two hundred are of the archives of `FEW`, whatever the size; one in five failed."""
    every = max(size.launches // 200, 1)
    name = wide(number // every % OF_FEW if number % every == 0 else number * 7919 % size.releases)
    at = START + number * STEP_US
    return Launch(
        id=f"{number * 2654435761 % 2**32:032x}", state="success" if number % 5 else "failed", dag_id=name[:-3],
        task_id="t", run_id=f"scheduled__{number}", map_index=-1, try_number=1, archive=name, release=1,
        digest="sha512:" + "ab" * 64, unix_user="nobody", queue="default", owner="o", group="g",
        principal=f"user-{number % 40}", timeout_seconds=3600, created_at=at, worker="w", claim_digest="sha512:1",
        heartbeat_at=at, started_at=at, ended_at=at, exit_code=0,
    )  # fmt: skip

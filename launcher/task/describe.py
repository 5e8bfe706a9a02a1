"""An archive's dags and tasks as data: what a manifest says of them, and the digest that a task must have at launch.

`describe` gives `{airflow_version, dags}`; each dag is in the form of `vocabulary.manifest.DagEntry`, each task has besides
`fields`: the name of each field of Airflow's serialised task to a short hash of its normalised value, by which two
descriptions are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import airflow
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.serialization.serialized_objects import DagSerialization

from integrity import canonical
from integrity.digests import Digest
from integrity.errors import InvalidArchiveError
from launcher.task import refusals, required
from launcher.task.discover import FoundDag
from vocabulary import taskdigest

MAX_OPERATOR_CHARS = 250
_SHORT_HASH_CHARS = 16


def describe(dags: Mapping[str, FoundDag], archive: Digest, *, root: str) -> dict[str, Any]:
    """Raises `InvalidArchiveError` (not-serialisable, or what `required.connections` refuses)."""
    described = []
    for dag_id, found in sorted(dags.items()):
        entries = serialised_tasks(found)
        tasks = [_task(found, task_id, entry, archive, root=root) for task_id, entry in sorted(entries.items())]
        described.append({"dag_id": dag_id, "member": found.member, "tasks": tasks})
    return {"airflow_version": airflow.__version__, "dags": described}


def task_digest(found: FoundDag, task_id: str, archive: Digest, *, root: str) -> Digest:
    """The digest of one task of a dag that has it. Raises `InvalidArchiveError` (not-serialisable)."""
    return taskdigest.task_digest(archive, found.dag.dag_id, task_id, serialised_tasks(found)[task_id], root=root)


def serialised_tasks(found: FoundDag) -> dict[str, dict[str, Any]]:
    """Airflow's JSON of each task by its id. Raises `InvalidArchiveError` (not-serialisable)."""
    try:
        document = DagSerialization.to_dict(found.dag)
        return {task["__var"]["task_id"]: task["__var"] for task in document["dag"]["tasks"]}
    except Exception as error:  # the author's classes are asked to serialise themselves
        raise InvalidArchiveError(
            "not-serialisable", refusals.shorten(f"dag {found.dag.dag_id!r}: {refusals.describe(error)}"), found.member
        ) from error


def _task(found: FoundDag, task_id: str, entry: dict[str, Any], archive: Digest, *, root: str) -> dict[str, Any]:
    dag, task = found.dag, found.dag.task_dict[task_id]
    run_as_user = getattr(task, "run_as_user", None)
    xcom_dags = required.declared(dag, task, found.member).xcom_dags
    return {
        "task_id": task_id,
        "digest": str(taskdigest.task_digest(archive, dag.dag_id, task_id, entry, root=root)),
        "operator": str(task.task_type)[:MAX_OPERATOR_CHARS],
        "run_as_user": str(run_as_user) if run_as_user else None,
        "queue": str(task.queue),
        "connections": required.connections(dag, task, found.member),
        "mapped": isinstance(task, MappedOperator),
        **({"xcom_dags": list(xcom_dags)} if xcom_dags else {}),
        "fields": {key: _short_hash(value, key, root) for key, value in entry.items()},
    }


def _short_hash(value: Any, key: str, root: str) -> str:
    return Digest.of(canonical.dump(taskdigest.normalise(value, root=root, key=key))).hex[:_SHORT_HASH_CHARS]

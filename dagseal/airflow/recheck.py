"""Airflow's own serialised DAG against the manifest: the task digest of what the scheduler schedules.

Airflow's DAG processor stored `DagSerialization.to_dict` as JSON in its database, and its scheduler decides from that: trigger
rules, mapping, retries, queue. Here the digest of a task's entry is taken as `launcher.task.describe` took it when the archive
was submitted, so that a stored form which somebody changed, or which comes from other bytes, is found before it is queued.

Of what the way through the database changes, `vocabulary.taskdigest.normalise` makes tuples and lists equal; the keys by which
Airflow marks an encoded value get back the spelling that the recorded digest has (`as_recorded`). The folder of the archive
never stands in the stored form: the launcher that serialised it wrote `taskdigest.ARCHIVE_ROOT` for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, TypeVar
from uuid import UUID

from integrity.digests import Digest
from integrity.errors import FetchError, NotFoundError
from vocabulary import taskdigest

_MAX_KEPT = 512
_ENUM_KEYS = {"__type": "Encoding.TYPE", "__var": "Encoding.VAR"}

K = TypeVar("K")
V = TypeVar("V")

ReadStored = Callable[[str], Any]  # a dag version's id -> Airflow's stored document, or None
ReadSet = Callable[[str], Mapping[str, Digest]]  # a set's digest -> its archives; raises NotFoundError, FetchError


class Recheck:
    """Keeps what cannot change: the archives of a set, and the digests of a dag version that has task instances."""

    def __init__(self, read_stored: ReadStored, read_set: ReadSet) -> None:
        self._read_stored = read_stored
        self._read_set = read_set
        self._sets: OrderedDict[str, Mapping[str, Digest]] = OrderedDict()
        self._digests: OrderedDict[tuple[str, Digest], Mapping[str, Digest]] = OrderedDict()

    def digest(self, *, dag_version: str, path: str, dag_id: str, task_id: str, set_hex: str) -> Digest | None:
        """None where there is nothing to take it of: the API then says why the task is refused. Raises `FetchError`."""
        try:
            archive = _kept(self._sets, set_hex, lambda: self._read_set(set_hex)).get(PurePath(path).parts[0])
        except NotFoundError:
            return None
        if archive is None:
            return None
        digests = _kept(self._digests, (dag_version, archive), lambda: self._all(dag_version, archive, dag_id))
        return digests.get(task_id)

    def _all(self, dag_version: str, archive: Digest, dag_id: str) -> Mapping[str, Digest]:
        entries = tasks(self._read_stored(dag_version), dag_id)
        return {
            task_id: taskdigest.task_digest(archive, dag_id, task_id, as_recorded(entry), root=taskdigest.ARCHIVE_ROOT)
            for task_id, entry in entries.items()
        }


def tasks(stored: Any, dag_id: str) -> dict[str, Any]:
    """Airflow's entry of each task of the dag; none where this is not a document of it."""
    try:
        if stored["dag"]["dag_id"] != dag_id:
            return {}
        return {entry["__var"]["task_id"]: entry["__var"] for entry in stored["dag"]["tasks"]}
    except (TypeError, KeyError):
        return {}


def as_recorded(value: Any) -> Any:
    """Before JSON the keys of an encoded value, which has both, are members of an Enum, and `taskdigest` hashed their `str`."""
    match value:
        case dict():
            spelled = _ENUM_KEYS if value.keys() >= _ENUM_KEYS.keys() else {}
            return {spelled.get(key, key): as_recorded(item) for key, item in value.items()}
        case list():
            return [as_recorded(item) for item in value]
        case _:
            return value


def stored(dag_version: str) -> Any:
    """From Airflow's database, in a session of its own. Raises `FetchError`."""
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.utils.session import create_session
    from sqlalchemy import select
    from sqlalchemy.exc import SQLAlchemyError

    wanted = select(SerializedDagModel).where(SerializedDagModel.dag_version_id == UUID(dag_version))
    try:
        with create_session(scoped=False) as session:
            found = session.scalar(wanted)
            return None if found is None else found.data
    except SQLAlchemyError as error:
        raise FetchError(f"Airflow's database does not answer: {error}") from None


def _kept(kept: OrderedDict[K, V], key: K, make: Callable[[], V]) -> V:
    if key not in kept:
        kept[key] = make()
        if len(kept) > _MAX_KEPT:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]

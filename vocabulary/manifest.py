"""The manifest: the API's signed statement of one release.

It says which bytes (digest, size, members), whose (owner, group, submitter), and what they define (dags, tasks, the
unix user and the connections that each task names, and each task's digest). A task's unix user is thereby known before
any byte of the archive is imported. Absent where there is nothing to say: `isolation`, the profile below which it is not
to be launched; `require_caller`, true where whoever asks for a launch is to have its connections and variables too, not only
the owner; and a task's `xcom_dags`, the other dags whose XComs of the same run it reads. Payload type
`application/vnd.dagseal.manifest.v1+json`; canonical JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from integrity import canonical, names
from integrity.digests import Digest
from integrity.errors import MalformedError, NotFoundError
from integrity.fields import Fields
from vocabulary import envelopes
from vocabulary.claims import PROFILES
from vocabulary.keys import KeyRing, SigningKey

PAYLOAD_TYPE = "application/vnd.dagseal.manifest.v1+json"
TASK_CHECKS = ("task", "archive")
MAX_MEMBERS = 2000
MAX_DAGS = 1000
MAX_TASKS = 10_000
MAX_XCOM_DAGS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One file of the archive. A `.py` archive has one member, of its own name."""

    name: str
    size: int
    digest: Digest

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "size": self.size, "digest": str(self.digest)}

    @classmethod
    def from_json(cls, value: Any) -> Member:
        fields = Fields(value, "member")
        member = cls(
            name=fields.text("name", max_chars=1024), size=fields.integer("size"), digest=fields.digest("digest")
        )
        fields.done()
        return member


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEntry:
    """One task as described at submission. `digest` is what the child must report before it gets a secret."""

    task_id: str
    digest: Digest
    operator: str
    run_as_user: str | None
    queue: str
    connections: tuple[str, ...]
    mapped: bool
    xcom_dags: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "task_id": self.task_id,
            "digest": str(self.digest),
            "operator": self.operator,
            "run_as_user": self.run_as_user,
            "queue": self.queue,
            "connections": list(self.connections),
            "mapped": self.mapped,
            **({"xcom_dags": list(self.xcom_dags)} if self.xcom_dags else {}),
        }

    @classmethod
    def from_json(cls, value: Any) -> TaskEntry:
        fields = Fields(value, "task")
        entry = cls(
            task_id=fields.name("task_id", "task_id"),
            digest=fields.digest("digest"),
            operator=fields.text("operator", max_chars=250),
            run_as_user=fields.optional("run_as_user", lambda key: fields.text(key, max_chars=250)),
            queue=fields.text("queue", max_chars=250),
            connections=tuple(names.check("connection", c) for c in fields.items("connections", max_items=100)),
            mapped=fields.boolean("mapped"),
            xcom_dags=_xcom_dags(fields) if "xcom_dags" in fields.keys() else (),
        )
        fields.done()
        return entry


@dataclass(frozen=True, slots=True, kw_only=True)
class DagEntry:
    """One dag of the archive, with its tasks in the order of their ids."""

    dag_id: str
    member: str
    tasks: tuple[TaskEntry, ...]

    def to_json(self) -> dict[str, Any]:
        return {"dag_id": self.dag_id, "member": self.member, "tasks": [task.to_json() for task in self.tasks]}

    @classmethod
    def from_json(cls, value: Any) -> DagEntry:
        fields = Fields(value, "dag")
        entry = cls(
            dag_id=fields.name("dag_id", "dag_id"),
            member=fields.text("member", max_chars=1024),
            tasks=tuple(TaskEntry.from_json(item) for item in fields.items("tasks", max_items=MAX_TASKS)),
        )
        fields.done()
        _strictly_sorted([task.task_id for task in entry.tasks], "tasks")
        return entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What the API states of a release. `created_at` is in seconds since 1970 (UTC)."""

    archive: str
    number: int
    digest: Digest
    size: int
    members: tuple[Member, ...]
    owner: str
    group: str
    submitted_by: str
    created_at: int
    task_check: str
    airflow_version: str
    dags: tuple[DagEntry, ...]
    isolation: str | None = None
    require_caller: bool = False

    def to_bytes(self) -> bytes:
        return canonical.dump(
            {
                "v": 1,
                "archive": self.archive,
                "number": self.number,
                "digest": str(self.digest),
                "size": self.size,
                "members": [member.to_json() for member in self.members],
                "owner": self.owner,
                "group": self.group,
                "submitted_by": self.submitted_by,
                "created_at": self.created_at,
                "task_check": self.task_check,
                "airflow_version": self.airflow_version,
                "dags": [dag.to_json() for dag in self.dags],
                **({} if self.isolation is None else {"isolation": self.isolation}),
                **({"require_caller": True} if self.require_caller else {}),
            }
        )

    @classmethod
    def from_bytes(cls, payload: bytes) -> Manifest:
        """Raises `MalformedError` for anything but one canonical manifest."""
        fields = Fields(canonical.load(payload, max_bytes=envelopes.MAX_PAYLOAD_BYTES), "manifest")
        fields.version(1)
        manifest = cls(
            archive=fields.name("archive", "archive"),
            number=fields.integer("number", least=1),
            digest=fields.digest("digest"),
            size=fields.integer("size", least=1),
            members=tuple(Member.from_json(item) for item in fields.items("members", max_items=MAX_MEMBERS)),
            owner=fields.name("owner", "principal"),
            group=fields.name("group", "group"),
            submitted_by=fields.name("submitted_by", "principal"),
            created_at=fields.integer("created_at"),
            task_check=fields.choice("task_check", TASK_CHECKS),
            airflow_version=fields.text("airflow_version", max_chars=100),
            dags=tuple(DagEntry.from_json(item) for item in fields.items("dags", max_items=MAX_DAGS)),
            isolation=fields.choice("isolation", PROFILES) if "isolation" in fields.keys() else None,
            require_caller=_true(fields, "require_caller") if "require_caller" in fields.keys() else False,
        )
        fields.done()
        _strictly_sorted([member.name for member in manifest.members], "members")
        _strictly_sorted([dag.dag_id for dag in manifest.dags], "dags")
        return manifest

    def task(self, dag_id: str, task_id: str) -> TaskEntry:
        """Raises `NotFoundError` when this release has no such task."""
        for dag in self.dags:
            if dag.dag_id == dag_id:
                for task in dag.tasks:
                    if task.task_id == task_id:
                        return task
                raise NotFoundError(f"dag {dag_id} of {self.archive}@{self.number} has no task {task_id!r}")
        raise NotFoundError(f"{self.archive}@{self.number} does not define dag {dag_id!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedManifest:
    """A manifest whose signature held. `digest` is that of the signed payload."""

    manifest: Manifest
    digest: Digest
    key_id: str


def sign(manifest: Manifest, key: SigningKey) -> bytes:
    """The envelope's bytes."""
    return envelopes.sign(manifest.to_bytes(), payload_type=PAYLOAD_TYPE, key=key)


def verify(envelope: bytes, ring: KeyRing) -> VerifiedManifest:
    """Checks the signature, then parses. Not checked here: that the archive's bytes have `manifest.digest`."""
    payload, key_id = envelopes.verify(envelope, payload_type=PAYLOAD_TYPE, ring=ring)
    return VerifiedManifest(manifest=Manifest.from_bytes(payload), digest=Digest.of(payload), key_id=key_id)


def _true(fields: Fields, key: str) -> bool:
    """What is not so is not said."""
    if not fields.boolean(key):
        raise MalformedError(f"manifest: {key!r} is true, or absent")
    return True


def _xcom_dags(fields: Fields) -> tuple[str, ...]:
    found = [names.check("dag_id", item) for item in fields.items("xcom_dags", max_items=MAX_XCOM_DAGS)]
    if not found:
        raise MalformedError("task: 'xcom_dags' names a dag, or is absent")
    _strictly_sorted(found, "xcom_dags")
    return tuple(found)


def _strictly_sorted(keys: list[str], what: str) -> None:
    if any(a >= b for a, b in pairwise(keys)):
        raise MalformedError(f"manifest: {what} are to be sorted, each named once")

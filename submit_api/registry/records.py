"""What leaves the registry: frozen records, one per table, with the table's names."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from integrity.digests import Digest
from vocabulary import authorship

T = TypeVar("T")
_names_of: dict[type, tuple[str, ...]] = {}  # to ask a record for its fields costs as much as to copy them


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    token_id: str
    principal: str
    kind: str
    admin: bool
    secret_hash: str = field(repr=False)
    created_at: int
    created_by: str
    expires_at: int | None
    revoked_at: int | None
    scopes: list[str] = field(default_factory=list)
    last_used_at: int | None = None
    publisher: str = ""
    via: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """Empty `environment` and `ref` are any; empty ids are pinned at the first use."""

    id: str
    issuer: str
    repository: str
    workflow: str
    environment: str
    ref: str
    repository_id: str
    owner_id: str
    principal: str
    archive_prefix: str
    created_at: int
    created_by: str
    last_used_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    name: str
    owner: str
    group: str
    latest: int
    active: int | None
    created_at: int
    mode: int
    activation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    archive: str
    seq: int
    number: int
    was: int | None
    before: int
    at: int
    principal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Of a release what it takes to send its bytes."""

    archive: str
    number: int
    digest: str
    size: int
    retired_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    archive: str
    number: int
    digest: str
    size: int
    owner: str
    group: str
    submitted_by: str
    created_at: int
    revoked_at: int | None
    task_check: str
    isolation: str | None
    manifest: bytes = field(repr=False)
    manifest_digest: str
    revoked_by: str | None = None
    revoke_reason: str = ""
    approvals: int = 0
    approval_groups: list[str] = field(default_factory=list)
    approved_by: list[str] = field(default_factory=list)
    approved_at: int | None = None
    unsafe_alone: bool = False
    retired_at: int | None = None
    author: bytes | None = field(default=None, repr=False)

    @property
    def waits(self) -> bool:
        """For an approval, and is not launched before."""
        return self.approvals > 0 and self.approved_at is None

    @property
    def sha512(self) -> Digest:
        return Digest.parse(self.digest)

    @property
    def author_key_id(self) -> str | None:
        """Of the key that signed as the author; None where nobody did."""
        return authorship.key_of(self.author).key_id if self.author is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    kind: str
    name: str
    version: int
    ciphertext: bytes = field(repr=False)
    updated_at: int
    updated_by: str
    owner: str
    group: str
    mode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    name: str
    owner: str
    group: str
    mode: int
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    id: str
    kind: str
    name: str
    to_kind: str
    to: str
    created_at: int
    created_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    id: str
    subject_kind: str
    subject: str
    dag_glob: str
    unix_user: str
    queue_glob: str
    created_at: int
    created_by: str
    effect: str = "allow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    name: str
    verify_key: bytes
    sealing_key: bytes
    fingerprint: str
    queues: list[str]
    created_at: int
    revoked_at: int | None
    request_key: bytes | None = None
    request_key_id: str | None = None
    drifted: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """An empty `fingerprint` is any launcher's."""

    token_id: str
    worker: str
    queues: list[str]
    fingerprint: str
    secret_hash: str = field(repr=False)
    created_at: int
    created_by: str
    expires_at: int
    used_at: int | None = None
    used_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A `supervised` one was reserved for a task instance of Airflow's, in one of its queueings; `newest` is the last of these.
    Of one that was refused when it was reserved, what was not found out is empty, and its release 0."""

    id: str
    state: str
    dag_id: str
    task_id: str
    run_id: str
    map_index: int
    try_number: int
    archive: str
    release: int
    digest: str
    unix_user: str
    queue: str
    owner: str
    group: str
    principal: str
    timeout_seconds: int
    created_at: int
    worker: str | None = None
    ticket_id: str | None = None
    ticket_digest: str | None = None
    ticket_expires_at: int | None = None
    claim_digest: str | None = None
    task_digest: str | None = None
    attestation: dict[str, Any] | None = None
    heartbeat_at: int | None = None
    cancel_requested: bool = False
    started_at: int | None = None
    ended_at: int | None = None
    exit_code: int | None = None
    error: str = ""
    detail: str = ""
    timings_us: dict[str, Any] = field(default_factory=dict)
    result_digest: str | None = None
    log_bytes: int = 0
    log_held_bytes: int = 0
    log_truncated: bool = False
    log_digest: str | None = None
    supervised: bool = False
    newest: bool = False
    task_instance: str | None = None
    queueing: str | None = None
    release_set: str | None = None
    valid_until: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSet:
    """`hex` is the SHA-512 of `body` (`vocabulary.sets`)."""

    hex: str
    body: bytes = field(repr=False)
    created_at: int
    used_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredXcom:
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    key: str
    launch_id: str
    ciphertext: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of the audit log; `seq` is given by the database."""

    at: int
    principal: str
    token_id: str
    address: str
    action: str
    object: str
    digest: str
    verdict: str
    detail: str
    rule: str = ""
    seq: int = 0


def record(cls: type[T], row: object) -> T:
    """The record of a row: equal names, copied."""
    return cls(**{name: getattr(row, name) for name in _names(cls)})


def columns_of(cls: type, row: Any) -> list[Any]:
    """The columns of a table that a record has, to select no more than these."""
    return [getattr(row, name) for name in _names(cls)]


def columns(value: Any) -> dict[str, Any]:
    """The columns of a record."""
    return {name: getattr(value, name) for name in _names(type(value))}


def _names(cls: Any) -> tuple[str, ...]:
    found = _names_of.get(cls)
    if found is None:
        found = _names_of[cls] = tuple(field.name for field in fields(cls))
    return found

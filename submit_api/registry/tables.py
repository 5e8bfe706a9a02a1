"""The tables, as SQLAlchemy classes. Times are microseconds since 1970; secrets are ciphertext."""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

BigSerial = BigInteger().with_variant(Integer, "sqlite")
OPEN = "(mode & 4) != 0"  # of an index: which rows it has. A query is served by it that says the same, in these words.
PLAIN, NEWEST = ("supervised = 0", "NOT supervised"), ("newest = 1", "newest")  # for SQLite, and for PostgreSQL
TRY = ("dag_id", "task_id", "run_id", "map_index", "try_number")


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {int: BigInteger, bytes: LargeBinary, dict[str, Any]: JSON, list[str]: JSON}  # noqa: RUF012


class TokenRow(Base):
    __tablename__ = "tokens"
    token_id: Mapped[str] = mapped_column(String(12), primary_key=True)
    principal: Mapped[str] = mapped_column(String(100), index=True)
    kind: Mapped[str] = mapped_column(String(10))
    admin: Mapped[bool]
    secret_hash: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[int]
    created_by: Mapped[str] = mapped_column(String(100))
    expires_at: Mapped[int | None]
    revoked_at: Mapped[int | None]
    scopes: Mapped[list[str]] = mapped_column(server_default="[]")
    last_used_at: Mapped[int | None]
    publisher: Mapped[str] = mapped_column(String(32), server_default="")
    via: Mapped[str] = mapped_column(Text, server_default="")


class PublisherRow(Base):
    __tablename__ = "publishers"
    __table_args__ = (UniqueConstraint("issuer", "repository", "workflow", "environment", "ref"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    issuer: Mapped[str] = mapped_column(String(500))
    repository: Mapped[str] = mapped_column(String(200))
    workflow: Mapped[str] = mapped_column(String(200))
    environment: Mapped[str] = mapped_column(String(255))
    ref: Mapped[str] = mapped_column(String(255))
    repository_id: Mapped[str] = mapped_column(String(20))
    owner_id: Mapped[str] = mapped_column(String(20))
    principal: Mapped[str] = mapped_column(String(100))
    archive_prefix: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[int]
    created_by: Mapped[str] = mapped_column(String(100))
    last_used_at: Mapped[int | None]


class UsedTokenRow(Base):
    """Tokens of other issuers that were exchanged, until they expire."""

    __tablename__ = "used_oidc_tokens"
    digest: Mapped[str] = mapped_column(String(128), primary_key=True)
    expires_at: Mapped[int] = mapped_column(index=True)


class GroupRow(Base):
    __tablename__ = "groups"
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    created_at: Mapped[int]
    approvals: Mapped[int] = mapped_column(server_default="0")


class MemberRow(Base):
    __tablename__ = "group_members"
    group_name: Mapped[str] = mapped_column(ForeignKey("groups.name"), primary_key=True)
    principal: Mapped[str] = mapped_column(String(100), primary_key=True, index=True)


class ArchiveRow(Base):
    __tablename__ = "archives"
    __table_args__ = (
        Index("ix_archives_owner_name", "owner", "name"),
        Index("ix_archives_group_name", "group", "name"),
        Index("ix_archives_open", "name", sqlite_where=text(OPEN), postgresql_where=text(OPEN)),
    )
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    owner: Mapped[str] = mapped_column(String(100))
    group: Mapped[str] = mapped_column(String(100))
    latest: Mapped[int]
    active: Mapped[int | None]
    created_at: Mapped[int]
    mode: Mapped[int] = mapped_column(Integer, server_default="504")
    activation: Mapped[int] = mapped_column(server_default="0")


class ReleaseRow(Base):
    __tablename__ = "releases"
    __table_args__ = (Index("ix_releases_digest_archive_number", "digest", "archive", "number"),)
    archive: Mapped[str] = mapped_column(ForeignKey("archives.name"), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    digest: Mapped[str] = mapped_column(String(135))
    size: Mapped[int]
    owner: Mapped[str] = mapped_column(String(100))
    group: Mapped[str] = mapped_column(String(100))
    submitted_by: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[int]
    revoked_at: Mapped[int | None]
    task_check: Mapped[str] = mapped_column(String(10))
    isolation: Mapped[str | None] = mapped_column(String(10))
    manifest: Mapped[bytes]
    manifest_digest: Mapped[str] = mapped_column(String(135))
    revoked_by: Mapped[str | None] = mapped_column(String(100))
    revoke_reason: Mapped[str] = mapped_column(Text, server_default="")
    approvals: Mapped[int] = mapped_column(server_default="0")
    approval_groups: Mapped[list[str]] = mapped_column(server_default="[]")
    approved_by: Mapped[list[str]] = mapped_column(server_default="[]")
    approved_at: Mapped[int | None]
    unsafe_alone: Mapped[bool] = mapped_column(server_default=false())
    retired_at: Mapped[int | None]
    author: Mapped[bytes | None]


class ActivationRow(Base):
    """A release became the active one instead of `was`. `before` is the `seq` that a rollback goes on from, or 0."""

    __tablename__ = "activations"
    archive: Mapped[str] = mapped_column(ForeignKey("archives.name"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    number: Mapped[int]
    was: Mapped[int | None]
    before: Mapped[int]
    at: Mapped[int]
    principal: Mapped[str] = mapped_column(String(100))


class DagRow(Base):
    """A dag_id belongs to one archive for good, or until it is transferred: releases from before then name another."""

    __tablename__ = "dags"
    dag_id: Mapped[str] = mapped_column(String(250), primary_key=True)
    archive: Mapped[str] = mapped_column(ForeignKey("archives.name"), index=True)
    transferred_at: Mapped[int | None]


class TaskRow(Base):
    __tablename__ = "tasks"
    archive: Mapped[str] = mapped_column(String(200), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    dag_id: Mapped[str] = mapped_column(ForeignKey("dags.dag_id"), primary_key=True)
    task_id: Mapped[str] = mapped_column(String(250), primary_key=True)
    digest: Mapped[str] = mapped_column(String(135))
    run_as_user: Mapped[str | None] = mapped_column(String(250))
    connections: Mapped[list[str]]


class SecretRow(Base):
    """A connection or a variable. `version` is part of the associated data, so an old ciphertext cannot come back."""

    __tablename__ = "secrets"
    kind: Mapped[str] = mapped_column(String(10), primary_key=True)
    name: Mapped[str] = mapped_column(String(250), primary_key=True)
    version: Mapped[int]
    ciphertext: Mapped[bytes]
    updated_at: Mapped[int]
    updated_by: Mapped[str] = mapped_column(String(100))
    owner: Mapped[str] = mapped_column(String(100), server_default="")
    group: Mapped[str] = mapped_column(String(100), server_default="")
    mode: Mapped[int] = mapped_column(Integer, server_default="384")


class QueueRow(Base):
    """A queue that somebody owns. One without a row is open to all."""

    __tablename__ = "queues"
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    owner: Mapped[str] = mapped_column(String(100))
    group: Mapped[str] = mapped_column(String(100))
    mode: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[int]


class GrantRow(Base):
    __tablename__ = "grants"
    __table_args__ = (UniqueConstraint("kind", "name", "to_kind", "to"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    name: Mapped[str] = mapped_column(String(250))
    to_kind: Mapped[str] = mapped_column(String(10))
    to: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[int]
    created_by: Mapped[str] = mapped_column(String(100))


class RuleRow(Base):
    __tablename__ = "impersonation_rules"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    subject_kind: Mapped[str] = mapped_column(String(10))
    subject: Mapped[str] = mapped_column(String(100), index=True)
    dag_glob: Mapped[str] = mapped_column(String(250))
    unix_user: Mapped[str] = mapped_column(String(32))
    queue_glob: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[int]
    created_by: Mapped[str] = mapped_column(String(100))
    effect: Mapped[str] = mapped_column(String(10), server_default="allow")


class WorkerRow(Base):
    __tablename__ = "workers"
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    verify_key: Mapped[bytes]
    sealing_key: Mapped[bytes]
    fingerprint: Mapped[str] = mapped_column(String(64))
    queues: Mapped[list[str]]
    created_at: Mapped[int]
    revoked_at: Mapped[int | None]
    request_key: Mapped[bytes | None]
    request_key_id: Mapped[str | None] = mapped_column(String(64), index=True, unique=True)
    drifted: Mapped[str] = mapped_column(Text, server_default="")


class InvitationRow(Base):
    """A token that one worker joins with, once. `used_by` are the keys that it was used for."""

    __tablename__ = "worker_invitations"
    token_id: Mapped[str] = mapped_column(String(12), primary_key=True)
    worker: Mapped[str] = mapped_column(String(100), index=True)
    queues: Mapped[list[str]]
    fingerprint: Mapped[str] = mapped_column(String(64))
    secret_hash: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[int]
    created_by: Mapped[str] = mapped_column(String(100))
    expires_at: Mapped[int]
    used_at: Mapped[int | None]
    used_by: Mapped[str] = mapped_column(String(128), server_default="")


class LaunchRow(Base):
    __tablename__ = "launches"
    __table_args__ = (
        Index("ix_launches_try", *TRY, unique=True, sqlite_where=text(PLAIN[0]), postgresql_where=text(PLAIN[1])),
        Index(
            "ix_launches_newest",
            "task_instance",
            unique=True,
            sqlite_where=text(NEWEST[0]),
            postgresql_where=text(NEWEST[1]),
        ),
        Index("ix_launches_task_instance_queueing", "task_instance", "queueing", unique=True),
        Index("ix_launches_task_instance_state", "task_instance", "state"),
        Index("ix_launches_state_valid_until", "state", "valid_until"),
        Index("ix_launches_state_queue_created_at", "state", "queue", "supervised", "created_at", "id"),
        Index("ix_launches_dag_id_run_id", "dag_id", "run_id", "created_at"),
        Index("ix_launches_created_at", "created_at", "id"),
        Index("ix_launches_state_created_at", "state", "created_at", "id"),
        Index("ix_launches_principal_created_at", "principal", "created_at", "id"),
        Index("ix_launches_archive_created_at", "archive", "created_at", "id"),
        Index("ix_launches_dag_id_archive_created_at", "dag_id", "archive", "created_at", "id"),
        Index("ix_launches_dag_id_archive_state_created_at", "dag_id", "archive", "state", "created_at", "id"),
    )
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    state: Mapped[str] = mapped_column(String(20))
    dag_id: Mapped[str] = mapped_column(String(250))
    task_id: Mapped[str] = mapped_column(String(250))
    run_id: Mapped[str] = mapped_column(String(250))
    map_index: Mapped[int]
    try_number: Mapped[int]
    archive: Mapped[str] = mapped_column(String(200))
    release: Mapped[int]
    digest: Mapped[str] = mapped_column(String(135))
    unix_user: Mapped[str] = mapped_column(String(32))
    queue: Mapped[str] = mapped_column(String(100))
    owner: Mapped[str] = mapped_column(String(100))
    group: Mapped[str] = mapped_column(String(100))
    principal: Mapped[str] = mapped_column(String(100))
    timeout_seconds: Mapped[int]
    created_at: Mapped[int]
    worker: Mapped[str | None] = mapped_column(String(100))
    ticket_id: Mapped[str | None] = mapped_column(String(32))
    ticket_digest: Mapped[str | None] = mapped_column(String(135))
    ticket_expires_at: Mapped[int | None]
    claim_digest: Mapped[str | None] = mapped_column(String(135))
    task_digest: Mapped[str | None] = mapped_column(String(135))
    attestation: Mapped[dict[str, Any] | None]
    heartbeat_at: Mapped[int | None]
    cancel_requested: Mapped[bool]
    started_at: Mapped[int | None]
    ended_at: Mapped[int | None]
    exit_code: Mapped[int | None]
    error: Mapped[str] = mapped_column(String(100))
    detail: Mapped[str] = mapped_column(Text)
    timings_us: Mapped[dict[str, Any]]
    result_digest: Mapped[str | None] = mapped_column(String(135))
    log_bytes: Mapped[int]
    log_held_bytes: Mapped[int]
    log_truncated: Mapped[bool]
    log_digest: Mapped[str | None] = mapped_column(String(135))
    supervised: Mapped[bool] = mapped_column(server_default=false())
    newest: Mapped[bool] = mapped_column(server_default=false())
    task_instance: Mapped[str | None] = mapped_column(String(36))
    queueing: Mapped[str | None] = mapped_column(String(128))
    release_set: Mapped[str | None] = mapped_column(String(128))
    valid_until: Mapped[int | None]


class SetRow(Base):
    """Releases that are one version of what Airflow sees. `hex` is the SHA-512 of `body`."""

    __tablename__ = "release_sets"
    hex: Mapped[str] = mapped_column(String(128), primary_key=True)
    body: Mapped[bytes]
    created_at: Mapped[int]
    used_at: Mapped[int] = mapped_column(index=True)


class XcomRow(Base):
    __tablename__ = "xcoms"
    dag_id: Mapped[str] = mapped_column(String(250), primary_key=True)
    run_id: Mapped[str] = mapped_column(String(250), primary_key=True)
    task_id: Mapped[str] = mapped_column(String(250), primary_key=True)
    map_index: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    key: Mapped[str] = mapped_column(String(512), primary_key=True)
    launch_id: Mapped[str] = mapped_column(ForeignKey("launches.id"))
    ciphertext: Mapped[bytes]


class EventRow(Base):
    """The audit log. Rows are added at the end, and leave from the front (`submit_api.retention`)."""

    __tablename__ = "audit_events"
    __table_args__ = (
        Index("ix_audit_events_object_seq", "object", "seq"),
        Index("ix_audit_events_principal_seq", "principal", "seq"),
        Index("ix_audit_events_principal_verdict_seq", "principal", "verdict", "seq"),
        Index("ix_audit_events_action_seq", "action", "seq"),
        Index("ix_audit_events_verdict_seq", "verdict", "seq"),
        Index("ix_audit_events_at_seq", "at", "seq"),
    )
    seq: Mapped[int] = mapped_column(BigSerial, primary_key=True, autoincrement=True)
    at: Mapped[int]
    principal: Mapped[str] = mapped_column(String(100))
    token_id: Mapped[str] = mapped_column(String(12))
    address: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    object: Mapped[str] = mapped_column(String(300))
    digest: Mapped[str] = mapped_column(String(135))
    verdict: Mapped[str] = mapped_column(String(20))
    detail: Mapped[str] = mapped_column(Text)
    rule: Mapped[str] = mapped_column(String(100), server_default="")


class LeafRow(Base):
    """The transparency log. `peaks`: of the tree that this leaf ends, where it was the last of its transaction. `release`:
    as `etl.py@3`, where the leaf is one's."""

    __tablename__ = "log_leaves"
    __table_args__ = (Index("ix_log_leaves_release", "release", unique=True),)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    entry: Mapped[bytes]
    release: Mapped[str | None] = mapped_column(String(220))
    peaks: Mapped[bytes | None]


class LogKeyRow(Base):
    """Which leaves are keys."""

    __tablename__ = "log_keys"
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)


class TileRow(Base):
    """Of 256 leaves the one hash above them."""

    __tablename__ = "log_tiles"
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    root: Mapped[bytes]


def table(row: type[Base]) -> Table:
    """Without its class: many rows at once cost half as much."""
    return cast(Table, row.__table__)

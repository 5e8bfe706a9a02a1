"""Bodies about archives, their releases, and the log's proofs of them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from submit_api.models.fields import DigestText, In, Line, Mode, Out, Profile
from vocabulary import blobframes


class BlobsRequest(In):
    digests: list[DigestText] = Field(
        min_length=1, max_length=blobframes.MAX_DIGESTS, json_schema_extra={"uniqueItems": True}
    )

    @field_validator("digests")
    @classmethod
    def _once(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError("each digest is to be named once")
        return value


class ApproveRequest(In):
    """`digest` is that of the release which was looked at. `unsafe_alone`: an administrator, without a second member."""

    digest: DigestText
    unsafe_alone: bool = False
    reason: Line | None = None


class InclusionView(Out):
    """Binary fields are base64."""

    manifest: str
    entry: str
    index: int
    path: list[str]
    checkpoint: str
    keys: list[str]


class ConsistencyView(Out):
    path: list[str]


class TaskView(Out):
    task_id: str
    digest: str
    operator: str
    run_as_user: str | None
    queue: str
    connections: list[str]
    mapped: bool
    xcom_dags: list[str] = Field(default=[])


class DagView(Out):
    dag_id: str
    member: str
    tasks: list[TaskView]


class ReleaseView(Out):
    archive: str
    number: int
    digest: str
    size: int
    owner: str
    group: str
    submitted_by: str
    created_at: int
    state: Literal["active", "inactive", "pending", "retired", "revoked"]
    task_check: Literal["task", "archive"]
    isolation: Profile | None
    require_caller: bool
    manifest_digest: str
    revoked_at: int | None
    revoked_by: str | None
    revoke_reason: str
    approvals: int
    approval_groups: list[str]
    approved_by: list[str]
    approved_at: int | None
    unsafe_alone: bool
    retired_at: int | None
    author_key_id: str | None
    dags: list[DagView]


class ReleaseList(Out):
    """By number. With `after` the first `limit` above it: a page is followed by the one after its last number, until one is
    empty. Without `after` the newest `limit`. With `digest` only releases of these bytes."""

    releases: list[ReleaseView]


class ChangeView(Out):
    """`before` and `after` hold what differs; a task that has only another digest has `change` digest."""

    change: Literal["added", "removed", "changed", "digest"]
    name: list[str]
    before: dict[str, Any]
    after: dict[str, Any]


class SetsView(Out):
    gained: list[str]
    lost: list[str]


class DiffView(Out):
    """What changed from release `before` to release `after`; names of tasks are dag_id and task_id."""

    archive: str
    before: int
    after: int
    digests: list[str]
    same: bool
    settings: list[ChangeView]
    members: list[ChangeView]
    dags: list[ChangeView]
    tasks: list[ChangeView]
    connections: SetsView
    unix_users: SetsView


class ArchiveView(Out):
    """`dags` are the dag ids of the latest release; `digest` is that release's."""

    name: str
    owner: str
    group: str
    mode: Mode
    active: int | None
    latest: int
    digest: str
    dags: list[str]


class ArchiveDetail(ArchiveView):
    """`releases` are the newest hundred, by number: all are had from the archive's list of releases, by pages."""

    releases: list[ReleaseView]


class ArchiveList(Out):
    """By name, the first `limit` after `after`: a page is followed by the one after its last name, until one is empty."""

    archives: list[ArchiveView]

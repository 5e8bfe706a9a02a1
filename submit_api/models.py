"""HTTP bodies, as pydantic models: what may come in, what goes out, and what OpenAPI shows of both.

Nothing that goes out has a field for a secret's value.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from integrity import names
from integrity.errors import MalformedError
from submit_api import scopes


def _named(kind: str) -> AfterValidator:
    def check(value: str) -> str:
        try:
            return names.check(kind, value)
        except MalformedError as error:
            raise ValueError(str(error)) from None

    return AfterValidator(check)


def _scope(value: str) -> str:
    if not scopes.is_scope(value):
        raise ValueError(f"{value!r} is no scope: write archive:push:PREFIX, launch:GLOB, audit:read or admin")
    return value


DagId = Annotated[str, _named("dag_id")]
TaskId = Annotated[str, _named("task_id")]
RunId = Annotated[str, _named("run_id")]
Queue = Annotated[str, _named("queue")]
UnixUser = Annotated[str, _named("unix user")]
Principal = Annotated[str, _named("principal")]
WorkerName = Annotated[str, _named("worker")]
Glob = Annotated[str, Field(min_length=1, max_length=250, pattern=r"^[\w.*?\[\]!-]+$")]
Scope = Annotated[str, AfterValidator(_scope)]
Kind = Literal["connection", "variable"]
SubjectKind = Literal["principal", "group"]
Profile = Literal["minimal", "standard", "strict"]  # integrity.claims.PROFILES


class In(BaseModel):
    """What a caller sends."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Out(BaseModel):
    """What a caller gets. Times are microseconds since 1970."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LaunchRequest(In):
    dag_id: DagId
    task_id: TaskId
    run_id: RunId
    map_index: int = Field(default=-1, ge=-1, le=1_000_000)
    try_number: int = Field(default=1, ge=1, le=1_000_000)
    run_as_user: UnixUser | None = None
    queue: Queue | None = None
    release: int | None = Field(default=None, ge=1)
    timeout_seconds: int | None = Field(default=None, ge=1, le=30 * 86400)


class TakeRequest(In):
    queues: list[Queue] = Field(min_length=1, max_length=100)


class Heartbeat(In):
    state: Literal["running"]


class RefusedByWorker(In):
    state: Literal["refused"]
    error: str = Field(pattern=r"^[a-z0-9-]{1,100}$")
    detail: str = Field(max_length=8192)


class SecretValue(In):
    value: str | dict[str, Any] = Field(repr=False)


class GrantRequest(In):
    kind: Kind
    name: str
    to_kind: SubjectKind
    to: Principal


class RuleRequest(In):
    subject_kind: SubjectKind
    subject: Principal
    dag_glob: Glob = "*"
    unix_user: UnixUser
    queue_glob: Glob = "*"


class GroupRequest(In):
    members: list[Principal] = Field(max_length=10_000)


class TokenRequest(In):
    principal: Principal
    admin: bool = False
    scopes: list[Scope] = Field(default=[], max_length=100)
    expires_at: int | None = Field(default=None, ge=1)


class WorkerRequest(In):
    name: WorkerName
    verify_key: str
    sealing_key: str
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    queues: list[Queue] = Field(min_length=1, max_length=100)


class TaskView(Out):
    task_id: str
    digest: str
    operator: str
    run_as_user: str | None
    queue: str
    connections: list[str]
    mapped: bool
    xcom_dags: list[str] = []


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
    state: Literal["active", "inactive", "revoked"]
    task_check: Literal["task", "archive"]
    isolation: Profile | None
    require_caller: bool
    manifest_digest: str
    dags: list[DagView]


class ReleaseList(Out):
    releases: list[ReleaseView]


class ArchiveView(Out):
    """`dags` are the dag ids of the latest release; `digest` is that release's."""

    name: str
    owner: str
    group: str
    active: int | None
    latest: int
    digest: str
    dags: list[str]


class ArchiveDetail(ArchiveView):
    releases: list[ReleaseView]


class ArchiveList(Out):
    archives: list[ArchiveView]


class LaunchView(Out):
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
    principal: str
    worker: str | None
    created_at: int
    started_at: int | None
    ended_at: int | None
    exit_code: int | None
    error: str
    detail: str
    task_digest: str | None
    timings_us: dict[str, int]
    log_bytes: int
    log_truncated: bool
    log_digest: str | None
    attestation: dict[str, Any] | None


class LaunchList(Out):
    launches: list[LaunchView]


class OfferView(Out):
    """Envelopes are base64."""

    launch_id: str
    archive: str
    digest: str
    ticket: str
    manifest: str


class StateView(Out):
    state: str
    cancel: bool


class OffsetView(Out):
    next_offset: int


class SecretView(Out):
    """The name of a connection or variable; never its value."""

    name: str
    version: int
    updated_at: int
    updated_by: str


class ConnectionList(Out):
    connections: list[SecretView]


class VariableList(Out):
    variables: list[SecretView]


class ImportedView(Out):
    imported: list[str]


class GrantView(Out):
    id: str
    kind: str
    name: str
    to_kind: str
    to: str
    created_at: int
    created_by: str


class GrantList(Out):
    grants: list[GrantView]


class RuleView(Out):
    id: str
    subject_kind: str
    subject: str
    dag_glob: str
    unix_user: str
    queue_glob: str
    created_at: int
    created_by: str


class RuleList(Out):
    rules: list[RuleView]


class GroupView(Out):
    name: str
    members: list[str]


class GroupList(Out):
    groups: list[GroupView]


class TokenView(Out):
    token_id: str
    principal: str
    kind: str
    admin: bool
    scopes: list[str]
    created_at: int
    created_by: str
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None


class TokenList(Out):
    tokens: list[TokenView]


class NewTokenView(Out):
    """The only answer that holds a token."""

    token_id: str
    token: str = Field(repr=False)


class KeyView(Out):
    """A row key by its id, and how many rows of each kind are under it."""

    key_id: str
    state: Literal["newest", "older", "missing"]
    connections: int
    variables: int
    xcoms: int


class KeyList(Out):
    keys: list[KeyView]


class WorkerView(Out):
    name: str
    verify_key: str
    sealing_key: str
    fingerprint: str
    queues: list[str]
    created_at: int
    revoked_at: int | None


class WorkerList(Out):
    workers: list[WorkerView]


class NewWorkerView(Out):
    """The only answer that holds a worker's token."""

    name: str
    token_id: str
    token: str = Field(repr=False)


class EventView(Out):
    seq: int
    at: int
    principal: str
    token_id: str
    address: str
    action: str
    object: str
    digest: str
    verdict: str
    detail: str


class EventList(Out):
    events: list[EventView]


class HealthView(Out):
    status: Literal["ok"]


class ReadinessView(Out):
    """Each check is `ok` or says what is wrong."""

    status: Literal["ok", "failing"]
    checks: dict[str, str]


class ProblemError(Out):
    rule: str
    entry: str
    detail: str


class Problem(Out):
    """RFC 9457. `type` ends in a stable slug."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[ProblemError] | None = None

"""HTTP bodies, as pydantic models: what may come in, what goes out, and what OpenAPI shows of both.

Nothing that goes out has a field for a secret's value.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, FailFast, Field, field_validator
from pydantic.fields import FieldInfo

from integrity import blobframes, names
from integrity.errors import MalformedError
from submit_api import modes, scopes


def _described(kind: str) -> FieldInfo:
    """The rule of a name, for the description: what may be sent is to be read there."""
    return Field(json_schema_extra={"pattern": names.pattern(kind)})  # type: ignore[no-any-return]


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


def _shown(value: object) -> object:
    return modes.shown(value) if isinstance(value, int) else value


def _line(value: str) -> str:
    if not value.isprintable() or not value.strip():
        raise ValueError("this is to be one line of text")
    return value


def _prefix(value: str) -> str:
    if not scopes.is_scope(f"{scopes.ARCHIVE}:{value}"):
        raise ValueError(f"{value!r} is no beginning of an archive's name: letters, digits and _.- , at least one")
    return value


Line = Annotated[str, Field(max_length=500), AfterValidator(_line)]
ArchiveName = Annotated[str, _described("archive"), _named("archive")]
DagId = Annotated[str, _described("dag_id"), _named("dag_id")]
TaskId = Annotated[str, _described("task_id"), _named("task_id")]
RunId = Annotated[str, _described("run_id"), _named("run_id")]
Queue = Annotated[str, _described("queue"), _named("queue")]
UnixUser = Annotated[str, _described("unix user"), _named("unix user")]
Principal = Annotated[str, _described("principal"), _named("principal")]
LocalPrincipal = Annotated[str, _described("local principal"), _named("local principal")]
# A group or a principal: every name of one is a good name of the other.
Subject = Annotated[str, _described("group"), _named("group")]
WorkerName = Annotated[str, _described("worker"), _named("worker")]
Glob = Annotated[str, Field(min_length=1, max_length=250, pattern=r"^[\w.*?\[\]!-]+$")]
QueueGlob = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[\w.*?\[\]!-]+$")]
Scope = Annotated[str, AfterValidator(_scope)]
Mode = Annotated[str, BeforeValidator(_shown), Field(pattern=r"^([r-][w-][x-]){3}$")]
DigestText = Annotated[str, Field(pattern=r"^sha512:[0-9a-f]{128}$")]
Kind = Literal["connection", "variable"]
SubjectKind = Literal["principal", "group"]
Effect = Literal["allow", "deny"]  # submit_api.impersonation
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


class BlobsRequest(In):
    digests: list[Annotated[str, Field(pattern=r"^sha512:[0-9a-f]{128}$")]] = Field(
        min_length=1, max_length=blobframes.MAX_DIGESTS, json_schema_extra={"uniqueItems": True}
    )

    @field_validator("digests")
    @classmethod
    def _once(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError("each digest is to be named once")
        return value


TaskInstance = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
SetHex = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


class ReservationRequest(In):
    """One task instance of Airflow's in one of its queueings. `set` null: its run is of no version. `task_digest`: of the task
    as Airflow has it serialised."""

    task_instance: TaskInstance
    queueing: str = Field(pattern=r"^[!-~]{1,128}$")
    dag_id: DagId
    task_id: TaskId
    run_id: RunId
    map_index: int = Field(ge=-1, le=1_000_000)
    try_number: int = Field(ge=1, le=1_000_000)
    queue: Queue
    set: SetHex | None
    task_digest: DigestText | None
    valid_seconds: int = Field(ge=1, le=86_400)


class ReservationsRequest(In):
    """Each task instance is named once."""

    reservations: list[ReservationRequest] = Field(min_length=1, max_length=500)

    @field_validator("reservations")
    @classmethod
    def _once(cls, value: list[ReservationRequest]) -> list[ReservationRequest]:
        if len({one.task_instance for one in value}) < len(value):
            raise ValueError("each task instance is to be named once")
        return value


class TakeRequest(In):
    """With `task_instance` what was reserved for it, and nothing else; without it nothing that was reserved for one."""

    queues: list[Queue] = Field(min_length=1, max_length=100)
    task_instance: TaskInstance | None = None


class ReportRequest(In):
    """`log_root` and `held_root` are base64 of 32 bytes; of `missing` and `damaged` the first hundred are named."""

    log_size: int = Field(ge=0)
    log_root: str = Field(max_length=44)
    held_root: str = Field(max_length=44)
    missing: list[DigestText] = Field(max_length=100)
    missing_count: int = Field(ge=0)
    damaged: list[DigestText] = Field(max_length=100)
    alarm: str = Field(max_length=500)


class Heartbeat(In):
    state: Literal["running"]


class RefusedByWorker(In):
    state: Literal["refused"]
    error: str = Field(pattern=r"^[a-z0-9-]{1,100}$")
    detail: str = Field(max_length=8192)


class SecretValue(In):
    """A connection: Airflow's JSON, or its URI."""

    value: str | dict[str, Any] = Field(repr=False)


class VariableValue(In):
    value: str = Field(repr=False)


class GrantRequest(In):
    kind: Kind
    name: str
    to_kind: SubjectKind
    to: Subject


class OwnershipChange(In):
    """What is left out stays. `mode` as chmod(1) takes it: three octal digits, or clauses such as `g+rx,o=`."""

    owner: Subject | None = None
    group: Subject | None = None
    mode: str | None = Field(default=None, max_length=modes.MAX_CHARS, pattern=modes.PATTERN)


class QueueRequest(In):
    """Left out: the caller, who owns it; the owner; `rwxrwx--x`."""

    owner: Subject | None = None
    group: Subject | None = None
    mode: str | None = Field(default=None, max_length=modes.MAX_CHARS, pattern=modes.PATTERN)


class TransferRequest(In):
    archive: ArchiveName


class RuleRequest(In):
    subject_kind: SubjectKind
    subject: Subject
    dag_glob: Glob = "*"
    unix_user: UnixUser
    queue_glob: QueueGlob = "*"
    effect: Effect = "allow"


class GroupRequest(In):
    """What is left out stays as it is."""

    # The first bad name is told, not ten thousand of them: to collect those took most of a second.
    members: Annotated[list[Principal] | None, FailFast()] = Field(default=None, max_length=10_000)
    approvals: int | None = Field(default=None, ge=0, le=10)


class ApproveRequest(In):
    """`digest` is that of the release which was looked at. `unsafe_alone`: an administrator, without a second member."""

    digest: str = Field(pattern=r"^sha512:[0-9a-f]{128}$")
    unsafe_alone: bool = False
    reason: Line | None = None


class TokenRequest(In):
    principal: LocalPrincipal
    admin: bool = False
    scopes: list[Scope] = Field(default=[], max_length=100)
    expires_at: int | None = Field(default=None, ge=1)


class PublisherRequest(In):
    """`environment` and `ref` left out are any; ids left out are pinned at the first use."""

    issuer: str = Field(min_length=1, max_length=500)
    repository: str = Field(max_length=200, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_.-]+){1,9}$")
    workflow: str = Field(max_length=200, pattern=r"^([A-Za-z0-9_.-]+/){0,9}[A-Za-z0-9_.-]+\.ya?ml$")
    environment: str = Field(default="", max_length=255, pattern=r"^[ -~]*$")
    ref: str = Field(default="", max_length=255, pattern=r"^(refs/[!-~]+)?$")
    repository_id: str = Field(default="", pattern=r"^[0-9]{0,20}$")
    owner_id: str = Field(default="", pattern=r"^[0-9]{0,20}$")
    principal: Principal
    archive_prefix: Annotated[str, AfterValidator(_prefix)]


class ExchangeRequest(In):
    """`token` is the one that CI's own issuer gave to the run."""

    token: str = Field(min_length=1, max_length=65_536, repr=False)


class WorkerRequest(In):
    name: WorkerName
    verify_key: str
    sealing_key: str
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    queues: list[Queue] = Field(min_length=1, max_length=100)


class InvitationRequest(In):
    """`fingerprint` is what the launcher's host shows, over a path that does not go through the agent. Without it whoever has
    the token names the launcher that grants are sealed to; that is asked for by `unsafe_any_launcher`."""

    queues: list[Queue] = Field(min_length=1, max_length=100)
    fingerprint: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    unsafe_any_launcher: bool = False
    seconds: int = Field(default=900, ge=1, le=86_400)


class JoinRequest(In):
    """`token` is the invitation's; the request is signed by `request_key`."""

    token: str = Field(min_length=1, max_length=200, repr=False)
    request_key: str = Field(min_length=1, max_length=100)
    verify_key: str = Field(min_length=1, max_length=100)
    sealing_key: str = Field(min_length=1, max_length=100)


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
    supervised: bool
    task_instance: str | None


class LaunchList(Out):
    launches: list[LaunchView]


class ReservationView(Out):
    """`error` is the slug of why it was refused or cancelled. One that is at odds with another has no launch of its own."""

    task_instance: str
    queueing: str
    launch_id: str | None
    state: str
    error: str
    detail: str


class ReservationsView(Out):
    """In the order in which they were asked for."""

    reservations: list[ReservationView]


class OfferView(Out):
    """Envelopes are base64. `xcom_dags`: other dags whose XComs the task may read."""

    launch_id: str
    archive: str
    digest: str
    ticket: str
    manifest: str
    xcom_dags: list[str]


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
    owner: str
    group: str
    mode: Mode


class ConnectionList(Out):
    connections: list[SecretView]


class VariableList(Out):
    variables: list[SecretView]


class ImportedView(Out):
    imported: list[str]


class OwnershipView(Out):
    kind: Literal["archive", "connection", "variable", "queue"]
    name: str
    owner: str
    group: str
    mode: Mode


class QueueView(Out):
    name: str
    owner: str
    group: str
    mode: Mode
    created_at: int


class QueueList(Out):
    queues: list[QueueView]


class TransferView(Out):
    dag_id: str
    archive: str
    was: str


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
    effect: str
    subject_kind: str
    subject: str
    dag_glob: str
    unix_user: str
    queue_glob: str
    created_at: int
    created_by: str


class RuleList(Out):
    rules: list[RuleView]


class MatchView(RuleView):
    """A rule that fits: `principal`, the launch's `role`, is whom it speaks of."""

    role: Literal["owner", "submitter", "caller"]
    principal: str
    decides: bool


class ExplainedView(Out):
    """What a launch would run as, and why it may or may not. `rule` is the id of the one that decides, or null where none
    fits; `ask` is what to ask an administrator for, empty where it is allowed."""

    dag_id: str
    task_id: str
    archive: str
    release: int
    owner: str
    unix_user: str
    named_by: Literal["request", "manifest", "default_impersonation"]
    queue: str
    verdict: Literal["allowed", "refused"]
    rule: str | None
    ask: str
    matches: list[MatchView]


class GroupView(Out):
    """`approvals`: how many other members must approve a release of the group's archives."""

    name: str
    members: list[str]
    approvals: int


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
    via: str


class TokenList(Out):
    tokens: list[TokenView]


class NewTokenView(Out):
    """The only answer that holds a token."""

    token_id: str
    token: str = Field(repr=False)


class ExchangedView(Out):
    """The only answer that holds an exchanged token."""

    token_id: str
    token: str = Field(repr=False)
    principal: str
    scopes: list[str]
    expires_at: int


class PublisherView(Out):
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


class PublisherList(Out):
    publishers: list[PublisherView]


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
    request_key_id: str | None
    state: str
    why: str
    reported_at: int | None
    log_size: int | None
    missing: int | None
    damaged: list[str]


class StandingView(Out):
    state: str
    why: str


class SpreadView(Out):
    worker: str
    state: str
    holds: bool


class SpreadList(Out):
    workers: list[SpreadView]


class WorkerList(Out):
    workers: list[WorkerView]


class NewWorkerView(Out):
    """The only answer that holds a worker's token."""

    name: str
    token_id: str
    token: str = Field(repr=False)


class InvitationView(Out):
    """The only answer that holds a token to join with."""

    name: str
    token_id: str
    token: str = Field(repr=False)
    queues: list[str]
    fingerprint: str
    expires_at: int


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
    rule: str
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

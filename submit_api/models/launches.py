"""Bodies about launches: what a caller reserves, what a worker takes and says of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from submit_api.models.fields import DagId, DigestText, In, Out, Queue, RunId, TaskId, UnixUser


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


class Heartbeat(In):
    state: Literal["running"]


class RefusedByWorker(In):
    state: Literal["refused"]
    error: str = Field(pattern=r"^[a-z0-9-]{1,100}$")
    detail: str = Field(max_length=8192)


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

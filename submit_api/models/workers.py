"""Bodies about workers: how one joins, and what it holds."""

from __future__ import annotations

from pydantic import Field

from submit_api.models.fields import DigestText, In, Out, Queue, WorkerName


class ReportRequest(In):
    """`log_root` and `held_root` are base64 of 32 bytes; of `missing` and `damaged` the first hundred are named."""

    log_size: int = Field(ge=0)
    log_root: str = Field(max_length=44)
    held_root: str = Field(max_length=44)
    missing: list[DigestText] = Field(max_length=100)
    missing_count: int = Field(ge=0)
    damaged: list[DigestText] = Field(max_length=100)
    alarm: str = Field(max_length=500)


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

"""Bodies about the service itself: its keys, its audit log, its health, and how it refuses (RFC 9457)."""

from __future__ import annotations

from typing import Literal

from submit_api.models.fields import Out


class KeyView(Out):
    """A row key by its id, and how many rows of each kind are under it."""

    key_id: str
    state: Literal["newest", "older", "missing"]
    connections: int
    variables: int
    xcoms: int


class KeyList(Out):
    keys: list[KeyView]


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

"""What the bodies of requests and answers are made of: names by the rules of `integrity.names`, digests, modes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

from integrity import names
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
Profile = Literal["minimal", "standard", "strict"]  # vocabulary.claims.PROFILES


class In(BaseModel):
    """What a caller sends."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Out(BaseModel):
    """What a caller gets. Times are microseconds since 1970."""

    model_config = ConfigDict(extra="forbid", frozen=True)

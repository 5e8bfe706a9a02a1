"""Bodies about connections and variables, and who was granted which. Nothing that goes out has a field for a secret's value."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from submit_api.models.fields import In, Kind, Mode, Out, Subject, SubjectKind


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

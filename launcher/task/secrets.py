"""The one source of connections and variables in a task: what came through its pipe, then what the operator allowed by name.

Promise: before the grant is delivered nothing is answered but allow-listed environment variables, and every question is
noted with the place in the archive that asked it. Afterwards the grant comes first, then `AIRFLOW_CONN_*` and `AIRFLOW_VAR_*`
of the environment; anything else is refused with the command that would grant it. An ungranted variable with a default
gives the default, as an absent one does in Airflow. The launcher is what keeps secrets from a task: this only answers.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from airflow.sdk.bases.secrets_backend import BaseSecretsBackend
from airflow.sdk.exceptions import AirflowRuntimeError, AirflowSecretsBackendAccessDenied, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse

from vocabulary.grants import Secrets

_HOW_TO_GRANT = {
    "connection": ("grant it to the archive's owner by `dagseal connection grant`", "AIRFLOW_CONN"),
    "variable": ("grant it to the archive's owner (POST /v1/grants, kind variable)", "AIRFLOW_VAR"),
}


class VariableNotGrantedError(AirflowRuntimeError, AirflowSecretsBackendAccessDenied):  # type: ignore[misc]
    """To Airflow an authoritative "not there": no other backend is asked, and `Variable.get` gives its default."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorResponse(error=ErrorType.VARIABLE_NOT_FOUND, detail={"message": message}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One question that was asked while the archive was imported: `call` as it would be written, `where` as member:line."""

    kind: str
    call: str
    where: str


@dataclass(slots=True)
class _Delivered:
    secrets: Secrets | None = None
    reads: list[Read] = field(default_factory=list)
    member_of: Callable[[str], str | None] = lambda path: None


_state = _Delivered()


def watch_imports(member_of: Callable[[str], str | None]) -> None:
    """From now on every question is noted; `member_of` tells which member of the archive a source path is."""
    _state.member_of = member_of


def reads() -> tuple[Read, ...]:
    """What was asked before the grant was delivered, in order."""
    return tuple(_state.reads)


def deliver(secrets: Secrets) -> None:
    """Answer from `secrets` from now on, and mask their values in the log."""
    from airflow.sdk.definitions.connection import Connection
    from airflow.sdk.log import mask_secret

    _state.secrets = secrets
    for conn_id, value in secrets.connections.items():
        connection = parse(Connection, conn_id, value)
        if connection.password:
            mask_secret(connection.password)
        if connection.extra:
            mask_secret(connection.extra)
            mask_secret(_json_or_text(connection.extra))
    for value in secrets.variables.values():
        mask_secret(value)


@contextlib.contextmanager
def delivered_for_a_while(secrets: Secrets) -> Iterator[None]:
    """For a rehearsal: afterwards nothing is delivered, and the log masks what it masked before."""
    from airflow.sdk._shared.secrets_masker import _secrets_masker

    masker = _secrets_masker()
    masked = set(masker.patterns), masker.replacer
    try:
        deliver(secrets)
        yield
    finally:
        _state.secrets = None
        masker.patterns, masker.replacer = masked


def connection_value(conn_id: str) -> str | None:
    """Airflow's JSON or URI, or None where this launch has no such connection."""
    granted = _state.secrets.connections.get(conn_id) if _state.secrets else None
    return granted if granted is not None else os.environ.get(f"AIRFLOW_CONN_{conn_id.upper()}")


def variable_value(key: str) -> str | None:
    """The variable's text, or None where this launch has no such variable."""
    granted = _state.secrets.variables.get(key) if _state.secrets else None
    return granted if granted is not None else os.environ.get(f"AIRFLOW_VAR_{key.upper()}")


def variable_names() -> list[str]:
    """The names of the variables in the grant."""
    return sorted(_state.secrets.variables) if _state.secrets else []


def note(kind: str, name: str) -> None:
    """Note a question asked before the delivery."""
    if _state.secrets is None:
        _state.reads.append(_locate(kind, name))


def refusal(kind: str, name: str) -> str:
    """What to tell a task that asked for what it was not granted."""
    if _state.secrets is None:
        return f"{kind} {name!r} was asked for while the archive was imported: ask for it inside a task instead"
    how, variable = _HOW_TO_GRANT[kind]
    return (
        f"{kind} {name!r} was not granted to this task: {how}, "
        f"or let the launcher's policy pass {variable}_{name.upper()} to tasks"
    )


class GrantBackend(BaseSecretsBackend):  # type: ignore[misc]
    """The `[workers] secrets_backend` of every process here."""

    def get_conn_value(self, conn_id: str, team_name: str | None = None) -> str:
        note("connection", conn_id)
        value = connection_value(conn_id)
        if value is None:
            raise AirflowSecretsBackendAccessDenied(refusal("connection", conn_id))
        return value

    def get_variable(self, key: str, team_name: str | None = None) -> str:
        note("variable", key)
        value = variable_value(key)
        if value is None:
            raise VariableNotGrantedError(refusal("variable", key))
        return value


def parse(connection_class: type, conn_id: str, value: str):  # type: ignore[no-untyped-def]  # Airflow's class
    backend = GrantBackend()
    backend._set_connection_class(connection_class)
    return backend.deserialize_connection(conn_id, value)


def _json_or_text(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _locate(kind: str, name: str) -> Read:
    """The innermost frame of the archive, and what it called."""
    frame, called = sys._getframe(1), ""
    while frame is not None:
        member = _state.member_of(frame.f_code.co_filename)
        if member is not None:
            return Read(kind=kind, call=f"{called}({name!r})", where=f"{member}:{frame.f_lineno}")
        called = frame.f_code.co_qualname
        if frame.f_back is None:
            break
        frame = frame.f_back
    call = "Variable.get" if kind == "variable" else "Connection.get"
    return Read(kind=kind, call=f"{call}({name!r})", where="")

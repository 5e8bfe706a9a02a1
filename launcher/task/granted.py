"""What a task is told of connections and variables: what its grant holds, whoever else there is to ask.

Promise: of these questions nothing leaves the task, a supervised one's neither. What was not granted is refused in words that
say why, and by the SDK's own errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import comms

from launcher.task import secrets


def _connection(msg: comms.GetConnection) -> Any:
    value = secrets.connection_value(msg.conn_id)
    if value is None:
        return error(ErrorType.PERMISSION_DENIED, secrets.refusal("connection", msg.conn_id))
    from airflow.sdk.definitions.connection import Connection

    found = secrets.parse(Connection, msg.conn_id, value)
    return comms.ConnectionResult(
        conn_id=msg.conn_id,
        conn_type=found.conn_type or "",
        host=found.host,
        schema=found.schema,
        login=found.login,
        password=found.password,
        port=found.port,
        extra=found.extra,
    )


def _variable(msg: comms.GetVariable) -> Any:
    value = secrets.variable_value(msg.key)
    if value is None:
        return error(ErrorType.VARIABLE_NOT_FOUND, secrets.refusal("variable", msg.key))
    return comms.VariableResult(key=msg.key, value=value)


def _variable_keys(msg: comms.GetVariableKeys) -> Any:
    names = [name for name in secrets.variable_names() if name.startswith(msg.prefix or "")]
    return comms.VariableKeysResult(keys=names[msg.offset : msg.offset + msg.limit], total_entries=len(names))


def _masked_here(msg: comms.MaskSecret) -> None:
    """The log is masked before it leaves the task: nobody outside is told a secret in order to hide it."""


FROM_GRANT: dict[type, Callable[[Any], Any]] = {
    comms.MaskSecret: _masked_here,
    comms.GetConnection: _connection,
    comms.GetVariable: _variable,
    comms.GetVariableKeys: _variable_keys,
}


def refused(message: str) -> AirflowRuntimeError:
    """What the SDK raises in the task for a supervisor's refusal."""
    return AirflowRuntimeError(error(ErrorType.PERMISSION_DENIED, message))


def error(kind: ErrorType, message: str) -> comms.ErrorResponse:
    return comms.ErrorResponse(error=kind, detail={"message": message})

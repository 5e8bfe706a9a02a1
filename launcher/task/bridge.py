"""Lets the Python that an operator starts in another environment (`@task.external_python`, `@task.virtualenv`) ask what its
task may ask: an Airflow in that environment finds its supervisor at the descriptor that the environment names.

Only for tasks of those operators: other tasks have no such descriptor. What is asked is answered as the task itself is
answered, so a subprocess gets no more than the task has; the socket of a supervisor it does not get. Its log records come back
as lines of the task's log.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from typing import Any, Protocol

import msgspec
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import comms
from pydantic import TypeAdapter

DESCRIPTOR_VARIABLE = "__AIRFLOW_SUPERVISOR_FD"
MAX_REQUEST_BYTES = 4 * 1024 * 1024
_HEADER_BYTES = 4


class Answers(Protocol):
    """Who answers the task."""

    def send(self, msg: Any) -> Any: ...


def is_wanted(task: Any) -> bool:
    """Whether `task` (mapped or not) runs its callable in another Python."""
    try:
        from airflow.providers.standard.operators.python import _BasePythonVirtualenvOperator
    except ImportError:
        return False
    return issubclass(getattr(task, "operator_class", type(task)), _BasePythonVirtualenvOperator)


def start(answers: Answers) -> None:
    """Open the descriptor, name it in the environment and answer on it until the process ends."""
    ours, theirs = socket.socketpair()
    theirs.set_inheritable(True)
    os.environ[DESCRIPTOR_VARIABLE] = str(theirs.detach())
    threading.Thread(target=_serve, args=(ours, answers), name="dagseal-bridge", daemon=True).start()


def _serve(sock: socket.socket, answers: Answers) -> None:
    requests = msgspec.msgpack.Decoder(comms._RequestFrame)
    messages: TypeAdapter[Any] = TypeAdapter(comms.ToSupervisor)
    while True:
        length = int.from_bytes(_exactly(sock, _HEADER_BYTES), "big")
        if length > MAX_REQUEST_BYTES:
            return
        request = requests.decode(_exactly(sock, length))
        message = messages.validate_python(request.body)
        if isinstance(message, comms.ResendLoggingFD):
            _send_log_pipe(sock, request.id)
            continue
        sock.sendall(_answer(answers, request.id, message).as_bytes())


def _answer(answers: Answers, number: int, message: Any) -> Any:
    try:
        answer = answers.send(message)
    except AirflowRuntimeError as error:
        return comms._ResponseFrame(id=number, error=error.error.model_dump())
    except ValueError as error:
        refusal = comms.ErrorResponse(error=ErrorType.GENERIC_ERROR, detail={"message": str(error)})
        return comms._ResponseFrame(id=number, error=refusal.model_dump())
    return comms._ResponseFrame(id=number, body=answer.model_dump(by_alias=True) if answer is not None else None)


def _send_log_pipe(sock: socket.socket, number: int) -> None:
    read, write = os.pipe()
    frame = comms._ResponseFrame(id=number, body=comms.SentFDs(fds=[write]).model_dump())
    socket.send_fds(sock, [bytes(frame.as_bytes())], [write])
    os.close(write)
    threading.Thread(target=_relog, args=(read,), name="dagseal-bridge-log", daemon=True).start()


def _relog(fd: int) -> None:
    with open(fd, encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            try:
                record = json.loads(line)
                level = logging.getLevelNamesMapping().get(str(record["level"]).upper(), logging.INFO)
                logging.getLogger(str(record.get("logger") or "task")).log(level, "%s", record["event"])
            except (ValueError, KeyError, TypeError):
                logging.getLogger("task").info("%s", line.rstrip("\n"))


def _exactly(sock: socket.socket, size: int) -> bytes:
    taken = bytearray()
    while len(taken) < size:
        chunk = sock.recv(size - len(taken))
        if not chunk:
            raise SystemExit  # ends this thread only; the process is ending
        taken += chunk
    return bytes(taken)

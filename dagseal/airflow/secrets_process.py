"""The process that a secrets backend of Airflow's runs in: `python -I -m dagseal.airflow.secrets_process FD`.

The API started it and speaks with it over the socket FD; the other side is `submit_api/backends/process.py`. The frames are
those of `integrity.messages`.

| frame                                                               | answer, with the `number`                          |
|---------------------------------------------------------------------|----------------------------------------------------|
| `open {class_path, kwargs, readable, folder, hidden, memory_bytes}` | `opened {}`, or `failed`, and the end |
| `ask {number, what, name}`                                          | `found {…, value}`, `absent`, `failed {…, error}` |

Promise: before a line of the class is imported this process can read the interpreter, its packages, a few files of /etc and
what `readable` names, and nothing of the API: neither its files (`hidden`; tried, and to be refused), nor its memory,
environment and descriptors; it can write its own folder only. What goes wrong is told by its class's name, never by its text.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import socket
import sys
from typing import Any

from integrity import messages
from integrity.errors import PrivilegeError
from integrity.messages import Message
from launcher import privileges
from launcher.task import landlock

SYSTEM = (
    "/bin", "/lib", "/lib32", "/lib64", "/proc", "/sbin", "/usr",
    "/dev/null", "/dev/random", "/dev/urandom", "/dev/zero",
    "/etc/alternatives", "/etc/ca-certificates", "/etc/gai.conf", "/etc/group", "/etc/host.conf", "/etc/hosts",
    "/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types", "/etc/nsswitch.conf", "/etc/os-release", "/etc/passwd",
    "/etc/pki", "/etc/protocols", "/etc/resolv.conf", "/etc/services", "/etc/ssl", "/etc/timezone",
)  # fmt: skip
MAX_REQUEST_BYTES = 1024 * 1024
_FILE_BYTES, _DESCRIPTORS, _PROCESSES = 16 * 1024 * 1024, 256, 512


def main() -> None:
    """Until the API closes the socket."""
    privileges.prctl(privileges.PR_SET_PDEATHSIG, signal.SIGKILL)
    with socket.socket(fileno=int(sys.argv[1])) as peer:
        backend = _open(peer)
        while (message := _receive(peer)) is not None:
            fields = message.fields
            number, what, name = fields.integer("number"), fields.text("what"), fields.text("name")
            try:
                value = connection(backend, name) if what == "connection" else backend.get_variable(name)
                answer = ("absent", "", "") if value is None else ("found", "value", str(value))
            except Exception as error:  # the class's own: whatever it raises is its answer
                absent = type(error).__name__ == "AirflowNotFoundException"
                answer = ("absent", "", "") if absent else ("failed", "error", type(error).__name__[:100])
            kind, key, text = answer
            more: dict[str, Any] = {key: text} if key else {}
            peer.sendall(messages.encode(kind, number=number, **more))


def _open(peer: socket.socket) -> Any:
    message = _receive(peer)
    if message is None or message.kind != "open":
        raise SystemExit(1)
    fields = message.fields
    class_path, kwargs = fields.text("class_path"), json.loads(fields.text("kwargs", max_chars=MAX_REQUEST_BYTES))
    try:
        confine(
            readable=fields.items("readable", max_items=1000),
            folder=fields.text("folder"),
            hidden=fields.items("hidden", max_items=1000),
            memory_bytes=fields.integer("memory_bytes"),
        )
        module, _, name = class_path.rpartition(".")
        backend = getattr(importlib.import_module(module), name)(**kwargs)
    except Exception as error:  # a bad path, bad arguments, or a hardening step that failed: it does not start
        peer.sendall(messages.encode("failed", number=0, error=type(error).__name__[:100]))
        raise SystemExit(1) from None
    peer.sendall(messages.encode("opened"))
    return backend


def confine(*, readable: list[str], folder: str, hidden: list[str], memory_bytes: int) -> None:
    """For good. Raises `PrivilegeError` when a step failed or is not proved."""
    for limit, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, _FILE_BYTES),
        (resource.RLIMIT_NOFILE, _DESCRIPTORS),
        (resource.RLIMIT_NPROC, _PROCESSES),
    ):
        resource.setrlimit(limit, (most, most))
    privileges.prctl(privileges.PR_SET_NO_NEW_PRIVS, 1)
    privileges.shed_capabilities()  # where the API has none this changes nothing
    listed = (*SYSTEM, *readable, sys.base_prefix, sys.prefix, *sys.path)
    landlock.restrict(
        landlock.Access(
            read=tuple(path for path in listed if path and os.path.exists(path)),
            write=(folder, "/dev/null"),
            connect_ports=None,
            scope=landlock.abi() >= landlock.NEWEST_ABI - 1,
        ),
        least_abi=1,
    )
    for path in hidden:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            raise PrivilegeError(f"{path} of the API can still be read: it lies beneath what is readable")


def connection(backend: Any, name: str) -> str | None:
    """Airflow's JSON or URI: as the class has it, else made of the connection that it makes."""
    with contextlib.suppress(NotImplementedError):
        value = backend.get_conn_value(name)
        return None if value is None else str(value)
    if getattr(backend, "_connection_class", None) is None and hasattr(backend, "_set_connection_class"):
        backend._set_connection_class(importlib.import_module("airflow.sdk").Connection)
    found = backend.get_connection(name)
    if found is None:
        return None
    keys = ("conn_type", "description", "host", "login", "password", "schema", "port", "extra")
    fields = {key: getattr(found, key, None) for key in keys}
    return json.dumps({key: value for key, value in fields.items() if value is not None}, ensure_ascii=False)


def _receive(peer: socket.socket) -> Message | None:
    header = _exactly(peer, messages.HEADER_BYTES)
    if not header:
        return None
    return messages.decode(_exactly(peer, messages.body_length(header, limit=MAX_REQUEST_BYTES)))


def _exactly(peer: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = peer.recv(count - len(data))
        if not chunk:
            return b""
        data += chunk
    return data


if __name__ == "__main__":
    main()

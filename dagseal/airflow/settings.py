"""The section [dagseal] of airflow.cfg, or AIRFLOW__DAGSEAL__KEY in the environment.

    [dagseal]
    tasks_socket = /run/dagseal/tasks.sock          # workers: the agent that runs tasks
    releases_socket = /run/dagseal/releases.sock    # dag processor, workers: the agent that hands out releases
    launcher_socket = /run/dagseal/launcher.sock    # dag processor: the launcher that parses
    server = https://dagseal.example                # scheduler: the API
    token_file = /etc/dagseal/scheduler.token       # scheduler: a token with the scope launch:<dags>
    ca_file =                                       # scheduler: who signed the API's certificate; empty: the system's
    enforce = true                                  # false: what would be refused is told, and runs all the same
    unsafe_other_bundles = false                    # dag processor: true: it imports bundles of other classes, unverified

Each component reads what it needs, when it starts. `SettingsError` says which line is to be added.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from airflow.sdk.configuration import conf

from integrity.errors import SettingsError

SECTION = "dagseal"
MAX_TOKEN_BYTES = 8192
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    """What the executors need."""

    server: str
    token_file: str
    ca_file: str
    valid_seconds: int
    enforce: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """What the coordinator needs. `wait_seconds`: how long a task may wait for its ticket."""

    tasks_socket: str
    wait_seconds: float
    enforce: bool


def scheduler(source: Any = conf) -> Scheduler:
    """Raises `SettingsError`."""
    server = _required(source, "server", "https://dagseal.example").rstrip("/")
    parts = urlsplit(server)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise SettingsError(f"[dagseal] server is {server!r}: only https, or http to this host itself")
    return Scheduler(
        server=server,
        token_file=_path(source, "token_file", "/etc/dagseal/scheduler.token", default=""),
        ca_file=str(source.get(SECTION, "ca_file", fallback="") or ""),
        valid_seconds=max(1, min(86400, int(_queued_timeout(source)))),
        enforce=enforced(source),
    )


def worker(source: Any = conf) -> Worker:
    """Raises `SettingsError`."""
    return Worker(
        tasks_socket=_path(source, "tasks_socket", "/run/dagseal/tasks.sock"),
        wait_seconds=_queued_timeout(source),
        enforce=enforced(source),
    )


def releases_socket(source: Any = conf) -> str:
    """Raises `SettingsError`."""
    return _path(source, "releases_socket", "/run/dagseal/releases.sock")


def launcher_socket(source: Any = conf) -> str:
    """Raises `SettingsError`."""
    return _path(source, "launcher_socket", "/run/dagseal/launcher.sock")


def enforced(source: Any = conf) -> bool:
    """True unless it is plainly said otherwise. Raises `SettingsError` for what is neither."""
    word = str(source.get(SECTION, "enforce", fallback="true")).strip().lower()
    if word not in ("true", "false"):
        raise SettingsError(f"[dagseal] enforce is {word!r}: write true, or false to only report what would be refused")
    return word == "true"


def unsafe_other_bundles(source: Any = conf) -> bool:
    """Whether the dag processor imports files that nothing verified. A word that is neither is Airflow's error."""
    return bool(source.getboolean(SECTION, "unsafe_other_bundles", fallback=False))


def token(path: str) -> str:
    """Read anew at each use, so that a new one needs no restart. Raises `SettingsError`."""
    try:
        with open(path, encoding="ascii") as file:
            text = file.read(MAX_TOKEN_BYTES + 1).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"[dagseal] token_file {path} cannot be read: {error}") from None
    if not text or len(text) > MAX_TOKEN_BYTES or any(char.isspace() for char in text):
        raise SettingsError(f"[dagseal] token_file {path} holds no token: put one there, in a single line")
    return text


def _path(source: Any, key: str, example: str, *, default: str | None = None) -> str:
    path = _required(source, key, example) if default == "" else str(source.get(SECTION, key, fallback=example) or "")
    if not os.path.isabs(path):
        raise SettingsError(f"[dagseal] {key} is {path!r}: an absolute path, such as {example}")
    return path


def _required(source: Any, key: str, example: str) -> str:
    value = str(source.get(SECTION, key, fallback="") or "").strip()
    if not value:
        raise SettingsError(f"airflow.cfg lacks it: add below [dagseal] the line\n{key} = {example}")
    return value


def _queued_timeout(source: Any) -> float:
    return float(source.get("scheduler", "task_queued_timeout", fallback="600"))

"""The agent's settings: `DAGSEAL__AGENT__KEY` in the environment, then the `[agent]` table of one TOML file.

    [agent]
    server = "https://dagseal.example:8420"
    key_file = "/var/lib/dagseal/agent/request.key" # the agent's own key, made by `dagseal worker join`; or instead:
    token_file = "/etc/dagseal/agent.token"     # or DAGSEAL__AGENT__TOKEN_FILE, or agent.token in $CREDENTIALS_DIRECTORY
    worker = "host-1"
    queues = ["default"]
    api_key = "<base64 of the API's public key>"
    cache_dir = "/var/cache/dagseal"
    spool_dir = "/var/lib/dagseal/agent"
    launcher_socket = "/run/dagseal/launcher.sock"  # the default; or instead, started on demand (docs/sudoers.d/dagseal):
    launcher_command = ["sudo", "-n", "…", "--on-stdin", "--config", "/etc/dagseal/launcher.toml"]
    slots = 4
    max_blob_mib = 64
    max_cache_mib = 10240                        # 0: no quota
    max_fetch_mib_per_second = 0                 # 0: no limit
    scrub_mib_per_second = 4                     # 0: nothing is hashed but what is used
    heartbeat_seconds = 10.0
    log_sync_seconds = 1.0                       # how often the server is asked for its log's newest checkpoint
    report_seconds = 15.0                        # how often the server is told what is held here, at least
    releases_socket = "/run/dagseal/releases.sock"   # optional: hands verified releases to local processes
    tasks_socket = "/run/dagseal/tasks.sock"     # optional: runs the tasks of Airflow's supervisors on this host
    tasks_accounts = ["airflow"]                 # whose supervisors: unix accounts; of nobody, if it is left out
    max_tasks = 64                               # how many of these at once; the others wait
    readers_file = "/etc/dagseal/readers.toml"   # who these are: `worker_cache/readers.py`
    authors_file = "/etc/dagseal/authors.toml"   # optional: whose code alone runs here: `worker_cache/authors.py`
    trees_dir = "/var/lib/dagseal/trees"         # optional: releases as folders of files, for who asks for a path
    max_trees_mib = 1024
    max_log_age_seconds = 600                    # nothing is launched while the newest one is older
    stop_grace_seconds = 60.0
    unsafe_http = false                          # true sends the token in clear text to another host
    ca_file = "/etc/dagseal/ca.pem"              # optional

`[mirrors]` is a table of its own: `worker_cache/mirrors.py`. Unknown keys are refused, in the file and in the environment.
"""

from __future__ import annotations

import os
import pwd
import stat
import time
import tomllib
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from integrity import names
from integrity.errors import DagsealError, SettingsError
from integrity.fields import from_base64
from vocabulary.keys import KEY_BYTES, VerifyKey
from worker_cache import requestkey, transport
from worker_cache.launchers import AtSocket, Launcher, OnDemand
from worker_cache.limits import Limits
from worker_cache.mirrors import MirrorsSection
from worker_cache.signing import Signer

PREFIX = "DAGSEAL__AGENT__"
MAX_TOKEN_BYTES = 4096
MIB = 1024 * 1024
DEFAULT_SOCKET = "/run/dagseal/launcher.sock"


class AgentSettings(BaseSettings):
    """The `[agent]` table. Made by `load`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    server: str
    key_file: str | None = None
    token_file: str | None = None
    worker: str
    queues: list[str] = Field(default=["default"], min_length=1)
    api_key: str
    cache_dir: str = "/var/cache/dagseal"
    spool_dir: str = "/var/lib/dagseal/agent"
    launcher_socket: str | None = None
    launcher_command: list[str] | None = Field(default=None, min_length=1)
    slots: int = Field(default=4, ge=1, le=1000)
    max_blob_mib: int = Field(default=64, ge=1, le=4096)
    max_cache_mib: int = Field(default=10240, ge=0, le=2**30)
    max_fetch_mib_per_second: float = Field(default=0.0, ge=0, le=1e6)
    scrub_mib_per_second: float = Field(default=4.0, ge=0, le=1e6)
    heartbeat_seconds: float = Field(default=10.0, gt=0, le=30)
    log_sync_seconds: float = Field(default=1.0, gt=0, le=300)
    report_seconds: float = Field(default=15.0, gt=0, le=300)
    releases_socket: str | None = None
    tasks_socket: str | None = None
    tasks_accounts: list[str] = []
    max_tasks: int = Field(default=64, ge=1, le=10_000)
    readers_file: str | None = None
    authors_file: str | None = None
    trees_dir: str | None = None
    max_trees_mib: int = Field(default=1024, ge=1, le=2**20)
    max_log_age_seconds: int = Field(default=600, ge=1, le=86400)
    stop_grace_seconds: float = Field(default=60.0, ge=0, le=86400)
    unsafe_http: bool = False
    ca_file: str | None = None
    mirrors: MirrorsSection = MirrorsSection()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file, whose table arrives as the argument `table`."""
        given = init_settings() if callable(init_settings) else {}
        return env_settings, InitSettingsSource(settings_cls, init_kwargs=dict(given))

    @property
    def server_key(self) -> VerifyKey:
        return VerifyKey(from_base64(self.api_key, "api_key", max_bytes=KEY_BYTES))

    def signer(self) -> Signer | None:
        """Of the agent's own key; None where it has a token instead. Raises `SettingsError` for a key that cannot be used."""
        path = self.key_file
        return Signer(lambda: requestkey.load(path), self.server_key, time.time) if path is not None else None

    @property
    def cache_limits(self) -> Limits:
        return Limits(
            max_cache_bytes=self.max_cache_mib * MIB,
            max_fetch_bytes_per_second=int(self.max_fetch_mib_per_second * MIB),
            scrub_bytes_per_second=int(self.scrub_mib_per_second * MIB),
        )

    def launcher(self) -> Launcher:
        """The one of the two that is set; by default the usual socket."""
        if self.launcher_command is not None:
            return OnDemand(self.launcher_command)
        return AtSocket(self.launcher_socket or DEFAULT_SOCKET)

    def task_uids(self) -> frozenset[int]:
        """Who may ask at `tasks_socket`. Raises `SettingsError` for an account that is not there."""
        try:
            return frozenset(pwd.getpwnam(names.check("unix user", account)).pw_uid for account in self.tasks_accounts)
        except (KeyError, DagsealError) as error:
            raise SettingsError(f"tasks_accounts: no such account on this host: {error}") from None

    def token(self, environ: Mapping[str, str]) -> str:
        """Read the worker's token, where it has no key of its own. Raises `SettingsError`, never showing it."""
        folder = environ.get("CREDENTIALS_DIRECTORY")
        path = self.token_file or (os.path.join(folder, "agent.token") if folder else None)
        if path is None:
            raise SettingsError(
                "the agent has no key and no token: set key_file and join with an invitation, or set token_file, or load the "
                "credential agent.token"
            )
        return read_token(path)


def load(path: str, environ: Mapping[str, str]) -> AgentSettings:
    """Read and check everything that can be checked without a network. Raises `SettingsError`."""
    _refuse_unknown(environ)
    try:
        settings = AgentSettings(**_table(path))
    except ValidationError as error:
        lines = [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors(include_input=False)]
        raise SettingsError(f"{path}, [agent]: {'; '.join(lines)}") from None
    try:
        names.check("worker", settings.worker)
        for queue in settings.queues:
            names.check("queue", queue)
        transport.check_url(settings.server, unsafe_http=settings.unsafe_http)
        _ = settings.server_key
        if settings.key_file is not None and settings.token_file is not None:
            raise SettingsError("key_file and token_file are both set: give the one that is meant")
        settings.mirrors.check()
        if 0 < settings.max_cache_mib < settings.max_blob_mib:
            raise SettingsError("max_cache_mib is less than max_blob_mib: the largest archive would not fit")
        if settings.launcher_command is not None:
            _check_command(settings)
    except DagsealError as error:
        raise SettingsError(f"{path}, [agent]: {error}") from None
    return settings


def _check_command(settings: AgentSettings) -> None:
    if settings.launcher_socket is not None:
        raise SettingsError("launcher_socket and launcher_command are both set: give the one that is meant")
    if not all(settings.launcher_command or []):
        raise SettingsError("launcher_command has an empty word")


def read_token(path: str) -> str:
    """The token in this file: one line, that nobody else may write and not everybody may read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SettingsError(f"the token file {path} cannot be read: {error.strerror}") from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o026:
            raise SettingsError(f"the token file {path} is open to others: chmod 600 {path}")
        text = os.read(fd, MAX_TOKEN_BYTES)
    finally:
        os.close(fd)
    token = text.strip().decode("ascii", "replace")
    if not token or not token.isprintable() or " " in token or "\ufffd" in token:
        raise SettingsError(f"the token file {path} does not hold one token on one line")
    return token


def _table(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"the configuration {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from None
    table, mirrors = document.pop("agent", None), document.pop("mirrors", None)
    if document:
        raise SettingsError(
            f"{path} has unknown tables or keys: {', '.join(sorted(document))}; the agent reads [agent] and [mirrors]"
        )
    if not isinstance(table, dict):
        raise SettingsError(f"{path} has no [agent] table")
    if "mirrors" in table:
        raise SettingsError(f"{path}: [mirrors] is a table of its own")
    return table if mirrors is None else {**table, "mirrors": mirrors}


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    unknown = [
        name
        for name in environ
        if name.startswith(PREFIX) and name[len(PREFIX) :].lower() not in AgentSettings.model_fields
    ]
    if unknown:
        raise SettingsError(f"unknown settings in the environment: {', '.join(sorted(unknown))}")

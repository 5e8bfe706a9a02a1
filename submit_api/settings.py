"""Settings of the API: `DAGSEAL__SECTION__KEY` in the environment, then one TOML file, then the defaults below.

Promise: unknown keys and wrong types are refused with the key's name; every limit carries its unit in its name.
"""

from __future__ import annotations

import json
import os
import tomllib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from integrity.errors import SettingsError
from submit_api.blobs.section import BlobsSection
from submit_api.models.fields import Kind, Profile, Queue
from submit_api.oidc.section import OidcSection
from vocabulary.claims import PROFILES

_MIB = 1024 * 1024


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ApiSection(_Section):
    """Where it listens, where its state is, and where the launcher that describes archives listens. `trusted_proxies` are
    the addresses and networks whose `X-Forwarded-For` is believed. A `standby` waits while another process works on the same
    state, and takes its place."""

    host: str = "127.0.0.1"
    port: int = Field(default=8420, ge=0, le=65535)
    state_folder: str = "/var/lib/dagseal"
    launcher_socket: str = "/run/dagseal/launcher.sock"
    trusted_proxies: list[IPvAnyNetwork] = []
    standby: bool = False


class DatabaseSection(_Section):
    """An empty `url` means SQLite in the state folder; `postgresql://user@host/database` takes all that libpq takes.
    `password_file`: one line, mode 0600, for PostgreSQL, so that no password has to be in the URL."""

    url: str = Field(default="", repr=False)
    password_file: str = ""
    busy_timeout_seconds: float = Field(default=10, gt=0)
    statement_timeout_seconds: float = Field(default=60, gt=0)
    max_read_connections: int = Field(default=10, ge=1, le=1000)


class KeysSection(_Section):
    """Files of 64 hexadecimal characters, mode 0600. Empty means `keys/` in the state folder."""

    signing_key_file: str = ""
    row_key_file: str = ""


class LimitsSection(_Section):
    """What one caller can ask of this process."""

    max_archive_bytes: int = Field(default=64 * _MIB, ge=1)
    max_uploads_per_principal: int = Field(default=64, ge=1)
    max_inspections: int = Field(default=2, ge=1)
    max_descriptions: int = Field(default=16, ge=1, le=100)
    max_recorded_together: int = Field(default=64, ge=1, le=1000)
    max_json_bytes: int = Field(default=2 * _MIB, ge=1024)
    max_log_chunk_bytes: int = Field(default=4 * _MIB, ge=1024)
    max_log_bytes: int = Field(default=64 * _MIB, ge=1024)
    inline_bytes: int = Field(default=64 * 1024, ge=0)
    cached_blob_bytes: int = Field(default=256 * 1024, ge=0)
    blob_cache_bytes: int = Field(default=32 * _MIB, ge=0)
    head_seconds: float = Field(default=10, gt=0)
    idle_seconds: float = Field(default=75, gt=0)
    body_window_seconds: float = Field(default=10, gt=0)
    body_min_bytes_per_second: int = Field(default=1024, ge=0)
    lingering_seconds: float = Field(default=5, ge=0)
    max_wait_seconds: float = Field(default=60, gt=0)
    describe_seconds: float = Field(default=180, gt=0)
    shutdown_seconds: float = Field(default=10, ge=0)


class FailuresSection(_Section):
    """Failed authentications of one client address, and of one token id: so many at once, and one more every so often."""

    burst: int = Field(default=20, ge=1)
    seconds_each: float = Field(default=3, gt=0)
    max_clients: int = Field(default=10_000, ge=1)


class LaunchesSection(_Section):
    """`default_impersonation` is the unix user of a task that names none; empty means that such a launch is refused.
    `isolation_floors`: queue -> the profile below which no claim of it is granted."""

    default_impersonation: str = ""
    default_queue: str = "default"
    default_timeout_seconds: int = Field(default=3600, ge=1)
    supervised_timeout_seconds: int = Field(default=30 * 86400, ge=1)  # Airflow has limits of its own
    ticket_seconds: int = Field(default=60, ge=1, le=3600)
    lost_after_seconds: int = Field(default=60, ge=1)
    silent_after_seconds: int = Field(default=60, ge=1)
    watch_interval_seconds: float = Field(default=1, gt=0)
    isolation_floors: dict[Queue, Profile] = {}

    def floor_of(self, queue: str) -> Profile | None:
        """The highest that any spelling of the queue's name was given: a name loses its case in the environment."""
        found = [floor for name, floor in self.isolation_floors.items() if name.lower() == queue.lower()]
        return max(found, key=PROFILES.index, default=None)


class AuditSection(_Section):
    """Requests without a valid token: so many are recorded one by one in a minute, a quarter of it for one address; the
    others are counted. Events older than `keep_days` are removed once they were exported; 0 keeps all for ever."""

    unauthenticated_per_minute: int = Field(default=120, ge=1)
    keep_days: int = Field(default=0, ge=0, le=36500)
    unsafe_remove_unexported: bool = False


class RetentionSection(_Section):
    """Releases that keep their bytes: the newest `keep_releases` of each archive (0: all), and of the others what was launched,
    active or pushed within `keep_days`."""

    keep_releases: int = Field(default=0, ge=0)
    keep_days: int = Field(default=30, ge=1)
    interval_seconds: float = Field(default=3600, gt=0)


class BackendSection(_Section):
    """One of Airflow's secrets backend classes. `prefixes`: it alone has the names that begin so; without any it is asked for
    what the built-in store does not have. `kwargs_file` is JSON, readable by its owner only, for kwargs that are secrets.
    `environment` are the variables that its process gets, by name or glob, `readable` the files and folders that it reads."""

    class_path: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")
    kwargs: dict[str, Any] = Field(default={}, repr=False)
    kwargs_file: str = ""
    prefixes: list[str] = []
    kinds: list[Kind] = ["connection", "variable"]
    environment: list[str] = []
    readable: list[str] = []
    start_seconds: float = Field(default=30, gt=0)
    timeout_seconds: float = Field(default=10, gt=0)
    cache_seconds: float = Field(default=30, ge=0, le=3600)
    memory_bytes: int = Field(default=2048 * _MIB, ge=64 * _MIB)

    def all_kwargs(self) -> str:
        """As JSON. Raises `SettingsError`, never showing a value."""
        if not self.kwargs_file:
            return json.dumps(self.kwargs)
        try:
            with open(self.kwargs_file, encoding="utf-8") as file:
                if os.fstat(file.fileno()).st_mode & 0o077:
                    raise SettingsError(f"{self.kwargs_file} is readable by others: chmod 600 it")
                given = json.load(file)
        except (OSError, ValueError) as error:
            raise SettingsError(f"{self.kwargs_file} cannot be read as JSON: {type(error).__name__}") from None
        if not isinstance(given, dict):
            raise SettingsError(f"{self.kwargs_file} is to hold one JSON object")
        return json.dumps({**self.kwargs, **given})


class Settings(BaseSettings):
    """The whole configuration of one API process."""

    model_config = SettingsConfigDict(
        env_prefix="DAGSEAL__", env_nested_delimiter="__", extra="forbid", frozen=True, case_sensitive=False
    )

    api: ApiSection = ApiSection()
    database: DatabaseSection = DatabaseSection()
    blobs: BlobsSection = BlobsSection()
    keys: KeysSection = KeysSection()
    limits: LimitsSection = LimitsSection()
    launches: LaunchesSection = LaunchesSection()
    audit: AuditSection = AuditSection()
    retention: RetentionSection = RetentionSection()
    oidc: OidcSection = OidcSection()
    failures: FailuresSection = FailuresSection()
    backends: dict[str, BackendSection] = {}

    @property
    def database_url(self) -> str:
        return self.database.url or f"sqlite+aiosqlite:///{os.path.join(self.api.state_folder, 'dagseal.db')}"

    @property
    def database_section(self) -> DatabaseSection:
        """With the URL that is used."""
        return self.database.model_copy(update={"url": self.database_url})

    @property
    def blobs_folder(self) -> str:
        """Of uploads on their way in; and of the blobs, unless they are in a bucket."""
        return os.path.join(self.api.state_folder, "blobs")

    @property
    def logs_folder(self) -> str:
        return os.path.join(self.api.state_folder, "logs")

    @property
    def signing_key_file(self) -> str:
        return self.keys.signing_key_file or os.path.join(self.api.state_folder, "keys", "signing.key")

    @property
    def verify_key_file(self) -> str:
        """The public half, for the configuration of launchers and agents."""
        return os.path.splitext(self.signing_key_file)[0] + ".pub"

    @property
    def row_key_file(self) -> str:
        return self.keys.row_key_file or os.path.join(self.api.state_folder, "keys", "rows.key")


def load(config: str | None = None, **sections: dict[str, Any]) -> Settings:
    """Read the environment and the TOML file `config`; `sections` are flags and win. Raises `SettingsError`."""
    if config is not None and not os.path.isfile(config):
        raise SettingsError(f"there is no configuration file {config}")

    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: PydanticBaseSettingsSource, **sources: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            file = TomlConfigSettingsSource(settings_cls, toml_file=config)
            return sources["init_settings"], sources["env_settings"], file

    try:
        return FromFile(**sections)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors(include_input=False)]
        raise SettingsError(f"the configuration is not usable: {'; '.join(lines)}") from None
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{config}: {error}") from None

"""A bundle of Airflow's whose files are the verified active releases, as the agent of this host gives them.

    [dag_processor]
    dag_bundle_config_list = [{"name": "dagseal", "classpath": "dagseal.airflow.SealedBundle",
                               "kwargs": {"archives": ["*"]}}]

Promise: a version is the digest of a set of releases, and stands for the same bytes for ever. The path is a folder that nobody
can write, asked for anew at each initialize and refresh, when the agent looks through it byte by byte and makes it again where
it was changed. Nothing is locked, written or fetched here, so that every unix user can use it; which archives he sees is the
agent's to decide (`readers_file`). Where Airflow would import its code unsealed, in its own dag processor or in a task that no
coordinator of ours started, there is no folder: unless `enforce = false`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from airflow.dag_processing.bundles.base import BaseDagBundle, BundleVersion

from dagseal.airflow import asking, settings
from integrity.errors import SettingsError

_sealed_processor = False


def enter_sealed_processor() -> None:
    """This process parses through the launcher: its bundles may be read."""
    global _sealed_processor
    _sealed_processor = True


class SealedBundle(BaseDagBundle):  # type: ignore[misc]
    """`archives` are globs over the archives' names."""

    supports_versioning = True

    def __init__(self, *, archives: list[str] | None = None, releases_socket: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.archives = ["*"] if archives is None else list(archives)
        if not self.archives or not all(isinstance(glob, str) and glob for glob in self.archives):
            raise SettingsError(f'bundle {self.name}: archives is a list of globs, such as ["*"], and not empty')
        self._pinned: str | None = kwargs.get("version")
        self._releases_socket = releases_socket
        self._folder = ""

    @property
    def releases_socket(self) -> str:
        return self._releases_socket or settings.releases_socket()

    def initialize(self) -> None:
        """Raises `SettingsError`, `NotFoundError`, `FetchError`."""
        self._ask()
        super().initialize()

    def refresh(self) -> None:
        """Raises `SettingsError`, `NotFoundError`, `FetchError`."""
        if self._pinned:
            raise SettingsError(f"bundle {self.name}: version {self._pinned[:12]}… does not change: refresh the bundle")
        self._ask()

    def get_current_version(self) -> BundleVersion:
        if not self._folder:
            self._ask()
        return BundleVersion(version=str(self.version))

    @property
    def path(self) -> Path:
        if not self._folder:
            self._ask()
        return Path(self._folder)

    def _ask(self) -> None:
        _require_sealed(self.name)
        if self._pinned and not asking.is_version(self._pinned):
            raise SettingsError(
                f"bundle {self.name}: {self._pinned[:80]!r} is no digest of a set: this run was made with another kind of"
                " bundle; clear it, or start a new run"
            )
        digest, folder = asking.ask_set(self.releases_socket, self.archives, self._pinned or None)
        if not os.path.isabs(folder):
            raise SettingsError(f"bundle {self.name}: this agent makes no folders: set trees_dir in its settings")
        self.version, self._folder = digest, folder


def _require_sealed(name: str) -> None:
    """Raises `SettingsError` in the processes of Airflow's that would import the folder's code as their own user."""
    if _sealed_processor:
        return
    runner = sys.modules.get("airflow.sdk.execution_time.task_runner")
    if os.environ.get("_AIRFLOW_PROCESS_CONTEXT") == "server":
        fault = "'airflow dag-processor' would import it as its own user: stop that, start 'dagseal dag-processor'"
    elif hasattr(runner, "SUPERVISOR_COMMS"):
        fault = "no coordinator of dagseal started this task or callback: map its queue in [sdk] queue_to_coordinator"
    else:
        return
    if settings.enforced():
        raise SettingsError(f"bundle {name} is not given out here: {fault}")

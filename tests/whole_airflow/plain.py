"""Plain Airflow as a rig: a folder of DAGs, and a git repository for what is to have versions, as its documentation has it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.whole_airflow import examples
from tests.whole_airflow.accounts import SERVICE
from tests.whole_airflow.cleaning import AT_ONCE
from tests.whole_airflow.database import LoopbackServer
from tests.whole_airflow.installation import TEMPLATE, Airflow, parts
from tests.whole_airflow.public import PublicApi

_GIT = "airflow.providers.git.bundles.git.GitDagBundle"
_LOCAL = "airflow.dag_processing.bundles.local.LocalDagBundle"


@dataclass(slots=True)
class Plain:
    airflow: Airflow
    api: PublicApi
    shared: Path

    @property
    def dags(self) -> Path:
        return self.airflow.folder / "dags"

    @property
    def repository(self) -> Path:
        return self.airflow.folder / "repository"

    def put(self, name: str, source: str, *, versioned: bool = False) -> None:
        path = (self.repository if versioned else self.dags) / f"{name}.py"
        if path.exists() and path.read_text() == source:
            return
        known = self._parsed(name)
        path.write_text(source)
        if versioned:
            commit(self.repository)
        elif known:
            self.api.put(f"parseDagFile/{self.api.get(f'dags/{name}/details')['file_token']}")
        self.api.until(lambda: self._parsed(name) != known, f"{name} to be read")

    def tamper(self, name: str, more: str) -> None:
        """An empty `more` takes back what was appended."""
        kept = (self.repository / f"{name}.py").read_text()
        copies = list((self.airflow.folder / "bundles" / "git" / "versions").glob(f"*/{name}.py"))
        assert copies
        for path in copies:
            path.write_text(kept + more)

    def clean_up(self) -> None:
        self.airflow.command("tests.whole_airflow.cleaning", **AT_ONCE)

    def connection(self, conn_id: str, password: str) -> None:
        self.api.post("connections", {"connection_id": conn_id, "conn_type": "generic", "password": password})

    @contextmanager
    def open_locks(self) -> Iterator[None]:
        """What operators do about the PermissionError of `run_as_user` with a git bundle; taken back afterwards."""
        modes = {path: path.stat().st_mode for path in (self.airflow.folder / "bundles" / "_locks").iterdir()}
        for path in modes:
            path.chmod(0o666)
        try:
            yield
        finally:
            for path, mode in modes.items():
                if path.exists():
                    path.chmod(mode)

    def _parsed(self, name: str) -> str:
        """When Airflow last read it; "" for never."""
        found = [dag for dag in self.api.rows("dags", "dags") if dag["relative_fileloc"] == f"{name}.py"]
        return max((str(dag["last_parsed_time"]) for dag in found), default="")


@contextmanager
def running(server: LoopbackServer, folder: Path) -> Iterator[Plain]:
    """Started, with the example DAGs in its folder, but switched off."""
    folder.mkdir(mode=0o755)
    shared = folder / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    bundles = [
        {"name": "dags", "classpath": _LOCAL, "kwargs": {"path": str(folder / "dags")}},
        {"name": "git", "classpath": _GIT, "kwargs": {"repo_url": str(folder / "repository"), "tracking_ref": "main"}},
    ]
    config = {"dag_processor": {"dag_bundle_config_list": json.dumps(bundles)}}
    airflow = Airflow(folder=folder, database=server.make(TEMPLATE), config=config, parts=parts())
    airflow.prepare()
    examples.copy(airflow.make("dags"))
    _repository(airflow.make("repository"))
    try:
        airflow.start()
        with airflow.public() as api:
            yield Plain(airflow=airflow, api=api, shared=shared)
    finally:
        airflow.stop()


def commit(repository: Path) -> None:
    _git(repository, "add", "--all")
    _git(repository, "commit", "--quiet", "--allow-empty", "--message", "more")


def _repository(folder: Path) -> None:
    _git(folder, "init", "--quiet", "--initial-branch", "main")
    commit(folder)


def _git(folder: Path, *arguments: str) -> None:
    """As the account that fetches it: git trusts no repository of somebody else."""
    words = ["git", "-C", str(folder), "-c", "user.name=e2e", "-c", "user.email=e2e@localhost"]
    subprocess.run([*words, "-c", f"safe.directory={folder}", *arguments], check=True, capture_output=True)
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, SERVICE, SERVICE)

"""A real Airflow on loopback: API server, scheduler, DAG processor and triggerer, each a process of the account `SERVICE`.

`Airflow` takes the sections of airflow.cfg that differ between the suites; the rest is the same for plain Airflow and for ours,
so that what they end in, and how fast, can be compared. Everything is read from the environment, as in Airflow's own images,
secrets too. `stop` ends what was started, by pid, and what that left behind.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

from cryptography.fernet import Fernet

from dagseal.footing import free_port, service_environment
from tests.whole_airflow import accounts
from tests.whole_airflow.accounts import SERVICE
from tests.whole_airflow.database import LoopbackServer
from tests.whole_airflow.public import PublicApi

TEMPLATE = "airflow_tables"
PARTS = {"scheduler": "scheduler", "dag-processor": "dag_processor", "triggerer": "triggerer"}
_START_SECONDS = 180.0
_STOP_SECONDS = 5.0

Config = Mapping[str, Mapping[str, str]]

_CONFIG: Config = {
    "core": {
        "executor": "LocalExecutor",
        "load_examples": "False",
        "parallelism": "8",
        "simple_auth_manager_all_admins": "True",
    },
    "api": {"workers": "1", "host": "127.0.0.1"},
    "dag_processor": {
        "refresh_interval": "5",
        "bundle_refresh_check_interval": "1",
        "min_file_process_interval": "3600",
    },
    "scheduler": {"scheduler_idle_sleep_time": "0.1", "enable_health_check": "False"},
    "triggerer": {"job_heartbeat_sec": "1"},
    "logging": {"logging_level": "INFO"},
    "usage_data_collection": {"enabled": "False"},
}


@dataclass(slots=True)
class Airflow:
    """`prepare` once, then `start`. `parts` are the subcommands that run beside the API server, with the command of each."""

    folder: Path
    database: str
    config: Config
    parts: Mapping[str, list[str]]
    address: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    more: dict[str, dict[str, str]] = field(default_factory=dict)
    fernet_key: str = field(default_factory=lambda: Fernet.generate_key().decode())
    jwt_secret: str = field(default_factory=lambda: token_hex(32))
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    begun: dict[str, tuple[list[str], list[str] | None]] = field(default_factory=dict)
    seconds_to_start: float = 0.0

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def environment(self) -> dict[str, str]:
        merged: dict[str, dict[str, str]] = {section: dict(values) for section, values in _CONFIG.items()}
        for section, values in self.config.items():
            merged.setdefault(section, {}).update(values)
        merged["core"] |= {
            "fernet_key": self.fernet_key,
            "execution_api_server_url": f"{self.url}/execution/",
        }
        merged["api"] |= {"port": str(self.port), "base_url": self.url, "secret_key": self.jwt_secret}
        merged["api_auth"] = {"jwt_secret": self.jwt_secret}
        merged["database"] = {"sql_alchemy_conn": self.database.replace("postgresql://", "postgresql+psycopg2://")}
        merged["logging"]["base_log_folder"] = str(self.folder / "logs")
        merged["dag_processor"]["dag_bundle_storage_path"] = str(self.folder / "bundles")
        named = {
            f"AIRFLOW__{section.upper()}__{option.upper()}": value
            for section, options in merged.items()
            for option, value in options.items()
        }
        return service_environment() | {"HOME": str(self.home), "AIRFLOW_HOME": str(self.home)} | named

    def prepare(self) -> None:
        for name in ("home", "logs", "bundles"):
            self.make(name)
        # Present and empty: who is not its owner could not write a default one.
        (self.home / "airflow.cfg").write_text("[core]\n")

    def make(self, name: str) -> Path:
        """A folder of Airflow's account below ours."""
        path = self.folder / name
        path.mkdir(mode=0o755)
        shutil.chown(path, SERVICE, SERVICE)
        return path

    def migrate(self) -> None:
        self.command("airflow", "db", "migrate")

    def command(self, module: str, *arguments: str, **more: str) -> str:
        """Run one to its end, as Airflow's account; what it wrote."""
        answer = subprocess.run(
            [sys.executable, "-s", "-P", "-m", module, *arguments],
            env=self.environment() | more,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            timeout=_START_SECONDS,
            **self._who(),
        )
        assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-4000:]
        return answer.stdout

    def start(self) -> None:
        """All parts at once; returns when each has reported a heart beat."""
        begin = time.monotonic()
        self.start_part("api-server", ["airflow", "api-server"])
        for name, command in self.parts.items():
            self.start_part(name, command)
        with self.public() as api:
            self.until(lambda: api.healthy(*(PARTS[name] for name in self.parts if name in PARTS)), "all parts")
        self.seconds_to_start = time.monotonic() - begin

    def start_part(self, name: str, command: list[str], *, before: list[str] | None = None) -> None:
        """`before` are words that become Airflow's account themselves; `more` has environment of this part alone."""
        self.begun[name] = command, before
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*(before or ()), sys.executable, "-s", "-P", "-m", *command],
                env=self.environment() | self.more.get(name, {}),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **({} if before else self._who()),
            )

    def revive(self) -> None:
        """Start again what ended, as the units of `deploy/systemd` do: Airflow's scheduler ends when its database does."""
        for name, process in list(self.processes.items()):
            if process.poll() is not None:
                self.start_again(name)

    def start_again(self, name: str) -> None:
        command, before = self.begun[name]
        self.start_part(name, command, before=before)

    def stop_part(self, name: str) -> None:
        process = self.processes.pop(name)
        process.terminate()
        process.wait(_START_SECONDS)

    def kill_session(self, name: str) -> None:
        """As a crash: the process and all that it started as Airflow's account, at once."""
        process = self.processes.pop(name)
        for pid in accounts.processes(SERVICE):
            with suppress(ProcessLookupError):
                if os.getsid(pid) == process.pid:
                    os.kill(pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        for process in self.processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()
        accounts.end_all(SERVICE)

    def log_of(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    @contextmanager
    def public(self) -> Iterator[PublicApi]:
        api = PublicApi(self.url)
        try:
            yield api
        finally:
            api.close()

    def until(self, true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not true():
            for name, process in self.processes.items():
                assert process.poll() is None, f"{name} ended: {self.log_of(name)[-4000:]}"
            assert time.monotonic() < deadline, f"{what}: not after {_START_SECONDS:.0f} s"
            time.sleep(0.1)

    def _who(self) -> dict[str, Any]:
        entry = pwd.getpwnam(SERVICE)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@contextmanager
def new_folder() -> Iterator[Path]:
    """Readable by every account; gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="dagseal-af-", dir="/tmp")).resolve()
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def migrated(server: LoopbackServer, folder: Path) -> None:
    """Airflow's tables, once for all stacks: the database that theirs are copied from."""
    server.sql(f"CREATE DATABASE {TEMPLATE} TEMPLATE template0 LOCALE 'C' ENCODING 'UTF8'")
    first = Airflow(folder=folder / "migrating", database=server.url(TEMPLATE), config={}, parts={})
    first.folder.mkdir(mode=0o755)
    first.prepare()
    first.migrate()


def parts(
    *, triggerer: bool = True, dag_processor: tuple[str, ...] = ("airflow", "dag-processor")
) -> dict[str, list[str]]:
    """The usual ones, with the command of each after `python -m`."""
    found = {"scheduler": ["airflow", "scheduler", "--skip-serve-logs"], "dag-processor": list(dag_processor)}
    return found | ({"triggerer": ["airflow", "triggerer", "--skip-serve-logs"]} if triggerer else {})

"""Airflow with CeleryExecutor and three worker hosts, through dagseal.

Each host has a launcher, an agent and a Celery worker in a network namespace; API, scheduler, DAG processor and the launcher
that describes are on the hub, as are broker and database.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dagseal.stack import Stack
from tests import live
from tests.live import Live
from tests.whole_airflow.accounts import OTHER, OWNER, SERVICE
from tests.whole_airflow.database import LoopbackServer
from tests.whole_airflow.installation import TEMPLATE, Airflow, parts
from tests.whole_airflow.network import HOSTS, HUB, inside
from tests.whole_airflow.public import PublicApi
from tests.whole_airflow.sealed import SealedStack, config, put, scheduler_token


class Broker(Protocol):
    @property
    def url(self) -> str: ...
    def start(self) -> None: ...
    def kill(self) -> None: ...
    def stop(self) -> None: ...


@dataclass(slots=True)
class HubStack(SealedStack):
    """Listens where the hosts reach it."""

    def _api_toml(self) -> str:
        return SealedStack._api_toml(self).replace('host = "127.0.0.1"', 'host = "0.0.0.0"')


@dataclass(slots=True, kw_only=True)
class HostStack(SealedStack):
    """Launcher and agent of one host, which ask the hub's API."""

    hub: Stack

    @property
    def url(self) -> str:
        return f"http://{HUB}:{self.hub.port}"

    def environment(self, **more: str) -> dict[str, str]:
        return self.hub.environment(**more)

    def prepare(self) -> None:
        self._make_folder("", 0o755, None)
        self._make_folder("run", 0o755, None)
        self._make_folder("launcher", 0o700, self.accounts.notary)
        self._make_folder("agent", 0o700, self.accounts.agent)
        self._make_folder("handed-out", 0o755, self.accounts.agent)
        self._write("launcher.toml", self._launcher_toml(), mode=0o644)

    def start(self) -> None:
        self.start_launcher()
        if not (self.folder / "agent" / "request.key").exists():
            self.join_worker()
        self.start_agent()

    def _agent_toml(self) -> str:
        return SealedStack._agent_toml(self) + "unsafe_http = true\n"

    def _api_key(self) -> str:
        return self.hub._api_key()

    def _who(self, account: str | None) -> Mapping[str, object]:
        """The namespace is entered as root."""
        return {}

    def _as(self, account: str, command: list[str]) -> str:
        return Stack._as(self, account, becoming(self.worker, account) + command)

    def _spawn(self, name: str, command: list[str], account: str | None) -> None:
        words = becoming(self.worker, account) if account else inside(self.worker)
        Stack._spawn(self, name, words + command, account)


@dataclass(slots=True)
class Fleet:
    """`workers` are the hosts' Celery workers, each an installation of which only that part runs."""

    airflow: Airflow
    api: PublicApi
    shared: Path
    live: Live
    broker: Broker
    server: LoopbackServer
    hosts: dict[str, HostStack] = field(default_factory=dict)

    def start_worker(self, host: str) -> None:
        self.airflow.start_part(host, celery_worker(host), before=becoming(host, SERVICE))

    def put(self, name: str, source: str) -> None:
        put(self.live, self.api, name, source)


def becoming(host: str, account: str) -> list[str]:
    """The words before a command of that host, and of this account there."""
    return [*inside(host), "setpriv", f"--reuid={account}", f"--regid={account}", "--clear-groups"]


def celery_worker(host: str) -> list[str]:
    return [
        "airflow",
        "celery",
        "worker",
        "--queues",
        "default",
        "--celery-hostname",
        f"{host}@{host}",
        "--skip-serve-logs",
    ]


@contextmanager
def running(server: LoopbackServer, folder: Path, broker: Broker) -> Iterator[Fleet]:
    """All started, and each host's Celery worker ready."""
    folder.mkdir(mode=0o755)
    shared = folder / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    database = server.make(TEMPLATE)
    settings = {
        "task_user": OWNER,
        "more_users": (OTHER,),
        "supervisors": (SERVICE,),
        "writable": (shared,),
        "more_api_toml": f'[database]\nurl = "{server.make_empty()}"\n',
    }
    with ExitStack() as ends:
        dagseal = ends.enter_context(live.running(kind=HubStack, **settings))
        hub = dagseal.stack
        assert isinstance(hub, SealedStack)
        hosts = {}
        for name in HOSTS:
            stack = HostStack(
                folder=folder / name, port=hub.port, task_user=OWNER, more_users=(OTHER,),
                supervisors=(SERVICE,), writable=(shared,), hub=hub,
                worker=name, accounts=hub.accounts,
            )  # fmt: skip
            ends.callback(stack.stop)
            stack.prepare()
            stack.start()
            hosts[name] = stack
        ours = config(hub, scheduler_token(dagseal, folder / "scheduler.token"), "SealedCeleryExecutor")
        ours["api"] = {"host": "0.0.0.0"}
        ours["scheduler"] = {
            "task_queued_timeout": "60",
            "task_instance_heartbeat_timeout": "30",
            "task_instance_heartbeat_timeout_detection_interval": "5",
            "scheduler_health_check_threshold": "10",
            "orphaned_tasks_check_interval": "10",
        }
        ours["celery"] = {
            "broker_url": broker.url,
            "result_backend": "db+" + database.replace("127.0.0.1", HUB).replace("postgresql:", "postgresql+psycopg2:"),
            "worker_concurrency": "4",
            "celery_config_options": "dagseal.airflow.celery_worker.CONFIG",
        }
        airflow = Airflow(
            folder=folder / "airflow",
            database=database.replace("127.0.0.1", HUB),
            config=ours,
            parts=parts(triggerer=False, dag_processor=("dagseal.cli.app", "dag-processor")),
            address=HUB,
        )
        airflow.folder.mkdir()
        airflow.prepare()
        ends.callback(airflow.stop)
        airflow.start()
        api = ends.enter_context(airflow.public())
        fleet = Fleet(airflow=airflow, api=api, shared=shared, live=dagseal, broker=broker, server=server, hosts=hosts)
        for name, stack in hosts.items():
            airflow.more[name] = {
                "AIRFLOW__DAGSEAL__TASKS_SOCKET": str(stack.tasks_socket),
                "AIRFLOW__DAGSEAL__RELEASES_SOCKET": str(stack.releases_socket),
                "AIRFLOW__DAGSEAL__LAUNCHER_SOCKET": str(stack.launcher_socket),
                "AIRFLOW__DAGSEAL__TOKEN_FILE": "",
            }
            fleet.start_worker(name)
        for name in HOSTS:
            airflow.until(lambda name=name: " ready." in airflow.log_of(name), f"the Celery worker of {name}")
        yield fleet

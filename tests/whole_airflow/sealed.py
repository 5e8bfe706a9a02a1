"""Airflow through dagseal as a rig: the same Airflow, with dagseal's executor, coordinator, bundle and dag processor.

API, agent and launcher run beside it, each as an account of its own. Airflow's account may ask agent and launcher, and is one
of the host's like others.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dagseal.stack import Stack
from tests import live
from tests.live import Live
from tests.whole_airflow import examples
from tests.whole_airflow.accounts import OTHER, OWNER, SERVICE
from tests.whole_airflow.cleaning import AT_ONCE
from tests.whole_airflow.database import LoopbackServer
from tests.whole_airflow.installation import TEMPLATE, Airflow, parts
from tests.whole_airflow.public import PublicApi

_BUNDLE = {"name": "dagseal", "classpath": "dagseal.airflow.SealedBundle", "kwargs": {"archives": ["*"]}}
_COORDINATORS = {"dagseal": {"classpath": "dagseal.airflow.SealedCoordinator"}}
_DAY = 86400


@dataclass(slots=True)
class SealedStack(Stack):
    """Airflow's account may ask for tasks, releases and serialised DAGs."""

    def _launcher_toml(self) -> str:
        mine = f'describe = ["{self.accounts.api}"]'
        text = Stack._launcher_toml(self)
        assert mine in text
        return text.replace(mine, f'describe = ["{self.accounts.api}", "{SERVICE}"]')

    def _agent_toml(self) -> str:
        readers = "".join(f'[{account}]\nprincipal = "admin"\n' for account in (SERVICE, OWNER))
        self._write("readers.toml", readers)
        return f'{Stack._agent_toml(self)}readers_file = "{self.folder}/readers.toml"\n'


@dataclass(slots=True)
class Sealed:
    airflow: Airflow
    api: PublicApi
    shared: Path
    live: Live

    def put(self, name: str, source: str, *, versioned: bool = False) -> None:
        """All have versions here."""
        put(self.live, self.api, name, source)

    def tamper(self, name: str, more: str) -> None:
        """All copies below the agent's folders, whoever they belong to: those that Airflow reads, and its cache."""
        for folder in (self.live.stack.folder / "handed-out", self.live.stack.cache):
            for path in folder.rglob("*"):
                if path.is_file() and f'DAG("{name}"'.encode() in path.read_bytes():
                    path.write_bytes(path.read_bytes() + more.encode())

    def clean_up(self) -> None:
        """Airflow's own cleaning up, and all folders that the agent made for readers."""
        self.airflow.command("tests.whole_airflow.cleaning", **AT_ONCE)
        shutil.rmtree(self.live.stack.folder / "handed-out" / "trees")

    def connection(self, conn_id: str, password: str) -> None:
        """In Airflow and in dagseal, where nobody was granted it."""
        self.api.post("connections", {"connection_id": conn_id, "conn_type": "generic", "password": password})
        made = self.live.http("PUT", f"/v1/connections/{conn_id}", {"value": f"generic://:{password}@"})
        assert made.status in (200, 201), made.body


def push(live: Live, name: str, source: str) -> str:
    """As its author; the digest of the active release."""
    answer = live.push(name, source)
    assert answer.status in (200, 201), answer.body
    return hashlib.sha512(source.encode()).hexdigest()


def put(live: Live, api: PublicApi, name: str, source: str) -> None:
    """Push it, and wait until Airflow has stored it."""
    digest = push(live, f"{name}.py", source)
    api.until(lambda: holds(live, api, name, digest), f"the pushed {name} to be stored by Airflow")


def holds(live: Live, api: PublicApi, name: str, digest: str) -> bool:
    """Whether the version that Airflow has stored of its DAGs is a set with these bytes."""
    for dag in api.rows("dags", "dags"):
        if dag["relative_fileloc"] == f"{name}.py" and dag["bundle_version"]:
            known = live.http("GET", f"/v1/sets/{dag['bundle_version']}")
            return known.status == 200 and digest.encode() in known.body
    return False


def config(stack: SealedStack, token: Path, executor: str = "SealedLocalExecutor") -> dict[str, dict[str, str]]:
    """The lines of airflow.cfg that make an Airflow ours."""
    return {
        "core": {"executor": f"dagseal.airflow.{executor}"},
        "sdk": {"coordinators": json.dumps(_COORDINATORS), "queue_to_coordinator": json.dumps({"default": "dagseal"})},
        "dag_processor": {"dag_bundle_config_list": json.dumps([_BUNDLE])},
        "workers": {"secrets_backend": "dagseal.airflow.GrantBackend"},
        "dagseal": {
            "server": stack.url,
            "token_file": str(token),
            "tasks_socket": str(stack.tasks_socket),
            "releases_socket": str(stack.releases_socket),
            "launcher_socket": str(stack.launcher_socket),
        },
    }


def scheduler_token(live: Live, path: Path) -> Path:
    """All that the scheduler needs: it may launch."""
    asked = {"principal": "admin", "scopes": ["launch:*"], "expires_at": int((time.time() + _DAY) * 1_000_000)}
    made = live.http("POST", "/v1/tokens", asked)
    assert made.status == 201, made.body
    path.write_text(made.json["token"])
    path.chmod(0o600)
    shutil.chown(path, SERVICE)
    return path


@contextmanager
def running(server: LoopbackServer, folder: Path) -> Iterator[Sealed]:
    """Started, with the example DAGs pushed, but switched off."""
    folder.mkdir(mode=0o755)
    shared = folder / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    settings = {
        "task_user": OWNER,
        "more_users": (OTHER,),
        "supervisors": (SERVICE,),
        "writable": (shared,),
        "slots": 8,
        "more_api_toml": f'[database]\nurl = "{server.make_empty()}"\n',
    }
    with live.running(kind=SealedStack, **settings) as dagseal:
        stack = dagseal.stack
        assert isinstance(stack, SealedStack)
        for path in examples.files():
            push(dagseal, path.name, path.read_text())
        token = scheduler_token(dagseal, folder / "scheduler.token")
        airflow = Airflow(
            folder=folder,
            database=server.make(TEMPLATE),
            config=config(stack, token),
            parts=parts(dag_processor=("dagseal.cli.app", "dag-processor")),
        )
        airflow.prepare()
        try:
            airflow.start()
            with airflow.public() as api:
                yield Sealed(airflow=airflow, api=api, shared=shared, live=dagseal)
        finally:
            airflow.stop()

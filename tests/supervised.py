"""What stands around the coordinator: an agent that is honest about its protocol, a task that speaks Airflow's own client, and
Airflow's API server as far as a supervisor reaches it, behind Airflow's real HTTP client."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from launcher.task import environment

_BEFORE = dict(os.environ)
environment.prepare()

import httpx  # noqa: E402 - Airflow is to find the settings made
import pytest  # noqa: E402
from airflow.sdk.api.client import Client  # noqa: E402
from airflow.sdk.api.datamodels._generated import BundleInfo, TaskInstance  # noqa: E402
from airflow.sdk.execution_time import supervisor  # noqa: E402
from airflow.sdk.execution_time.comms import CommsDecoder  # noqa: E402
from airflow.sdk.execution_time.coordinator import reset_coordinator_manager  # noqa: E402

from integrity import messages  # noqa: E402
from integrity.fields import to_base64  # noqa: E402
from integrity.messages import Message  # noqa: E402
from vocabulary import logrecords  # noqa: E402

os.environ.clear()
os.environ.update(_BEFORE)  # what other tests start is not to inherit it
DIGEST = "sha512:" + "ab" * 64
MOMENT = "2026-01-31T00:00:00Z"


class Gone(Exception):
    """The supervisor closed the connection."""


class Conversation:
    """The agent's end of one connection, and the task's end of its requests."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self.told: list[Message] = []
        self.requests: socket.socket | None = None

    def question(self) -> dict[str, Any]:
        data, fds, _, _ = socket.recv_fds(self.peer, messages.HEADER_BYTES, 1)
        body = self._exactly(messages.body_length(data))
        (fd,) = fds
        self.requests = socket.socket(fileno=fd)
        return json.loads(body)

    def receive(self) -> Message:
        message = messages.decode(self._exactly(messages.body_length(self._exactly(messages.HEADER_BYTES))))
        self.told.append(message)
        return message

    def say(self, kind: str, **fields: Any) -> None:
        self.peer.sendall(messages.encode(kind, **fields))

    def offer(self, *xcom_dags: str) -> None:
        self.say(
            "offered",
            launch_id="0" * 32,
            archive="etl.py",
            release=3,
            digest=DIGEST,
            unix_user="etl",
            xcom_dags=list(xcom_dags),
        )

    def log(self, source: str, text: str) -> None:
        self.say("log", data=to_base64(logrecords.encode(source, 1_700_000_000_000_000, text)))

    def end(self, state: str, *, error: str = "", exit_code: int = 0, detail: str = "") -> None:
        if self.requests is not None:
            self.requests.close()
        self.say("ended", state=state, error=error, detail=detail, exit_code=exit_code)

    def begin(self, *xcom_dags: str) -> CommsDecoder:
        """The task, after it read its startup details."""
        self.question()
        self.offer(*xcom_dags)
        assert self.receive().kind == "start"
        task: CommsDecoder = CommsDecoder(socket=self.requests)
        self.startup = task._get_response()
        return task

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            chunk = self.peer.recv(count - len(data))
            if not chunk:
                raise Gone
            data += chunk
        return data


Script = Callable[[Conversation], None]


@contextlib.contextmanager
def agent(path: Path, *scripts: Script) -> Iterator[list[BaseException]]:
    """A tasks.sock where each connection is one script; what a script raised is there at the end."""
    failed: list[BaseException] = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            for script in scripts:
                peer, _ = listening.accept()
                with peer:
                    talk = Conversation(peer)
                    try:
                        script(talk)
                    except BaseException as error:
                        failed.append(error)
                    finally:
                        if talk.requests is not None:
                            talk.requests.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield failed
        thread.join(timeout=20)
        assert not thread.is_alive(), "the agent's script did not come to its end"
    if failed:
        raise failed[0]


class Api:
    """Airflow's Execution API. `calls` is what was asked, as [method, path, body]."""

    def __init__(self, *, should_retry: bool = False, conf: Any = None) -> None:
        self.calls: list[tuple[str, str, Any]] = []
        self.refuses: dict[str, tuple[int, Any]] = {}
        self.happened: list[str] = []
        self._context = {
            "dag_run": {
                "dag_id": "etl", "run_id": "r1", "logical_date": MOMENT, "data_interval_start": MOMENT,
                "data_interval_end": MOMENT, "run_after": MOMENT, "start_date": MOMENT, "end_date": None,
                "run_type": "manual", "state": "running", "conf": conf or {}, "consumed_asset_events": [],
                "partition_key": None,
            },
            "task_reschedule_count": 0, "max_tries": 1 if should_retry else 0, "should_retry": should_retry,
        }  # fmt: skip

    def answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.strip("/").removeprefix("execution/")
        body = json.loads(request.content) if request.content else None
        self.calls.append((request.method, path, body))
        last = path.rsplit("/", 1)[-1]
        if last in self.refuses:
            status, detail = self.refuses[last]
            return httpx.Response(status, json={"detail": detail})
        if last == "run":
            return httpx.Response(200, json=self._context)
        if path.startswith("xcoms/") and request.method == "GET":
            return httpx.Response(200, json={"key": last, "value": "there"})
        return httpx.Response(204 if request.method in ("PATCH", "PUT") else 200, json={"message": "ok"})

    def states(self) -> list[str]:
        return [body["state"] for _, path, body in self.calls if path.endswith("/state")]

    def client(self) -> Client:
        return Client(base_url="http://airflow.test/execution/", token="t", transport=httpx.MockTransport(self.answer))


def task_instance(**more: Any) -> TaskInstance:
    named = {"task_id": "load", "dag_id": "etl", "run_id": "r1", "try_number": 1, "map_index": -1, "queue": "default"}
    return TaskInstance(id=uuid.uuid4(), dag_version_id=uuid.uuid4(), **(named | more))


def supervise(api: Api, logs: Path, **more: Any) -> int:
    """Airflow's own entry, as its executors call it."""
    return supervisor.supervise_task(
        ti=more.pop("ti", None) or task_instance(),
        bundle_info=BundleInfo(name="dagseal", version="ab" * 64),
        dag_rel_path="etl.py",
        token="t",
        client=api.client(),
        log_path=str(logs),
        **more,
    )


def lines(logs: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in logs.read_text().splitlines()]


@contextlib.contextmanager
def configured(settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As a worker's or a scheduler's process, with its agent's socket in this folder."""
    for name, value in {**settings, "AIRFLOW__DAGSEAL__TASKS_SOCKET": str(tmp_path / "tasks.sock")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(supervisor, "_make_process_nondumpable", lambda: None)  # this process is pytest's
    forget_coordinators()
    yield
    forget_coordinators()


def forget_coordinators() -> None:
    reset_coordinator_manager()


COORDINATOR = {
    **environment.SETTINGS,
    "AIRFLOW__WORKERS__SECRETS_BACKEND": "",
    "AIRFLOW__SDK__COORDINATORS": json.dumps({"dagseal": {"classpath": "dagseal.airflow.SealedCoordinator"}}),
    "AIRFLOW__SDK__QUEUE_TO_COORDINATOR": json.dumps({"default": "dagseal"}),
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "20",
}

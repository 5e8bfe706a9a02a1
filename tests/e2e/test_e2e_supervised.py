"""A task of Airflow's through all of dagseal: a set from the agent, a reservation by the scheduler, a launch by a supervisor.

API, agent and launcher are real; Airflow is played: what its scheduler sends, and the frame that its supervisor begins with.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from integrity import messages
from integrity.digests import Digest
from integrity.errors import NotFoundError
from integrity.fields import Fields
from tests.live import Live, running
from worker_cache import askreleases

DAG = """
import os, pwd
from airflow.sdk import DAG, task

with DAG("supervised", schedule=None):

    @task
    def said():
        print("I am", pwd.getpwuid(os.getuid()).pw_name)

    @task
    def endless():
        print("begun", flush=True)
        while True:
            pass

    said(); endless()
"""
MOMENT = "2026-01-31T00:00:00+00:00"


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    me = pwd.getpwuid(os.geteuid()).pw_name
    folder = Path(tempfile.mkdtemp(prefix="ds-readers-"))
    folder.chmod(0o755)
    try:
        (folder / "readers.toml").write_text(f'[{me}]\nprincipal = "admin"\n')
        (folder / "readers.toml").chmod(0o644)
        toml = f'readers_file = "{folder}/readers.toml"\n'
        with running(supervisors=(me,), more_agent_toml=toml) as found:
            assert found.push("supervised.py", DAG).status == 201
            until(lambda: found.stack.tasks_socket.exists())
            yield found
    finally:
        shutil.rmtree(folder)


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def active(live: Live) -> tuple[Digest, str]:
    """The set, once the agent's log says it."""
    while True:
        try:
            return askreleases.ask_set(str(live.stack.releases_socket), ["supervised*"])
        except NotFoundError as error:
            assert "no archive" in str(error) or "stale" in str(error), error
            time.sleep(0.05)


def reserve(live: Live, task_id: str, named: Digest) -> dict[str, Any]:
    (task,) = (
        task
        for dag in live.http("GET", "/v1/archives/supervised.py/releases/1").json["dags"]
        for task in dag["tasks"]
        if task["task_id"] == task_id
    )
    names = {
        "dag_id": "supervised",
        "task_id": task_id,
        "run_id": f"r-{uuid.uuid4()}",
        "map_index": -1,
        "try_number": 1,
    }
    wanted = {
        **names,
        "task_instance": str(uuid.uuid4()),
        "queueing": "1",
        "queue": "default",
        "set": named.hex,
        "task_digest": task["digest"],
        "valid_seconds": 600,
    }
    answer = live.http("POST", "/v1/reservations", {"reservations": [wanted]})
    assert answer.status == 200, answer.body
    (found,) = answer.json["reservations"]
    assert found["state"] == "queued", found
    return {"task_instance": wanted["task_instance"], **names}


class Supervisor:
    """One task's."""

    def __init__(self, live: Live, asked: dict[str, Any]) -> None:
        self.requests, theirs = socket.socketpair()
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(60)
        self.sock.connect(str(live.stack.tasks_socket))
        with theirs:
            socket.send_fds(self.sock, [messages.encode("launch", fds=1, **asked)], [theirs.fileno()])
        run = {
            "dag_id": asked["dag_id"], "run_id": asked["run_id"], "logical_date": MOMENT, "data_interval_start": MOMENT,
            "data_interval_end": MOMENT, "run_after": MOMENT, "start_date": MOMENT, "end_date": None, "conf": {},
            "run_type": "manual", "state": "running", "consumed_asset_events": [], "partition_key": None,
        }  # fmt: skip
        ti = {**asked, "id": asked["task_instance"], "dag_version_id": str(uuid.uuid4())}
        del ti["task_instance"]
        details = {
            "type": "StartupDetails", "dag_rel_path": "supervised.py", "bundle_info": {"name": "dagseal", "version": "1"},
            "start_date": MOMENT, "sentry_integration": "", "ti": ti,
            "ti_context": {"dag_run": run, "max_tries": 0, "should_retry": False, "task_reschedule_count": 0},
        }  # fmt: skip
        frame = msgspec.msgpack.encode([0, details, None])
        self.requests.sendall(len(frame).to_bytes(4, "big") + frame)

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()
        self.requests.close()

    def say(self, kind: str, **fields: Any) -> None:
        self.sock.sendall(messages.encode(kind, **fields))

    def hear(self) -> tuple[str, Fields]:
        body = self._exactly(messages.body_length(self._exactly(messages.HEADER_BYTES)))
        message = messages.decode(body)
        return message.kind, message.fields

    def to_the_end(self) -> tuple[str, str, str]:
        """What the task printed, the last word and its state."""
        records = b""
        while True:
            kind, fields = self.hear()
            if kind != "log":
                break
            records += fields.binary("data", max_bytes=1 << 20)
        text = "".join(json.loads(line)["text"] for line in records.splitlines())
        return text, kind, fields.text("state") if kind == "ended" else fields.text("detail")

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            chunk = self.sock.recv(count - len(data))
            assert chunk, "the agent went away"
            data += chunk
        return data


def answering(supervisor: Supervisor) -> None:
    """Answer what the task asks with nothing, until it is gone."""

    def serve() -> None:
        try:
            with supervisor.requests.makefile("rb") as reading:
                while header := reading.read(4):
                    number, *_ = msgspec.msgpack.decode(reading.read(int.from_bytes(header, "big")))
                    frame = msgspec.msgpack.encode([number, None, None])
                    supervisor.requests.sendall(len(frame).to_bytes(4, "big") + frame)
        except OSError:
            pass

    threading.Thread(target=serve, daemon=True).start()


def test_a_supervised_task_runs_as_its_user_and_its_log_goes_both_ways(live: Live) -> None:
    named, folder = active(live)
    assert (Path(folder) / "supervised.py").read_text() == DAG
    with Supervisor(live, reserve(live, "said", named)) as supervisor:
        kind, fields = supervisor.hear()
        assert kind == "offered", fields.text("detail")
        assert (fields.text("unix_user"), fields.text("archive")) == (live.user, "supervised.py")
        launch_id = fields.text("launch_id")
        answering(supervisor)
        supervisor.say("start")
        text, kind, state = supervisor.to_the_end()
    assert (kind, state) == ("ended", "success"), (text, state)
    assert f"I am {live.user}" in text
    assert live.wait(launch_id)["state"] == "success"
    assert f"I am {live.user}" in live.log(launch_id)


@pytest.mark.parametrize("how", ["cancel", "dies"])
def test_no_task_outlives_its_supervisor(live: Live, how: str) -> None:
    with Supervisor(live, reserve(live, "endless", active(live)[0])) as supervisor:
        launch_id = supervisor.hear()[1].text("launch_id")
        answering(supervisor)
        supervisor.say("start")
        while supervisor.hear()[1].binary("data", max_bytes=1 << 20).find(b"begun") < 0:
            pass
        if how == "cancel":
            supervisor.say("cancel", grace_seconds=1)
            assert supervisor.to_the_end()[1:] == ("ended", "cancelled")
    assert live.wait(launch_id)["state"] == "cancelled"


def test_a_push_is_seen_by_who_watches(live: Live) -> None:
    watching = askreleases.watch_sets(str(live.stack.releases_socket), ["supervised*"])
    first = next(watching)
    assert live.push("supervised_more.py", DAG.replace('"supervised"', '"supervised_more"')).status == 201
    assert next(watching) != first
    assert (Path(active(live)[1]) / "supervised_more.py").exists()

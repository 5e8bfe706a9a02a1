"""A whole dagseal whose agent signs what it asks: over a restart of the service, over another key, and when it is revoked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dagseal.stack import WORKER
from tests.live import Live, running

DAG = """
from airflow.sdk import DAG, task
with DAG("joined", schedule=None):
    @task
    def hello():
        print("hello")
    hello()
"""


@pytest.fixture(scope="module")
def own() -> Iterator[Live]:
    """Its API is started anew, and its worker revoked."""
    with running() as started:
        assert started.push("joined.py", DAG).status == 201
        yield started


def worker(live: Live) -> str | None:
    """The id of the key that it signs with."""
    key_id: str | None = live.http("GET", f"/v1/workers/{WORKER}").json["request_key_id"]
    return key_id


def test_it_works_without_any_token_of_its_own(own: Live) -> None:
    assert own.launch("joined", "hello", "first")["state"] == "success"
    folder = own.stack.folder / "agent"
    assert {path.name for path in folder.iterdir() if path.is_file()} == {"request.key"}
    assert (folder / "request.key").stat().st_mode & 0o777 == 0o600
    assert {token["kind"] for token in own.http("GET", "/v1/tokens").json["tokens"]} == {"user"}
    mine = [str(event["token_id"]) for event in own.audit(principal=WORKER)]
    assert all(one.startswith("key:") for one in mine) and mine[-1] == f"key:{str(worker(own))[:8]}"


def test_the_agent_goes_on_with_a_service_that_was_started_anew(own: Live) -> None:
    own.stack.stop("api")
    own.stack.start_api()
    assert own.launch("joined", "hello", "after-restart")["state"] == "success"


def test_a_running_agent_takes_up_the_key_that_it_joined_with_anew(own: Live) -> None:
    before, pid = worker(own), own.stack.processes["agent"].pid
    own.stack.join_worker()
    assert worker(own) != before
    assert own.launch("joined", "hello", "after-join")["state"] == "success"
    assert own.stack.processes["agent"].pid == pid and own.stack.processes["agent"].poll() is None
    events = own.audit(principal=WORKER, action="launch.end")
    assert events[-1]["token_id"] == f"key:{str(worker(own))[:8]}"


def test_a_worker_that_was_revoked_gets_nothing_until_it_joins_anew(own: Live) -> None:
    assert own.http("DELETE", f"/v1/workers/{WORKER}").status == 204
    ask = {"dag_id": "joined", "task_id": "hello", "run_id": "revoked"}
    launch_id = own.http("POST", "/v1/launches", ask).json["id"]
    assert own.http("GET", f"/v1/launches/{launch_id}?wait_seconds=2").json["state"] == "queued"
    own.stack.join_worker()
    assert own.wait(launch_id)["state"] == "success"

"""Who can write to the broker runs nothing: forged, replayed, altered and foreign messages; and the workers go on."""

from __future__ import annotations

import base64
import json
import pickle
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.whole_airflow.brokers import Redis
from tests.whole_airflow.celery_hosts import hundred
from tests.whole_airflow.fleet import Fleet
from tests.whole_airflow.network import HOSTS

pytestmark = pytest.mark.root

QUEUE = "default"


@contextmanager
def workers_away(fleet: Fleet) -> Iterator[None]:
    """So that what the scheduler sends stays in the broker."""
    for host in HOSTS:
        fleet.airflow.stop_part(host)
    try:
        yield
    finally:
        for host in HOSTS:
            fleet.start_worker(host)
        for host in HOSTS:
            fleet.airflow.until(
                lambda host=host: fleet.airflow.log_of(host).count(" ready.") > 1, f"the worker of {host}"
            )


def sent(fleet: Fleet, dag_id: str, run_id: str) -> dict[str, Any]:
    """The message that Airflow sent for the one task of this run; it stays where it is."""
    assert isinstance(fleet.broker, Redis)
    client = fleet.broker.client()
    fleet.api.switch_on(dag_id)
    fleet.api.trigger(dag_id, run_id)
    fleet.api.until(lambda: client.llen(QUEUE) > 0, "the message")
    message: dict[str, Any] = json.loads(client.lindex(QUEUE, 0))
    return message


def workload(message: dict[str, Any]) -> dict[str, Any]:
    (arguments, _, _) = json.loads(base64.b64decode(message["body"]))
    found: dict[str, Any] = json.loads(arguments[0])
    return found


def with_workload(message: dict[str, Any], inner: dict[str, Any]) -> dict[str, Any]:
    body = base64.b64encode(json.dumps([[json.dumps(inner)], {}, {}]).encode()).decode()
    return fresh({**message, "body": body})


def fresh(message: dict[str, Any]) -> dict[str, Any]:
    """As a message that the workers have not seen."""
    name = str(uuid.uuid4())
    return {
        **message,
        "headers": {**message["headers"], "id": name, "root_id": name},
        "properties": {**message["properties"], "correlation_id": name, "delivery_tag": str(uuid.uuid4())},
    }


def altered(message: dict[str, Any], **ti: Any) -> dict[str, Any]:
    inner = workload(message)
    return with_workload(message, {**inner, "ti": {**inner["ti"], **ti}})


def callback(message: dict[str, Any], marker: Path) -> dict[str, Any]:
    """Airflow's workers import what such a message names, and call it."""
    inner = workload(message)
    made = {
        "id": str(uuid.uuid4()),
        "fetch_method": "import_path",
        "data": {"path": "os.mkdir", "kwargs": {"path": str(marker)}},
    }
    kept = {key: inner[key] for key in ("token", "dag_rel_path", "bundle_info", "log_path")}
    return with_workload(message, {**kept, "callback": made, "type": "ExecuteCallback"})


class Making:
    """What unpickles to a call."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (self.path,)


def held(fleet: Fleet) -> set[bytes]:
    """The messages that a worker has taken and not answered for; one that was killed never does."""
    return set(fleet.broker.client().hkeys("unacked"))  # type: ignore[attr-defined]


def settle(fleet: Fleet, before: set[bytes]) -> None:
    """Until the workers have looked at every message, but for those that were `held` before."""
    client = fleet.broker.client()  # type: ignore[attr-defined]
    fleet.api.until(lambda: client.llen(QUEUE) == 0 and held(fleet) <= before, "an empty broker", 240)


def test_a_broker_full_of_what_is_not_airflows_runs_nothing(on_redis: Fleet) -> None:
    fleet = on_redis
    noted, before = hundred.installed(fleet), held(fleet)
    marker = fleet.shared / "made-by-a-message"
    with workers_away(fleet):
        real = sent(fleet, "fleet_one", "real")
        client = fleet.broker.client()  # type: ignore[attr-defined]
        inner = workload(real)
        unknown = {"id": str(uuid.uuid4())}
        pickled = base64.b64encode(pickle.dumps(([Making(marker)], {}, {}))).decode()
        foreign = [
            fresh(real),  # the same twice
            altered(real, **unknown),
            altered(real, **unknown, dag_id="fleet_never", task_id="never"),
            altered(real, **unknown, queue="of-nobody"),
            altered(real, queue="of-nobody"),
            with_workload(
                real,
                {**inner, "bundle_info": {"name": "dagseal", "version": "0" * 128}, "ti": {**inner["ti"], **unknown}},
            ),
            with_workload(real, {**inner, "dag_rel_path": "/etc/passwd", "ti": {**inner["ti"], **unknown}}),
            callback(real, marker),
            {**fresh(real), "body": pickled, "content-type": "application/x-python-serialize"},
            {**fresh(real), "body": "AAAA"},
            {**fresh(real), "headers": {**real["headers"], "task": "os.system", "id": str(uuid.uuid4())}},
        ]
        for message in foreign:
            client.lpush(QUEUE, json.dumps(message))
    assert fleet.api.wait("fleet_one", "real", seconds=240).state == "success"
    settle(fleet, before)
    client.lpush(QUEUE, json.dumps(fresh(real)))  # a replay of what has ended
    assert fleet.api.run("fleet_one", "after", seconds=240).state == "success"
    settle(fleet, before)
    lines = noted.read_text().splitlines()
    assert sorted(line.split()[2] for line in lines if " fleet_one " in line) == ["after", "real"]
    assert not any(" fleet_never " in line for line in lines)
    assert not marker.exists()


def test_a_message_with_a_tasks_own_token_and_other_words_runs_nothing_else(on_redis: Fleet) -> None:
    """Airflow's token of a task instance lies in the broker: who has it can end that one, which dagseal cannot prevent.
    What runs is what was reserved, once, or nothing."""
    fleet = on_redis
    noted, before = hundred.installed(fleet), held(fleet)
    with workers_away(fleet):
        real = sent(fleet, "fleet_one", "spoiled")
        client = fleet.broker.client()  # type: ignore[attr-defined]
        for message in (
            altered(real, dag_id="fleet_never", task_id="never"),
            altered(real, try_number=2),
            altered(real, map_index=7),
        ):
            client.lpush(QUEUE, json.dumps(message))
    assert fleet.api.wait("fleet_one", "spoiled", seconds=240).state in ("success", "failed")
    settle(fleet, before)
    lines = [line.split() for line in noted.read_text().splitlines()]
    assert not [line for line in lines if "fleet_never" in line]
    assert [line for line in lines if "spoiled" in line] in ([], [line for line in lines if "spoiled" in line][:1])

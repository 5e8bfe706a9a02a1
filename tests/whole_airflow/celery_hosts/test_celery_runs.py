"""CeleryExecutor with three worker hosts: a hundred tasks run once each, over Redis and over RabbitMQ, and on every host."""

from __future__ import annotations

import pytest

from tests.whole_airflow.celery_hosts import hundred
from tests.whole_airflow.fleet import Fleet
from tests.whole_airflow.network import HOSTS

pytestmark = pytest.mark.root


@pytest.mark.parametrize("kind", ["on_redis", "on_rabbit"])
def test_a_hundred_tasks_run_once_each(kind: str, request: pytest.FixtureRequest) -> None:
    fleet: Fleet = request.getfixturevalue(kind)
    hundred.run(fleet, "quiet")
    tasks = fleet.api.tasks(hundred.DAG_ID, "quiet")
    assert {task["state"] for task in tasks} == {"success"}
    workers = {launch["worker"] for launch in fleet.live.http("GET", "/v1/launches?limit=200").json["launches"]}
    assert workers >= set(HOSTS)

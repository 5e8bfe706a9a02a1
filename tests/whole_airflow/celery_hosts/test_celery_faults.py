"""kill -9 of one part during a run of a hundred tasks: each ends in a true state, none runs twice, none is left over."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.whole_airflow.celery_hosts import hundred
from tests.whole_airflow.fleet import Fleet

pytestmark = pytest.mark.root


def broker(fleet: Fleet) -> None:
    fleet.broker.kill()
    fleet.broker.start()


def agent(fleet: Fleet) -> None:
    fleet.hosts["w1"].stop("agent", number=signal.SIGKILL)
    fleet.hosts["w1"].start_agent()


def launcher(fleet: Fleet) -> None:
    fleet.hosts["w2"].stop("launcher", number=signal.SIGKILL)
    fleet.hosts["w2"].start_launcher()


def airflow_worker(fleet: Fleet) -> None:
    fleet.airflow.kill_session("w3")
    fleet.start_worker("w3")


def scheduler(fleet: Fleet) -> None:
    """What it had sent is another one's to adopt."""
    fleet.airflow.kill_session("scheduler")
    fleet.airflow.start_again("scheduler")


def api(fleet: Fleet) -> None:
    fleet.live.stack.stop("api", number=signal.SIGKILL)
    fleet.live.stack.start_api()


def database(fleet: Fleet) -> None:
    """At once, with all its connections; and up again."""
    fleet.server.down(signal.SIGQUIT)
    fleet.server.up()


@pytest.mark.parametrize(
    "fault", [broker, agent, launcher, airflow_worker, scheduler, api, database], ids=lambda fault: fault.__name__
)
def test_every_task_ends_in_a_true_state(on_redis: Fleet, fault: Callable[[Fleet], None]) -> None:
    hundred.run(on_redis, fault.__name__, lambda: fault(on_redis))

"""Airflow's example DAGs on three worker hosts: the same states, tries and XComs as in plain Airflow on one."""

from __future__ import annotations

import pytest

from tests.whole_airflow import examples
from tests.whole_airflow.comparing import Outcome, comparable, run_all
from tests.whole_airflow.examples import EXAMPLES, Example
from tests.whole_airflow.fleet import Fleet
from tests.whole_airflow.installation import parts
from tests.whole_airflow.sealed import push

pytestmark = pytest.mark.root


@pytest.fixture(scope="session")
def fleet_outcomes(on_redis: Fleet) -> dict[str, Outcome]:
    for path in examples.files():
        push(on_redis.live, path.name, path.read_text())
    on_redis.airflow.start_part("triggerer", parts()["triggerer"])
    return run_all(on_redis.api)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.dag_id)
def test_an_example_ends_as_without(
    plain_outcomes: dict[str, Outcome], fleet_outcomes: dict[str, Outcome], example: Example
) -> None:
    plain, sealed = plain_outcomes[example.dag_id], fleet_outcomes[example.dag_id]
    assert comparable(example, sealed) == comparable(example, plain)

"""Airflow's example DAGs through dagseal: the same states, tries and XComs as in the same Airflow without it."""

from __future__ import annotations

import pytest

from tests.whole_airflow.comparing import OWN, Outcome, comparable
from tests.whole_airflow.examples import EXAMPLES, Example
from tests.whole_airflow.public import RunEnd

pytestmark = pytest.mark.root


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.dag_id)
def test_an_example_ends_as_without(
    plain_outcomes: dict[str, Outcome], sealed_outcomes: dict[str, Outcome], example: Example
) -> None:
    plain, sealed = plain_outcomes[example.dag_id], sealed_outcomes[example.dag_id]
    assert comparable(example, sealed) == comparable(example, plain)


@pytest.mark.parametrize("dag_id", [*OWN, "notes"])
def test_our_own_end_as_without(plain_own: dict[str, RunEnd], sealed_own: dict[str, RunEnd], dag_id: str) -> None:
    assert sealed_own[dag_id] == plain_own[dag_id]

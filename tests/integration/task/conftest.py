"""One warm process per purpose for the whole session, as the launcher keeps them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from task_rig import Warm

# What an operator may let through by name, for the tests of that.
ENVIRONMENT = {"AIRFLOW_CONN_LEGACY_DB": "postgres://u:legacysecret@h/db", "AIRFLOW_VAR_REGION": "eu-west"}


@pytest.fixture(scope="session")
def runner() -> Iterator[Warm]:
    warm = Warm("run", environment=ENVIRONMENT)
    yield warm
    assert warm.close() == 0


@pytest.fixture(scope="session")
def describer() -> Iterator[Warm]:
    warm = Warm("describe", environment={"PYTHONHASHSEED": "0"})
    yield warm
    assert warm.close() == 0

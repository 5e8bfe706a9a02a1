"""What every test shares: those that need root are skipped elsewhere, by name and with the reason; and Airflow has a home of
the tests' own, so that nothing depends on whether this account has used it before."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

from tests.live import Live, running

_AIRFLOW_HOME = tempfile.mkdtemp(prefix="dagseal-airflow-")
os.environ["AIRFLOW_HOME"] = _AIRFLOW_HOME


def pytest_unconfigure() -> None:
    shutil.rmtree(_AIRFLOW_HOME, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    """One running dagseal for all tests that only add to it; who breaks things starts one of their own with `running()`."""
    with running() as started:
        yield started

"""Airflow through dagseal: the nine ways of `test_airflow_ways_plain`, gone in the same manner, are closed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.whole_airflow import ways
from tests.whole_airflow.sealed import Sealed

pytestmark = pytest.mark.root


@pytest.mark.parametrize("way", ways.WAYS, ids=lambda way: way.__name__)
def test_it_is_closed(sealed_airflow: Sealed, way: Callable[[ways.Rig], str]) -> None:
    assert way(sealed_airflow) == ""

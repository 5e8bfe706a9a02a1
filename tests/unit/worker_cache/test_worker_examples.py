"""The examples in the docstrings of the agent's rules."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("module", ["backoff", "bandwidth"])
def test_examples_in_the_docstrings(module: str) -> None:
    done = doctest.testmod(importlib.import_module(f"worker_cache.{module}"))
    assert done.attempted > 0 and done.failed == 0

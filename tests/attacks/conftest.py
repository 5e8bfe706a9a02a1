"""A lying agent and a folder for traces, fresh for each test; a second dagseal for the tests that kill its processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.attacks.attacker import LyingAgent, Traces, new_traces
from tests.live import Live, running


@pytest.fixture
def agent(live: Live) -> LyingAgent:
    return LyingAgent.enrol(live)


@pytest.fixture
def traces() -> Iterator[Traces]:
    with new_traces() as fresh:
        yield fresh


@pytest.fixture(scope="session")
def fragile() -> Iterator[Live]:
    """Its processes are killed by tests, which start them again; its descriptions have ten seconds."""
    with running(more_launcher_toml="[limits]\ndescribe_timeout_seconds = 10\n") as started:
        yield started

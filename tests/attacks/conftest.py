"""A lying agent and a folder for traces, fresh for each test, and the running dagseals that they are used on.

A module that says `PROFILES = (...)` is run once for each of these isolation profiles; any other in `standard`, the default.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.attacks.attacker import LyingAgent, Traces, new_traces, require_traces
from tests.attacks.scene import Scene
from tests.live import Live, running

# Profile of the tasks -> that of the descriptions: the defaults, and so that each profile is used for both somewhere.
DESCRIBE = {"standard": "strict", "minimal": "minimal", "strict": "standard"}
# Where processes are killed: little of everything, and the agent asks every second, not every ten.
LIMITS = {
    "describe_timeout_seconds": 3,
    "task_pids": 64,
    "task_memory_bytes": 256 << 20,
    "task_tmp_bytes": 8 << 20,
}
# Of the hundreds that these tests make without a token, each is looked for in the audit log.
EVERY_REFUSAL = "[audit]\nunauthenticated_per_minute = 1000000\n"
SHORT = {
    "more_launcher_toml": "[limits]\n" + "".join(f"{name} = {value}\n" for name, value in LIMITS.items()),
    "more_agent_toml": "heartbeat_seconds = 1.0\n",
}


class Stacks:
    """Each is started when it is first asked for, and ends with the session."""

    def __init__(self, ending: ExitStack) -> None:
        self._ending = ending
        self._started: dict[str, Live] = {}

    def get(self, profile: str, *, fragile: bool = False) -> Live:
        """A fragile one has short descriptions, and its processes may be killed by who starts them again. Beside the default
        profile there is one for both purposes."""
        name = f"{profile} fragile" if fragile or profile != "standard" else profile
        if name not in self._started:
            # Where tasks of every profile can see it, as they could an installed one; not in /tmp, where they have their own.
            beside = Path("/run") if os.access("/run", os.W_OK) else None
            short = SHORT if "fragile" in name else {}
            live = self._ending.enter_context(
                running(
                    beside=beside, profile=profile, describe=DESCRIBE[profile], more_api_toml=EVERY_REFUSAL, **short
                )
            )
            require_traces(live)
            self._started[name] = live
        return self._started[name]


@pytest.fixture(scope="session")
def stacks() -> Iterator[Stacks]:
    with ExitStack() as ending:
        yield Stacks(ending)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "profile" in metafunc.fixturenames and (profiles := getattr(metafunc.module, "PROFILES", None)):
        metafunc.parametrize("profile", profiles)


@pytest.fixture
def profile() -> str:
    return "standard"


@pytest.fixture
def live(stacks: Stacks, profile: str) -> Live:
    return stacks.get(profile)


@pytest.fixture
def fragile(stacks: Stacks, profile: str) -> Live:
    return stacks.get(profile, fragile=True)


@pytest.fixture
def agent(live: Live) -> LyingAgent:
    return LyingAgent.enrol(live)


@pytest.fixture
def traces(stacks: Stacks, profile: str, request: pytest.FixtureRequest) -> Iterator[Traces]:
    """Below the folder that the tasks of the test's own dagseal may write."""
    fragile = "fragile" in request.fixturenames and "live" not in request.fixturenames
    with new_traces(stacks.get(profile, fragile=fragile)) as fresh:
        yield fresh


@pytest.fixture(scope="session")
def scenes(stacks: Stacks) -> Iterator[Callable[[str], Scene]]:
    """One for each profile, made when it is first asked for."""
    made: dict[str, Scene] = {}
    with ExitStack() as ending:

        def scene(profile: str) -> Scene:
            if profile not in made:
                made[profile] = Scene(stacks.get(profile, fragile=True), ending)
            return made[profile]

        yield scene


@pytest.fixture
def scene(scenes: Callable[[str], Scene], profile: str) -> Scene:
    return scenes(profile)

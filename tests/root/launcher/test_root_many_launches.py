"""Many launches leave nothing: no descriptor, thread, process, cgroup, mount or memfd, and no memory to speak of.

Of the launcher itself and of every process below it, in a daemon of its own; a fifth of the launches is denied or abandoned.
"""

from __future__ import annotations

import pytest

from tests.bench.launch_daemon import profiles, usual
from tests.bench.launch_leaks import grown_by

pytestmark = pytest.mark.root


@pytest.mark.parametrize("profile", profiles())
def test_two_hundred_launches_leave_nothing(profile: str) -> None:
    assert grown_by(200, profile=profile) == []


@pytest.mark.soak
def test_ten_thousand_launches_leave_nothing() -> None:
    assert grown_by(10_000, profile=usual(profiles())) == []

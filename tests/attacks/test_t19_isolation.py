"""T19 neighbour: a task against another task of its user, the spares, the warm process and who waits for it, the launcher, the
agent, the host and its kernel.

`promises.py` says what each isolation profile promises; every cell is tried for real, by a task of that profile while another
one is its neighbour. That an attempt would work is shown by the same attempt of an unconfined process: of the task's user, or
of root.

Seen to fail when weakened: `isolation.confine` without its namespaces, its Landlock, its scope or its seccomp filter;
`private_mounts` without /dev/shm; `harden` without NoNewPrivs or with dumpable processes; `CgroupTree.attach` that puts nobody
into the cgroup.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.attacks.promises import EXPECTED, FOUND, HOST, OPEN, PROFILES, expected
from tests.attacks.scene import Attacked, Scene

__all__ = ["PROFILES"]
pytestmark = pytest.mark.root
# What an unconfined process gets where its kernel was built without it.
NOT_BUILT = ("ENOSYS", "EAFNOSUPPORT", "EPROTONOSUPPORT")


@pytest.fixture(scope="module")
def attacks(scenes: Callable[[str], Scene]) -> Callable[[str], Attacked]:
    """Made once for each profile."""
    made: dict[str, Attacked | None] = {}

    def attack(profile: str) -> Attacked:
        if profile not in made:
            made[profile] = None
            made[profile] = scenes(profile).attack()
        done = made[profile]
        assert done, "the attack itself failed: see the first test that wanted it"
        return done

    return attack


@pytest.mark.parametrize("threat", EXPECTED)
def test_what_a_task_can_do(attacks: Callable[[str], Attacked], profile: str, threat: str) -> None:
    attacked = attacks(profile)
    assert set(attacked.of_task) == set(EXPECTED)
    assert attacked.of_task[threat] == expected(threat, profile, attacked.of_user[threat])


@pytest.mark.parametrize("threat", EXPECTED)
def test_each_attempt_would_work(attacks: Callable[[str], Attacked], threat: str) -> None:
    """Else that it is blocked would mean nothing."""
    attacked = attacks("minimal")
    outcomes = (attacked.of_user[threat], attacked.of_root[threat])
    assert OPEN in outcomes or (HOST in EXPECTED[threat] and outcomes[1] in NOT_BUILT), outcomes


def test_what_was_blocked_did_nothing(attacks: Callable[[str], Attacked], profile: str) -> None:
    """Nothing arrived at its target, and who was there is alive, not stopped and not traced."""
    attacked = attacks(profile)
    for threat, times in attacked.reached.items():
        ways = [threat] + ["connect by MPTCP"] * (threat == "connect to a local TCP port")
        assert times == [attacked.of_task[way] for way in ways].count(OPEN), threat
    assert attacked.harmed == []


def test_what_is_left_for_the_next_task(scene: Scene, profile: str) -> None:
    left = scene.report(f"leave({scene.targets!r})")
    assert list(left) == FOUND["minimal"]
    assert scene.report(f"find({scene.targets!r})") == FOUND[profile]

"""T19 neighbour: the processes that wait. None serves two launches, and none is missed when it is killed.

Seen to fail when weakened: a pool that gives a process out twice, or one that is dead; a warm process that is process 1 of its
namespace, like its forks.
"""

from __future__ import annotations

import os
import signal

import pytest

from tests.attacks.attacker import is_alive, spares_of, status_of, until, warm_pids
from tests.attacks.promises import PROFILES
from tests.attacks.scene import Scene

__all__ = ["PROFILES"]
pytestmark = pytest.mark.root


def test_no_process_serves_two_launches(scene: Scene) -> None:
    """Each is a process of its own, which was not seen before and is dead afterwards, and guesses numbers of its own. For that
    libraries have to see that they were forked: by a number that is not that of the warm process."""
    assert scene.run("pass")["state"] == "success"
    (warm,) = warm_pids(scene.live, "run")
    inner = status_of(warm)["NSpid"].split()
    assert len(inner) == 1 or inner[-1] != "1"
    pids, guesses = [], []
    for turn in range(4):
        body = f"""
            import json, random, ssl, tempfile, uuid
            from cryptography.hazmat.primitives.asymmetric import ec
            key = ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value
            guesses = [random.random(), ssl.RAND_bytes(8).hex(), uuid.uuid4().hex, tempfile.mktemp(), key]
            trace("turn{turn}", json.dumps(guesses))
            wait_for({str(scene.traces.path)!r} + "/turn{turn}")
        """
        launch_id = scene.start(body)
        until("it runs", lambda turn=turn: scene.traces.of(f"turn{turn}"))
        pids.append(scene.traces.pid(f"turn{turn}"))
        guesses.append(scene.traces.json(f"turn{turn}"))
        scene.traces.allow(f"turn{turn}")
        assert scene.live.wait(launch_id)["state"] == "success"
        assert not is_alive(pids[-1])
    assert len(set(pids)) == 4
    for same in zip(*guesses, strict=True):
        assert len(set(same)) == 4, same


@pytest.mark.parametrize("whom", ["spares", "warm process", "process 1", "launcher's child"])
def test_those_who_wait_are_killed(scene: Scene, whom: str) -> None:
    """By root, or by a neighbour where it can: the next launch meets others."""
    assert scene.run("pass")["state"] == "success"
    (warm,) = warm_pids(scene.live, "run")
    above = [warm]
    while (parent := int(status_of(above[-1])["PPid"])) != scene.live.stack.processes["launcher"].pid:
        above.append(parent)
    first = [pid for pid in above if status_of(pid)["NSpid"].split()[1:] == ["1"]]
    victims = {"spares": spares_of(warm), "warm process": [warm], "process 1": first, "launcher's child": above[-1:]}[
        whom
    ]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    until("they are dead", lambda: not [pid for pid in victims if is_alive(pid)])
    assert scene.run("pass")["state"] == "success"
    if whom != "spares" and victims:
        assert not is_alive(warm)

"""T19 neighbour: a task against everybody's share of processes, memory, disk and descriptors.

Each takes until it is stopped, while others go on; then nothing of it is left.

Seen to fail when weakened: `CgroupTree.attach` that puts nobody into the cgroup; `private_mounts` without `size=` or without
`nr_inodes=`; `harden` that leaves the limit of cores.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.attacks.attacker import descendants, is_alive, until
from tests.attacks.conftest import LIMITS
from tests.attacks.promises import PROFILES, UNLIMITED_TMP
from tests.attacks.scene import Scene

__all__ = ["PROFILES"]
pytestmark = pytest.mark.root


@pytest.mark.parametrize("then", ["signal.pause()", "os._exit(0)"], ids=["live", "zombies"])
def test_processes(scene: Scene, then: str) -> None:
    """A fork bomb that stays, alive or dead and never waited for: it ends at its limit, others go on, and all of it is gone
    with its launch."""
    word = f"bomb{os.urandom(4).hex()}"
    body = f"""
        forked = 0
        try:
            while forked < 1000:
                if os.fork() == 0:
                    while True:
                        {then}
                forked += 1
        except BlockingIOError:
            trace({word!r}, str(forked))
        wait_for({str(scene.traces.path / word)!r})
    """
    launch_id = scene.start(body)
    until("it can fork no more", lambda: scene.traces.of(word))
    task = scene.traces.pid(word)
    processes = {task, *descendants(task)}
    assert len(processes) == int(scene.traces.text(word)) + 1 <= LIMITS["task_pids"]
    assert scene.run("pass")["state"] == "success"
    scene.traces.allow(word)
    assert scene.live.wait(launch_id)["state"] == "success"
    assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]


def test_memory(scene: Scene) -> None:
    """It is killed for that, the result says so, and nobody else is."""
    launch_id, neighbour, word = scene.neighbour()
    ended = scene.run(f"data = b'x' * {2 * LIMITS['task_memory_bytes']}")
    assert (ended["state"], ended["error"], ended["exit_code"]) == ("failed", "out-of-memory", 137), ended
    assert str(LIMITS["task_memory_bytes"]) in ended["detail"]
    assert is_alive(neighbour)
    scene.traces.allow(word)
    assert scene.live.wait(launch_id)["state"] == "success"


def test_disk(scene: Scene, profile: str) -> None:
    """Each of the three folders for temporary files, until there is no room or twice the limit is written; and with files that
    hold nothing, which take memory all the same."""
    most, files = 2 * LIMITS["task_tmp_bytes"], 2 * LIMITS["task_tmp_bytes"] // 4096
    fill = f"""
        import json, shutil
        def fill(folder):
            path, written = folder + "/fill" + {scene.name!r}, 0
            with open(path, "wb", buffering=0) as file:
                try:
                    while written < {most}:
                        written += file.write(b"x" * (1 << 16))
                except OSError as error:
                    assert error.errno == 28, error
            os.unlink(path)
            return written
        def count(folder):
            path, made = folder + "/count" + {scene.name!r}, 0
            os.mkdir(path)
            try:
                while made < {files}:
                    open(f"{{path}}/{{made}}", "w").close()
                    made += 1
            except OSError as error:
                assert error.errno == 28, error
            shutil.rmtree(path)
            return made
        trace("filled", json.dumps([[fill(folder), count(folder)] for folder in ("/tmp", "/var/tmp", "/dev/shm")]))
    """
    assert scene.run(fill)["state"] == "success"
    for written, made in scene.traces.json("filled"):
        if profile in UNLIMITED_TMP:
            assert (written >= most, made) == (True, files)
        else:
            assert most // 4 < written <= most // 2
            assert files // 4 < made <= files // 2


def test_descriptors(scene: Scene) -> None:
    """They end for the task, and for nobody else."""
    launcher = Path(f"/proc/{scene.live.stack.processes['launcher'].pid}/fd")
    body = f"""
        import json
        most, held = resource.getrlimit(resource.RLIMIT_NOFILE)[1], []
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
        outcomes = [attempt(resource.setrlimit, resource.RLIMIT_NOFILE, (most + 1, most + 1))]
        try:
            while len(held) <= 4096:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as error:
            outcomes.append(error.errno)
        for _ in range(8):
            os.close(held.pop())
        trace("full", json.dumps(outcomes))
        wait_for({str(scene.traces.path / "close")!r})
    """
    before = len(list(launcher.iterdir()))
    launch_id = scene.start(body)
    until("it can open no more", lambda: scene.traces.of("full"))
    assert scene.traces.json("full") == ["ValueError", 24], "EPERM, as Python says it, and EMFILE"
    assert len(list(launcher.iterdir())) < before + 50
    assert scene.run("pass")["state"] == "success"
    scene.traces.allow("close")
    assert scene.live.wait(launch_id)["state"] == "success"


CRASH = 'cd "$0" && ulimit -c unlimited 2>/dev/null; kill -SEGV $$'


def test_core_dumps(scene: Scene, tmp_path: Path) -> None:
    """Neither of what it starts, which is dumpable again by its exec, nor of itself."""
    plain = subprocess.run(["sh", "-c", CRASH, tmp_path], check=False)
    assert plain.returncode == -signal.SIGSEGV
    if not list(tmp_path.iterdir()):
        pytest.skip("core dumps do not come as files here (core_pattern): nothing can be compared")
    folder = str(scene.traces.path)
    dumped = scene.report(
        f"os.WCOREDUMP(os.waitpid(os.spawnlp(os.P_NOWAIT, 'sh', 'sh', '-c', {CRASH!r}, {folder!r}), 0)[1])"
    )
    ended = scene.run(f"os.chdir({folder!r})\nctypes.string_at(0)")
    assert ended["error"] == "task-died"
    assert (dumped, list(scene.traces.path.glob("*core*"))) == (False, [])

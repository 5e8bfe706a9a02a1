"""What the tests of T19 are played on: one dagseal, with what its host has for tasks to find, and a neighbour."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import secrets
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.controllers import own_cgroups
from tests.attacks.attacker import (
    PROBES,
    Traces,
    dag,
    depth,
    is_alive,
    new_traces,
    notary_pid,
    outer_pid,
    spares_of,
    status_of,
    until,
    warm_pids,
)
from tests.live import Live

SIDEWAYS = Path(__file__).with_name("sideways.py").read_text(encoding="utf-8")
VICTIM = """
import socket
shared_memory({key}, 0o1666)
attempt(message_queue, {name!r}, os.O_CREAT)  # which Landlock forbids anyway
with socket.socket(socket.AF_UNIX) as listening:
    listening.bind("\\0" + {name!r})
    listening.listen()
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        write_file(folder + "/" + {name!r})
    trace("victim")
    wait_for({go!r}, seconds=240)
"""
Outcomes = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacked:
    """What came of all attempts: by a task, by an unconfined process of its user, by one of root. `reached` is what the first
    of them did to its targets, `harmed` who was not as before after it."""

    of_task: Outcomes
    of_user: Outcomes
    of_root: Outcomes
    reached: dict[str, int]
    harmed: list[str]


class Scene:
    """`targets` is what `sideways.py` calls `v`."""

    def __init__(self, live: Live, ending: ExitStack) -> None:
        self.live = live
        self.traces: Traces = ending.enter_context(new_traces(live))
        self.name = f"t19{secrets.token_hex(6)}"
        self.key = secrets.randbelow(1 << 29) + 1
        self._count = 0
        # Not below a folder of which a task has its own, nor one that `strict` lists.
        self.folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="dagseal-t19-", dir="/var/lib")))
        self.folder.chmod(0o777)
        (self.folder / "readable").write_text("readable")
        (self.folder / "readable").chmod(0o644)
        host = Path(f"/tmp/host{self.name}")
        host.write_text("of the host")
        host.chmod(0o644)
        ending.callback(host.unlink, missing_ok=True)
        program = live.shared / f"id-{self.name}"
        program.write_bytes(Path("/usr/bin/id").read_bytes())
        program.chmod(0o4755)
        ending.callback(program.unlink)
        self._abstract = ending.enter_context(socket.socket(socket.AF_UNIX))
        self._abstract.bind("\0host" + self.name)
        self._tcp = ending.enter_context(socket.socket())
        self._tcp.bind(("127.0.0.1", 0))
        self._path = ending.enter_context(socket.socket(socket.AF_UNIX))
        self._path.bind(str(self.folder / "socket"))
        (self.folder / "socket").chmod(0o777)
        self._udp = ending.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._udp.bind(("127.0.0.1", 0))
        for listening in (self._abstract, self._path, self._tcp):
            listening.listen(100)
        for sock in (self._abstract, self._path, self._tcp, self._udp):
            sock.setblocking(False)
        self.targets: dict[str, Any] = {
            "name": self.name,
            "key": self.key,
            "folder": str(self.folder),
            "shared": str(self.traces.path),
            "program": str(program),
            "tcp": self._tcp.getsockname()[1],
            "udp": self._udp.getsockname()[1],
            "fds": list(range(8)),
        }
        ending.callback(self._end)

    def start(self, body: str, **more: Any) -> str:
        """Launch a task that does this; the launch's id."""
        self._count += 1
        dag_id = f"{self.name}_{self._count}"
        top = f"{PROBES}\n{SIDEWAYS}\n{self.traces.source()}"
        pushed = self.live.push(f"{dag_id}.py", dag(dag_id, body, top=top))
        assert pushed.status == 201, pushed.body
        made = self.live.http("POST", "/v1/launches", {"dag_id": dag_id, "task_id": "t", "run_id": "r", **more})
        assert made.status == 201, made.body
        return str(made.json["id"])

    def run(self, body: str, **more: Any) -> dict[str, Any]:
        """The same, to its end."""
        return self.live.wait(self.start(body, **more))

    def report(self, expression: str) -> Any:
        """What this is in a task, which is to succeed."""
        word = f"word{secrets.token_hex(4)}"
        ended = self.run(f"import json\ntrace({word!r}, json.dumps({expression}))")
        assert ended["state"] == "success", ended["detail"] + self.live.log(ended["id"])
        return self.traces.json(word)

    def neighbour(self) -> tuple[str, int, str]:
        """A task that has something of everything and stays until it is allowed the word: its launch, its pid, the word."""
        before, word = set(self.traces.of("victim")), f"go{secrets.token_hex(4)}"
        launch_id = self.start(VICTIM.format(key=self.key, name=self.name, go=str(self.traces.path / word)))
        (trace,) = until("the neighbour is there", lambda: set(self.traces.of("victim")) - before)
        return launch_id, outer_pid(trace), word

    def attack(self) -> Attacked:
        """All of `TRIES`, beside a neighbour that is there throughout; `targets` has everybody's numbers on the host."""
        launch_id, neighbour, word = self.neighbour()
        targets, outcomes = self.traces.path / "targets", f"outcomes{secrets.token_hex(4)}"
        body = f"""
            import json
            trace("attacker")
            wait_for({str(targets)!r}, seconds=240)
            trace({outcomes!r}, json.dumps(try_all(json.loads(open({str(targets)!r}).read()))))
            wait_for({str(self.traces.path / outcomes)!r}, seconds=240)
        """
        attacking = self.start(body)
        until("the attacker is there", lambda: self.traces.of("attacker"))
        (warm,) = warm_pids(self.live, "run")
        busy = {neighbour, self.traces.pid("attacker")}
        spares = until("there is a spare", lambda: set(spares_of(warm)) - busy)
        victims = {
            "neighbour": neighbour,
            "spare": max(spares),
            "warm": warm,
            "waiter": warm if depth(warm) == 1 else int(status_of(warm)["PPid"]),
            "launcher": self.live.stack.processes["launcher"].pid,
            "notary": notary_pid(self.live),
            "agent": self.live.stack.processes["agent"].pid,
        }
        self.targets |= victims | {"cgroups": cgroups_of(neighbour)}
        (self.traces.path / "written").write_text(json.dumps(self.targets))
        (self.traces.path / "written").chmod(0o644)
        (self.traces.path / "written").rename(targets)
        until("it has tried all", lambda: self.traces.of(outcomes))
        reached, harmed = self._reached(), [name for name, pid in victims.items() if not unharmed(pid)]
        found: Outcomes = self.traces.json(outcomes)
        user = pwd.getpwnam(self.live.user)
        attacked = Attacked(
            of_task=found,
            of_user=self._unconfined(user=user.pw_uid, group=user.pw_gid, extra_groups=[]),
            of_root=self._unconfined(),
            reached=reached,
            harmed=harmed,
        )
        # Both are there to the end: when a launch has ended, a spare may be given other work.
        for allowed, started in ((outcomes, attacking), (word, launch_id)):
            self.traces.allow(allowed)
            ended = self.live.wait(started)
            assert ended["state"] == "success", ended["detail"] + self.live.log(started)
        return attacked

    def _reached(self) -> dict[str, int]:
        """How often the targets of these attempts were reached; afterwards they are as new."""
        reached = {
            "write where the user may": _taken_away(self.folder / "planted"),
            "write to a listed folder": _taken_away(self.traces.path / "planted"),
            "mount": int(os.path.ismount(self.folder)),
            "an abstract socket of the host": _connections(self._abstract),
            "a socket of the host with a path": _connections(self._path),
            "connect to a local TCP port": _connections(self._tcp),
            "send to a local UDP port": _packets(self._udp),
        }
        if reached["mount"]:
            subprocess.run(["umount", str(self.folder)], check=True)
        return reached

    def _unconfined(self, **who: Any) -> Outcomes:
        """The same attempts by a process of this account, or of root."""
        script = f"{PROBES}\n{SIDEWAYS}\nimport json\nprint(json.dumps(try_all({self.targets | {'fds': []}!r})))"
        done = subprocess.run(
            [sys.executable, "-c", script], cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, **who
        )
        assert done.returncode == 0, (done.returncode, done.stderr)
        self._reached()
        outcomes: Outcomes = json.loads(done.stdout)
        return outcomes

    def _end(self) -> None:
        """What tasks of `minimal` left on the host."""
        for folder in ("/tmp", "/var/tmp", "/dev/shm"):
            for path in Path(folder).glob(f"*{self.name}*"):
                path.unlink()
        libc = ctypes.CDLL(None)
        for key in (self.key, self.key + 1):
            if (found := libc.shmget(key, 0, 0)) >= 0:
                libc.shmctl(found, 0, None)
        for name in (self.name, f"left{self.name}"):
            libc.mq_unlink(f"/{name}".encode())


def cgroups_of(pid: int) -> list[str]:
    """What says who is in the cgroups that hold this task, and in those right above."""
    texts = [Path(path).read_text() for path in (f"/proc/{pid}/cgroup", "/proc/self/mountinfo")]
    own = [found.folder / "cgroup.procs" for found in own_cgroups(*texts)]
    return sorted({str(path) for one in own for path in (one, one.parents[1] / one.name) if path.exists()})


def unharmed(pid: int) -> bool:
    """It lives, nobody traces it, and it is not stopped."""
    return is_alive(pid) and status_of(pid)["TracerPid"] == "0" and status_of(pid)["State"][0] in "SRD"


def _taken_away(path: Path) -> int:
    if not path.exists():
        return 0
    path.unlink()
    return 1


def _connections(listening: socket.socket) -> int:
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listening.accept()[0].close()
            count += 1
    return count


def _packets(sock: socket.socket) -> int:
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.recv(16)
            count += 1
    return count

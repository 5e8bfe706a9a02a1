"""What the tests of T19 are played on: one dagseal, with what its host has for tasks to find, and a neighbour."""

from __future__ import annotations

import ctypes
import json
import secrets
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.attacks.attacker import PROBES, Traces, dag, new_traces, spares_of, status_of, until, warm_pids
from tests.live import Live

SIDEWAYS = Path(__file__).with_name("sideways.py").read_text(encoding="utf-8")
VICTIM = """
import socket
libc.shmget({key}, 4096, 0o1666)
message_queue({name!r}, os.O_CREAT)
with socket.socket(socket.AF_UNIX) as listening:
    listening.bind("\\0" + {name!r})
    listening.listen()
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        write_file(folder + "/" + {name!r})
    trace("victim")
    wait_for({go!r})
"""
Outcomes = dict[str, str]


class Scene:
    """`targets` is for the tries of `sideways.py`; `meet` adds who is there to be attacked."""

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
        self._udp = ending.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._udp.bind(("127.0.0.1", 0))
        for listening in (self._abstract, self._tcp):
            listening.listen(100)
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
        ending.callback(self._tidy)

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

    def neighbour(self) -> tuple[str, int]:
        """A task that has something of everything and stays until `go`; its launch and pid."""
        before = set(self.traces.of("victim"))
        body = VICTIM.format(key=self.key, name=self.name, go=str(self.traces.path / "go"))
        launch_id = self.start(body)
        until("the neighbour is there", lambda: set(self.traces.of("victim")) - before)
        return launch_id, self.traces.pid("victim")

    def meet(self) -> None:
        """Who is to be attacked, by the host's numbers."""
        (warm,) = warm_pids(self.live, "run")
        self.launch_id, neighbour = self.neighbour()
        spares = until(
            "there are two spares", lambda: found if len(found := [*{*spares_of(warm)} - {neighbour}]) == 2 else None
        )
        inner = len(status_of(warm)["NSpid"].split()) == 2
        self.targets |= {
            "neighbour": neighbour,
            "spares": spares,
            "warm": warm,
            "waiter": int(status_of(warm)["PPid"]) if inner else warm,
            "launcher": self.live.stack.processes["launcher"].pid,
            "agent": self.live.stack.processes["agent"].pid,
            "cgroups": cgroups_of(neighbour),
        }

    def unconfined(self, **who: Any) -> Outcomes:
        """The same attempts by a process of this account, or of root."""
        script = f"{PROBES}\n{SIDEWAYS}\nimport json\nprint(json.dumps(try_all({self.targets | {'fds': []}!r})))"
        done = subprocess.run(
            [sys.executable, "-c", script], cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, **who
        )
        assert done.returncode == 0, (done.returncode, done.stderr)
        outcomes: Outcomes = json.loads(done.stdout)
        if not outcomes["mount"]:
            subprocess.run(["umount", str(self.folder)], check=True)
        for planted in (self.folder / "planted", self.traces.path / "planted"):
            planted.unlink(missing_ok=True)
        return outcomes

    def let_go(self) -> None:
        self.traces.allow("go")
        assert self.live.wait(self.launch_id)["state"] == "success"

    def _tidy(self) -> None:
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
    """What says who is in the cgroups that hold this task, and in those above."""
    folders = [Path(line.split(":", 2)[2].strip("/")) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    return sorted(
        {
            str(path)
            for found in folders
            for mount in Path("/sys/fs/cgroup").rglob(f"{found}/cgroup.procs")
            for path in (mount, mount.parents[1] / "cgroup.procs")
        }
    )

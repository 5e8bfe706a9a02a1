"""What the tests of the four ways to be privileged share: a folder with a policy, a launch, and what is expected of it.

`conform` is the one conformance test: a `Mode` says how it differs, and all that it does not name must be as for root.
The table of docs/privilege-separation.md is these expectations in words.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import launcher
from dagseal.footing import Accounts
from integrity.fields import to_base64
from vocabulary.keys import SigningKey

ROOT = Path(launcher.__file__).parent.parent
MAIN = Path(launcher.__file__).with_name("__main__.py")
PYTHON = [sys.executable, "-s", "-P", "-S"]
PROFILES = ("minimal", "standard", "strict")
NONE = "0" * 16
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent"}
_SECONDS = 240
_GONE_SECONDS = 10
_TASKS_MAY_SEE = {
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "AIRFLOW_HOME", "PYTHONPATH",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """What a mode promises of a task. `bounding`: by profile, what is left of the bounding set."""

    bounding: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A folder with keys and policy of one launcher, and who is who."""

    folder: Path
    key: SigningKey
    caller: str
    parser: str
    users: tuple[str, ...]
    notary: str = ""

    @property
    def config(self) -> Path:
        return self.folder / "launcher.toml"

    @property
    def socket(self) -> Path:
        return self.folder / "run" / "launcher.sock"

    def write_policy(self, *, profile: str, describe: str = "", more: str = "", users: str = "") -> None:
        names = json.dumps(list(self.users))
        notary = f'notary = "{self.notary}"\n' if self.notary else ""
        self.config.write_text(
            f'[trust]\napi_keys = ["{to_base64(self.key.public.raw)}"]\n'
            f'[peers]\nrun = ["{self.caller}"]\ndescribe = ["{self.caller}"]\n'
            f'[users]\nallowed = {names}\nbanned = ["root"]\nmin_uid = 1\nparser = "{self.parser}"\n{notary}{users}'
            f'[paths]\nsocket = "{self.socket}"\nstate_dir = "{self.folder}/state"\n'
            f'[isolation]\nprofile = "{profile}"\ndescribe = "{describe or "standard"}"\n{more}'
        )
        self.config.chmod(0o644)

    def launch(self, *, launcher_pid: int = 0, command: list[str] | None = None, caller: str = "") -> dict[str, Any]:
        """As the caller's account: a launch for each user, and what came of it (`mode_caller`)."""
        with self.calling(launcher_pid=launcher_pid, command=command, caller=caller) as (process, answers):
            answer = answers.read()
            assert process.wait(_SECONDS) == 0, (self.folder / "caller.log").read_text()
        report: dict[str, Any] = json.loads(answer)
        return report | {"stderr": (self.folder / "caller.log").read_text()}

    @contextmanager
    def calling(
        self,
        *,
        launcher_pid: int = 0,
        command: list[str] | None = None,
        hold: bool = False,
        users: tuple[str, ...] = (),
        caller: str = "",
    ) -> Iterator[tuple[subprocess.Popen[str], TextIO]]:
        """`mode_caller` and what it answers; killed at the end, if it still runs."""
        told = {
            "socket": str(self.socket),
            "command": command,
            "api_key": self.key.seed.hex(),
            "launcher_pid": launcher_pid,
            "users": list(users or self.users),
            "hold": hold,
        }
        with (self.folder / "caller.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-s", str(Path(__file__).with_name("mode_caller.py"))],
                env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                **become(caller or self.caller),
            )
        assert process.stdin and process.stdout
        with process.stdin, process.stdout:
            try:
                process.stdin.write(json.dumps(told) + "\n")
                process.stdin.flush()
                yield process, process.stdout
            finally:
                process.kill()
                process.wait()


def become(account: str) -> dict[str, Any]:
    """Keywords for `Popen`: this account, unless it is ours."""
    entry = pwd.getpwnam(account)
    if entry.pw_uid == os.geteuid():
        return {}
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@contextmanager
def host(*, owner: str, caller: str = "", parser: str = "", users: tuple[str, ...] = ("nobody",)) -> Iterator[Host]:
    """`owner` is the launcher's account: the socket's folder is its own, and so is the state, or its notary's where it is
    root; the policy is root's."""
    accounts = Accounts.choose()
    notary = accounts.notary if owner == "root" else ""
    folder = Path(tempfile.mkdtemp(prefix="dagseal-mode-"))
    try:
        folder.chmod(0o755)
        for name, mode, whose in (("run", 0o755, owner), ("state", 0o700, notary or owner)):
            (folder / name).mkdir(mode=mode)
            entry = pwd.getpwnam(whose)
            os.chown(folder / name, entry.pw_uid, entry.pw_gid)
        yield Host(
            folder=folder,
            key=SigningKey.generate(),
            caller=caller or accounts.agent,
            parser=parser or accounts.parser,
            users=users,
            notary=notary,
        )
    finally:
        shutil.rmtree(folder)


@contextmanager
def started(place: Host, prefix: list[str], *more: str, ends: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """The launcher, listening, begun by the words of `prefix`; ended by its pid, and its socket is gone then."""
    log_path = place.folder / "launcher.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            _command(place, prefix, more),
            env=ENVIRONMENT,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 60
        while not listening(place.socket):
            assert process.poll() is None and time.monotonic() < deadline, log_path.read_text()
            time.sleep(0.02)
        yield process
        assert ends or process.poll() is None, log_path.read_text()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        print(log_path.read_text())
    assert process.returncode == ends
    assert ends or not place.socket.exists()


def refused(place: Host, prefix: list[str], *more: str) -> str:
    """What the launcher says that does not start."""
    done = subprocess.run(
        _command(place, prefix, more),
        env=ENVIRONMENT,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    return done.stderr


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _GONE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


def _command(place: Host, prefix: list[str], more: tuple[str, ...]) -> list[str]:
    return [*prefix, *PYTHON, str(MAIN), "--config", str(place.config), *more]


def doctor(*prefix: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """Its exit code, and by check the state and the detail."""
    done = subprocess.run(
        [
            *prefix,
            sys.executable,
            "-s",
            "-P",
            "-m",
            "dagseal.cli.app",
            "doctor",
            "--offline",
            "--user",
            "nobody",
            "-o",
            "json",
        ],
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, {row["check"]: (row["state"], row["detail"]) for row in json.loads(done.stdout)}


def conform(report: dict[str, Any], profile: str, mode: Mode, *, launcher_uid: int) -> None:
    """Every promise to a task that does not depend on the mode, and those that do as `mode` says."""
    assert report["privileged"] is True
    assert bool(report["warnings"]) == (profile in mode.warnings), report["warnings"]
    assert mode.warnings.get(profile, "") in " ".join(report["warnings"])
    assert report["launches"], report
    for name, launch in report["launches"].items():
        assert launch["state"] == "success", (name, launch, report["stderr"][-3000:])
        entry, task, seen = pwd.getpwnam(name), launch["task"], launch["attestation"]
        uid = entry.pw_uid
        assert task["granted"] == "db.example"
        assert (task["uids"], task["gids"]) == ([uid] * 3, [entry.pw_gid] * 3)
        assert 0 not in task["groups"] and launcher_uid != uid
        bounding = mode.bounding.get(profile, NONE)
        assert {key: task[f"Cap{key}"] for key in ("Inh", "Prm", "Eff", "Amb", "Bnd")} == {
            "Inh": NONE, "Prm": NONE, "Eff": NONE, "Amb": NONE, "Bnd": bounding,
        }  # fmt: skip
        assert (task["NoNewPrivs"], task["Seccomp"]) == ("1", "0" if profile == "minimal" else "2")
        assert task["dumpable"] == 0
        # 0 /dev/null, 1, 2 and 6 the log, 3 control, 4 the sealed archive; the secrets pipe is closed.
        assert {task["descriptors"][number].partition(":")[0] for number in "034"} == {"/dev/null", "socket", "/memfd"}
        assert "5" not in task["descriptors"] or not task["descriptors"]["5"].startswith("pipe")
        inherited = {key for key in task["environment"] if not key.startswith(("AIRFLOW_", "_AIRFLOW"))}
        assert inherited <= _TASKS_MAY_SEE, inherited - _TASKS_MAY_SEE
        tries = dict(task["tries"])
        hidden = "EPERM" if profile == "minimal" else "ESRCH"  # a pid namespace of its own has no such process
        assert tries.pop("signal the launcher") == hidden
        assert tries.pop("trace the launcher") == (
            "EPERM" if profile != "minimal" else hidden
        )  # seccomp, else the kernel
        assert tries.pop("read /etc/shadow") == "EACCES"
        assert set(tries.values()) <= {"EPERM", "EINVAL"}, tries  # EINVAL: no such id in its user namespace
        assert seen["profile"] == profile and seen["capbnd"] == bounding
        assert seen["no_new_privs"] is True and seen["dumpable"] is False

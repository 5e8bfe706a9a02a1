"""A launcher of its own for a measurement: the real daemon in a process of its own, trusting a key that the caller holds.

No API and no agent: who holds that key signs manifests and tickets itself and speaks to the socket directly. As root the
describing account, the calling account, the parser and the task's user are four; else all are the invoking one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import launcher
from dagseal.footing import Accounts
from dagseal.quickstart import default_user
from integrity.digests import Digest
from integrity.errors import DagsealError
from integrity.fields import to_base64
from launcher.isolation import PROFILES
from submit_api.describing import Description, LauncherDescriber
from tests.attacks.attacker import acting_as, opened
from vocabulary.keys import SigningKey

MAIN = str(Path(launcher.__file__).with_name("__main__.py"))
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_DESCRIBE_SECONDS = 120.0
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """One that is listening. `profile` is its isolation profile, empty where this launcher knows none."""

    profile: str
    folder: Path
    process: subprocess.Popen[bytes]
    api_key: SigningKey
    accounts: Accounts
    task_user: str

    @property
    def socket(self) -> str:
        return str(self.folder / "run" / "launcher.sock")

    @property
    def log(self) -> str:
        return (self.folder / "launcher.log").read_text(encoding="utf-8", errors="replace")

    def describe(self, name: str, data: bytes) -> Description:
        """What the archive defines, by the launcher's own `describe`, asked for as the describing account."""
        describer = LauncherDescriber(self.socket, seconds=_DESCRIBE_SECONDS, at_once=16)
        with opened(data) as fd, acting_as(self.accounts.api):
            try:
                return asyncio.run(describer.describe(name, Digest.of(data), fd, "task"))
            except DagsealError as error:
                error.add_note(f"the launcher's log ends: {self.log[-2000:]}")
                raise


def profiles() -> tuple[str, ...]:
    """The isolation profiles, the weakest first."""
    return tuple(PROFILES)


def usual(known: tuple[str, ...]) -> str:
    """The profile that the figures of other programs are compared with."""
    return "standard" if "standard" in known else known[0]


def as_account(name: str) -> dict[str, Any]:
    """Keywords for `Popen`: as root, become this account; else nothing, as there is one account only."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam(name)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@contextmanager
def daemon(
    profile: str = "", environment: Mapping[str, str] = _ENVIRONMENT, program: Sequence[str] = (MAIN,)
) -> Iterator[Daemon]:
    """Start it; end it, by its pid, and remove its folder afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="dagseal-bench-"))
    folder.chmod(0o755)
    process = None
    try:
        (folder / "run").mkdir(mode=0o755)
        (folder / "launcher").mkdir(mode=0o700)
        key, accounts, task_user = SigningKey.generate(), Accounts.choose(), default_user()
        owner = pwd.getpwnam(accounts.notary)
        os.chown(folder / "launcher", owner.pw_uid, owner.pw_gid)
        config = folder / "launcher.toml"
        config.write_text(
            f'[trust]\napi_keys = ["{to_base64(key.public.raw)}"]\n'
            f'[peers]\nrun = ["{accounts.agent}"]\ndescribe = ["{accounts.api}"]\n'
            f'[users]\nallowed = ["{task_user}"]\nbanned = ["root"]\nparser = "{accounts.parser}"\n'
            f'notary = "{accounts.notary}"\n'
            f'[paths]\nsocket = "{folder}/run/launcher.sock"\nstate_dir = "{folder}/launcher"\n'
            + (f'[isolation]\nprofile = "{profile}"\n' if profile else "")
        )
        config.chmod(0o644)
        with (folder / "launcher.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-s", "-P", "-S", *program, "--config", str(config)],
                env=dict(environment),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        started = Daemon(
            profile=profile, folder=folder, process=process, api_key=key, accounts=accounts, task_user=task_user
        )
        _until_it_listens(started)
        yield started
    finally:
        if process is not None:
            end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _until_it_listens(started: Daemon) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
            sock.connect(started.socket)
            return
        if started.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the launcher did not start (profile {started.profile!r}): {started.log[-2000:]}")
        time.sleep(0.02)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to, and wait; killed if it takes too long."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

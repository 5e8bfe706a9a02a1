"""Unix accounts for these suites: made when the first stack starts, gone with everything that still runs as them at the end.

`SERVICE` runs Airflow, and `OWNER` and `OTHER` are whom tasks run as. A sudoers file lets the first become the others, as
Airflow's own `run_as_user` wants it; only the suites of plain Airflow make it.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVICE, OWNER, OTHER = "dagseal-e2e-af", "dagseal-e2e-u", "dagseal-e2e-v"
SUDOERS = Path("/etc/sudoers.d/dagseal-e2e")
_LOCK = Path("/run/dagseal-e2e.lock")
_END_SECONDS = 20.0


@contextmanager
def made() -> Iterator[None]:
    """All three, for one session at a time. One that an interrupted run left behind is taken over."""
    with _LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield from _made()


def _made() -> Iterator[None]:
    for name in (SERVICE, OWNER, OTHER):
        if not exists(name):
            subprocess.run(["useradd", "--system", "--no-create-home", "--shell", "/bin/sh", name], check=True)
    try:
        yield
    finally:
        for name in (SERVICE, OWNER, OTHER):
            end_all(name)
            subprocess.run(["userdel", name], check=True, capture_output=True)


@contextmanager
def sudo() -> Iterator[None]:
    """What plain Airflow needs for `run_as_user`."""
    fd = os.open(SUDOERS, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o440)
    with os.fdopen(fd, "w") as file:
        file.write(f"{SERVICE} ALL=({OWNER},{OTHER}) NOPASSWD:SETENV: ALL\n")
    try:
        yield
    finally:
        SUDOERS.unlink()


def exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def processes(name: str) -> list[int]:
    """The pids of what runs as this account."""
    uid = pwd.getpwnam(name).pw_uid
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and entry.stat().st_uid == uid and not _zombie(entry):
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def ancestors(pid: int) -> Iterator[int]:
    """The parent, its parent and so on, as far as they live."""
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            return
        yield pid


def end_all(name: str) -> None:
    """Kill what runs as this account, which is ours alone, until nothing does."""
    deadline = time.monotonic() + _END_SECONDS
    while pids := processes(name):
        assert time.monotonic() < deadline, f"{name} still runs {pids}"
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)


def _zombie(entry: Path) -> bool:
    return (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"

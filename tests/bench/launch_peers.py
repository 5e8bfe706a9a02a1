"""The other ways to run something as somebody else, each started by the same small parent; and why one cannot be measured."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PACKAGES = {"sudo": "sudo", "setpriv": "util-linux", "bwrap": "bubblewrap"}
SUDO = "sudo -n -u {user} true"
SETPRIV = "setpriv --reuid {user} --regid {group} --init-groups true"
BWRAP = "setpriv --reuid {user} --regid {group} --init-groups bwrap --unshare-all --ro-bind / / true"
FORK = "fork, setresuid, first instruction"
FORK_EXIT = "fork, setresuid, exit"


@dataclass(slots=True)
class Peers:
    """The small parent. `commands` can be run here; `missing` says of the others why not."""

    process: subprocess.Popen[str]
    user: str
    commands: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def run(self, name: str) -> list[float]:
        """Seconds: from the request to the exit; of the fork first to its first instruction."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(self.commands[name]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the small parent died over {name}")
        return [float(value) for value in json.loads(line)]


@contextmanager
def peers(user: str) -> Iterator[Peers]:
    """Find out what can be measured here as `user`, and start the parent."""
    parent = Path(__file__).with_name("launch_parent.py")
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(parent)],
        env={"PATH": os.defpath + ":/usr/sbin:/sbin", "LANG": "C.UTF-8"},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    found = Peers(process, user)
    try:
        entry = pwd.getpwnam(user)
        for line in (SUDO, SETPRIV, BWRAP):
            words = line.format(user=user, group=grp.getgrgid(entry.pw_gid).gr_name).split()
            if why := _why_not(words):
                found.missing[line] = why
            else:
                found.commands[line] = words
        if os.geteuid() == 0:
            found.commands[FORK] = {"uid": entry.pw_uid, "gid": entry.pw_gid}
        else:
            found.missing[FORK] = "not measured: needs root"
        yield found
    finally:
        if process.stdin:
            process.stdin.close()
        process.wait(30)


def _why_not(words: list[str]) -> str:
    for program in _PACKAGES.keys() & set(words):
        if not shutil.which(program) and not _install(_PACKAGES[program]):
            return f"not measured: there is no {program} here (Debian: {_PACKAGES[program]})"
    done = subprocess.run(words, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd="/")
    return "" if done.returncode == 0 else f"not measured: {done.stderr.strip()[:200]}"


def _install(package: str) -> bool:
    """As root on Debian; whether it worked."""
    apt = shutil.which("apt-get")
    if os.geteuid() != 0 or not apt:
        return False
    more = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", package]):
        done = subprocess.run([apt, *arguments], env=more, check=False, capture_output=True)
    return done.returncode == 0

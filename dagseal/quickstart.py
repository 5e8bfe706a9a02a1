"""`dagseal quickstart`: the whole story on one machine, with real processes, in a minute.

Push, launch as somebody else, the connection arriving; then one flipped bit in the cache: verify FAILS, the launch is refused.
Every line after a `$` is a command of ours that really ran.
"""

from __future__ import annotations

import os
import pwd
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dagseal.footing import free_port
from dagseal.stack import Stack
from integrity.errors import SettingsError

_DAG = Path(__file__).with_name("quickstart_dag.py")
_PASSWORD = "correct-horse-battery-staple"  # noqa: S105 - a made-up connection of a made-up warehouse


@dataclass(slots=True)
class Story:
    """Runs commands, shows them, and stops at the first that does not end as told."""

    stack: Stack
    say: Callable[[str], None]

    def run(self, *arguments: str, expect: int = 0, stdin: str | None = None) -> str:
        """One command of the command line. Raises `SettingsError` when it ends with another code."""
        self.say(f"$ dagseal {shlex.join(arguments)}")
        answer = subprocess.run(
            [sys.executable, "-s", "-P", "-m", "dagseal.cli.app", *arguments],
            env=self.stack.environment(NO_COLOR="1", COLUMNS="140"),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        for line in (answer.stdout + answer.stderr).rstrip().splitlines():
            self.say(f"  {line}")
        if answer.returncode:
            self.say(f"  exit code {answer.returncode}")
        if answer.returncode != expect:
            raise SettingsError(f"the quickstart expected exit code {expect}; logs are in {self.stack.folder}")
        return answer.stdout

    def tell(self) -> None:
        """The story, start to end."""
        user, folder = self.stack.task_user, self.stack.folder
        dag = folder / "quickstart.py"
        dag.write_bytes(_DAG.read_bytes())

        self.say("\n# A connection, granted to the owner; and the rule that lets the owner's DAGs run as " + user)
        self.run("connection", "set", "warehouse", stdin=f"postgres://etl:{_PASSWORD}@db.example.com/sales")
        self.run("connection", "grant", "warehouse", "--to", "admin")
        self.run("impersonation", "allow", "admin", "--dag", "*", "--as-user", user)

        self.say(f"\n# Push the DAG; launch its task as {user}; the connection arrives through the pipe")
        self.run("push", str(dag))
        self.run("verify", str(dag))
        self.run("launch", "quickstart", "hello", "--run-id", "first", "--as-user", user, "--follow")

        self.say("\n# Flip one bit of the cached DAG, as somebody who got into the worker's cache would")
        blob = flip_one_bit(self.stack.cache)
        self.say(f"  flipped bit 0 of byte 100 of {blob.relative_to(folder)}")
        self.run("verify", "--cache", str(self.stack.cache), expect=1)
        self.run("launch", "quickstart", "hello", "--run-id", "second", "--as-user", user, "--follow", expect=7)

        self.say("\n# The damaged copy was set aside and is fetched again: the next launch runs")
        self.run("launch", "quickstart", "hello", "--run-id", "third", "--as-user", user, "--follow")
        self.run("audit", "tail", "--limit", "8")


def flip_one_bit(cache: Path) -> Path:
    """Change the only cached blob; its path."""
    blobs = [path for path in (cache / "sha512").rglob("*") if path.is_file()]
    if len(blobs) != 1:
        raise SettingsError(f"expected one cached blob, found {len(blobs)}")
    data = bytearray(blobs[0].read_bytes())
    data[100] ^= 1
    blobs[0].chmod(0o600)
    blobs[0].write_bytes(bytes(data))
    return blobs[0]


def quickstart(folder: Path, *, port: int | None, as_user: str | None, keep: bool, say: Callable[[str], None]) -> int:
    """Start everything and tell the story; with `keep`, serve until SIGTERM instead. Returns the exit code."""
    folder = folder.absolute()
    stack = Stack(
        folder=folder, port=port or free_port(), task_user=as_user or default_user(), log=lambda line: say(f"  {line}")
    )
    say(f"# Starting dagseal in {folder}")
    for line in stack.missing():
        say(f"  NOT PROMISED HERE: {line}")
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        stack.prepare()
        stack.start()
        if keep:
            _allow(stack)
            say(f"ready {stack.url}")
            ended.wait()
        else:
            Story(stack, say).tell()
            say("\n# All of it was as it should be.")
    finally:
        stack.stop()
    return 0


def default_user() -> str:
    """`nobody` when root, else whoever runs this."""
    return "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


def _allow(stack: Stack) -> None:
    """A kept quickstart can launch at once: its administrator's DAGs may run as the task user."""
    Story(stack, lambda line: None).run("impersonation", "allow", "admin", "--dag", "*", "--as-user", stack.task_user)

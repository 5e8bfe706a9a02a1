"""The command line, each command a process forked from one that has imported it all: to start an interpreter for each of many
hundred commands is most of what they would take. A process of its own is `python -m dagseal`, as in the tests of starting it.

Run as a program it carries out what stands on its input, a JSON line each, one after the other, and answers with exit codes.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

_STREAMS = ("stdin", "stdout", "stderr")


class Forked:
    """Ends with the test session: its input does."""

    def __init__(self) -> None:
        command = [sys.executable, "-s", "-m", "tests.forked_cli"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
        )

    def __call__(self, words: list[str], environment: dict[str, str], stdin: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of one command."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with tempfile.TemporaryDirectory() as made:
            streams = [Path(made) / name for name in _STREAMS]
            streams[0].write_text(stdin)
            asked = {"words": words, "environment": environment, "folder": os.getcwd(), "streams": [*map(str, streams)]}
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            code = int(self._process.stdout.readline())
            return code, streams[1].read_text(), streams[2].read_text()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def _carry_out(words: list[str], environment: dict[str, str], folder: str, streams: list[str]) -> NoReturn:
    for number, path in enumerate(streams):
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["dagseal", *words]
    from dagseal.cli.app import main

    main()


def serve() -> None:
    import dagseal.cli

    for found in pkgutil.walk_packages(dagseal.cli.__path__, "dagseal.cli."):
        importlib.import_module(found.name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _carry_out(**json.loads(line))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()

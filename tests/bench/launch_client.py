"""The caller's process (`tests.bench.launch_caller`) as its parent sees it: started as the agent's account, given orders."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from integrity.fields import to_base64
from tests.bench.launch_caller import ANSWER_SECONDS, Timed
from tests.bench.launch_daemon import Daemon, as_account
from tests.bench.launch_documents import ARCHIVE, SOURCE, release
from tests.bench.measures import ROOT


class Client:
    """One of them. `close` ends it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @classmethod
    def start(cls, daemon: Daemon, manifest: bytes) -> Client:
        process = subprocess.Popen(
            [sys.executable, "-s", "-m", "tests.bench.launch_caller"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **as_account(daemon.accounts.agent),
        )
        client = cls(process)
        client.order(
            socket=daemon.socket,
            api_key=daemon.api_key.seed.hex(),
            manifest=to_base64(manifest),
            unix_user=daemon.task_user,
        )
        client.answer()
        return client

    def order(self, **what: Any) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the client's process ended; its last words are above")
        return json.loads(line)

    def launch(self) -> Timed:
        self.order(do="launch")
        return Timed(**self.answer())

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(ANSWER_SECONDS)


@contextmanager
def client(daemon: Daemon) -> Iterator[Client]:
    """One client of a launcher that has described the archive."""
    with clients(daemon, 1) as (only,):
        yield only


@contextmanager
def clients(daemon: Daemon, count: int) -> Iterator[list[Client]]:
    """Several, each a process of its own."""
    manifest = release(daemon.describe(ARCHIVE, SOURCE), daemon.api_key)
    started: list[Client] = []
    try:
        for _ in range(count):
            started.append(Client.start(daemon, manifest))
        yield started
    finally:
        for one in started:
            one.close()

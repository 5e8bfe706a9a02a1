"""Replicas: one serves, the others wait; whoever serves is the only one, whatever was killed."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import pytest
from test_api_crowd import port_of

from tests.postgres import Server

_SECONDS = 30


class Replica:
    """A real process. `log` is a file that one can wait for words in."""

    def __init__(self, folder: Path, state: Path) -> None:
        self.config, self._log = folder / "api.toml", folder / "log"
        self.config.write_text(
            f'[api]\nport = 0\nstandby = true\nstate_folder = "{state}"\nlauncher_socket = "{folder}/none.sock"\n'
        )
        self.process: subprocess.Popen[bytes] | None = None

    def bootstrap(self) -> str:
        command = [sys.executable, "-m", "submit_api", "--config", str(self.config), "--bootstrap"]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "submit_api", "--config", str(self.config)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        return self.process

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(_SECONDS)

    def says(self, word: str) -> None:
        """Return once the log has it."""
        while word not in self._log.read_text():
            assert self.process is not None
            with pytest.raises(subprocess.TimeoutExpired):  # it lives
                self.process.wait(0.05)

    async def workers(self, token: str) -> int:
        assert self.process is not None
        url = f"http://127.0.0.1:{port_of(self.process, str(self._log))}/v1/workers"
        async with aiohttp.ClientSession() as http, http.get(url, headers={"Authorization": f"Bearer {token}"}) as got:
            return got.status


@pytest.fixture
def pair(tmp_path: Path, database: str) -> Iterator[tuple[Replica, Replica, str]]:
    """The second has the first one's keys; on SQLite they have one state folder, on PostgreSQL each its own."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    shared = database == "sqlite"
    states = [tmp_path / "state", tmp_path / "state"] if shared else [folder / "state" for folder in folders]
    one, two = (Replica(folder, state) for folder, state in zip(folders, states, strict=True))
    token = one.bootstrap()
    if not shared:
        states[1].mkdir(mode=0o700)
        shutil.copytree(states[0] / "keys", states[1] / "keys")
    with ExitStack() as stack:
        for replica in (one, two):
            stack.callback(replica.kill)
        yield one, two, token


async def test_the_second_waits_and_takes_over_when_the_first_is_killed(pair: tuple[Replica, Replica, str]) -> None:
    one, two, token = pair
    first, second = one.start(), None
    one.says('"ready"')
    second = two.start()
    two.says('"standby"')
    assert await one.workers(token) == 200
    assert '"ready"' not in two._log.read_text(), "two serve one state"
    first.kill()
    first.wait(_SECONDS)
    two.says('"ready"')
    assert await two.workers(token) == 200
    second.send_signal(signal.SIGTERM)
    assert second.wait(_SECONDS) == 0


async def test_one_that_waits_can_be_stopped(pair: tuple[Replica, Replica, str]) -> None:
    one, two, _ = pair
    one.start()
    one.says('"ready"')
    second = two.start()
    two.says('"standby"')
    second.send_signal(signal.SIGTERM)
    assert second.wait(_SECONDS) == 0


@pytest.mark.postgresql
async def test_one_that_was_cut_off_from_the_database_ends_when_another_took_its_place(
    pair: tuple[Replica, Replica, str], postgres_server: Server
) -> None:
    one, two, token = pair
    first = one.start()
    one.says('"ready"')
    two.start()
    two.says('"standby"')
    holder = f"application_name LIKE 'dagseal {first.pid} %'"
    while '"ready"' not in two._log.read_text():
        postgres_server.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {holder}")
        assert '"taken_over"' not in two._log.read_text()
    assert first.wait(_SECONDS) == 75
    assert await two.workers(token) == 200

"""A real PostgreSQL for tests: Debian's binaries in a temporary folder, for as long as the test session lasts.

It listens on a unix socket only, asks for a password, syncs as it does in production, and dies with its parent. Each test
gets a database of its own, copied from one with the tables in it.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg

from submit_api.registry import migrate
from submit_api.registry.database import Database
from submit_api.settings import DatabaseSection

FOLDERS = "/usr/lib/postgresql"
_START_SECONDS = 60
_SETTINGS = {"listen_addresses": "", "shared_buffers": "32MB", "max_connections": "60", "max_wal_size": "256MB"}


def binaries() -> Path | None:
    """The newest installed server's."""
    found = [path for path in Path(FOLDERS).glob("*/bin") if (path / "initdb").exists()]
    return max(found, key=lambda path: float(path.parent.name), default=None)


class Server:
    """A running one. `make` gives the URL of a new database."""

    def __init__(self, folder: Path, bin_folder: Path) -> None:
        self.folder, self._bin = folder, bin_folder
        self.password = secrets.token_hex(16)
        self._count = 0

    def start(self) -> None:
        secret = self.folder / "password"
        secret.write_text(self.password)
        self._own(self.folder, secret)
        cluster = self.folder / "cluster"
        initdb = ["initdb", "-D", str(cluster), "-U", "postgres", "-A", "scram-sha-256", f"--pwfile={secret}"]
        made = self._run([*initdb, "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"])
        assert made.returncode == 0, made.stderr
        self.up()
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, self._template()).result()

    def up(self, **changed: str) -> None:
        settings = [word for name, value in {**_SETTINGS, **changed}.items() for word in ("-c", f"{name}={value}")]
        command = ["postgres", "-D", str(self.folder / "cluster"), "-k", str(self.folder), *settings]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self._become(), str(self._bin / command[0]), *command[1:]], stdout=log, stderr=log, cwd="/"
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self.sql("SELECT 1")
                return
            except (OSError, asyncpg.CannotConnectNowError):
                assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.02)

    def down(self, number: int = signal.SIGINT) -> None:
        """SIGINT: at once, with every connection; SIGQUIT: as a crash."""
        self.process.send_signal(number)
        self.process.wait(_START_SECONDS)

    def url(self, database: str, user: str = "postgres", password: str | None = None) -> str:
        word = self.password if password is None else password
        return f"postgresql://{user}:{word}@/{database}?host={quote(str(self.folder), safe='')}"

    def make(self, template: str = "with_tables", how: str = "") -> str:
        """The URL of a new database: with the tables in it, or empty, from `template0`."""
        self._count += 1
        name = f"t{self._count}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template} {how}")
        return self.url(name)

    def make_empty(self) -> str:
        return self.make("template0", "ENCODING 'UTF8' LOCALE 'C'")

    def drop(self, url: str) -> None:
        self.sql(f"DROP DATABASE {name_of(url)} WITH (FORCE)")

    def sql(self, statement: str, database: str = "postgres") -> Any:
        """Carry out one statement as the superuser; also below a running event loop, hence the thread."""
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, self.execute(statement, database)).result()

    async def execute(self, statement: str, database: str = "postgres") -> Any:
        connection = await asyncpg.connect(self.url(database), timeout=10)
        try:
            return await connection.fetch(statement)
        finally:
            await connection.close()

    async def _template(self) -> None:
        await self.execute("CREATE DATABASE with_tables TEMPLATE template0 LOCALE 'C' ENCODING 'UTF8'")
        database = Database(DatabaseSection(url=self.url("with_tables")))
        await migrate.upgrade(database)
        await database.close()

    def _become(self) -> list[str]:
        """The words before a command: initdb and postgres refuse to be root."""
        words = ["setpriv", "--pdeathsig=INT"]
        return [*words, "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else words

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        words = [*self._become(), str(self._bin / command[0]), *command[1:]]
        return subprocess.run(words, capture_output=True, text=True, check=False, cwd="/", timeout=_START_SECONDS)

    def _own(self, *paths: Path) -> None:
        for path in paths:
            path.chmod(0o700 if path.is_dir() else 0o600)
            if os.geteuid() == 0:
                account = pwd.getpwnam("postgres")
                os.chown(path, account.pw_uid, account.pw_gid)


def name_of(url: str) -> str:
    """The database's name in one of our URLs."""
    return url.rpartition("/")[2].partition("?")[0]


def why_not() -> str:
    """What is missing for a server; empty when nothing is."""
    if binaries() is None:
        return f"no PostgreSQL server in {FOLDERS}: apt-get install postgresql"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "no account postgres, and PostgreSQL refuses to be root"
    return ""


@contextmanager
def running(kind: type[Server] = Server) -> Iterator[Server]:
    found = binaries()
    assert found is not None
    folder = Path(tempfile.mkdtemp(prefix="dagseal-pg-", dir="/tmp"))
    server = kind(folder, found)
    try:
        server.start()
        yield server
    finally:
        if hasattr(server, "process") and server.process.poll() is None:
            server.down()
        shutil.rmtree(folder, ignore_errors=True)

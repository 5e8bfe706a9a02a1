"""A real Airflow with a home and a SQLite database of its own, and an agent played by a thread that speaks `releases.sock`."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from integrity import canonical, messages
from integrity.digests import Digest
from integrity.messages import Message

HERE = Path(__file__).parent
ROOT = HERE.parent
DEADLINE_SECONDS = 60
BUNDLE = {"name": "dagseal", "classpath": "dagseal.airflow.SealedBundle", "kwargs": {"archives": ["*"]}}


class Agent:
    """Gives out `active`, as the agent does of what is active in the log. `refusing` is the words of a refusal, or empty. The
    next folder that is given out is `spoilt` before anybody looks into it."""

    def __init__(self, folder: Path) -> None:
        self.active: dict[str, tuple[int, bytes]] = {}
        self.refusing = ""
        self.spoilt: Callable[[Path], object] | None = None
        self.questions: list[tuple[str, dict[str, Any]]] = []
        self.sets: dict[str, dict[str, tuple[int, bytes]]] = {}
        self._trees = folder / "trees"
        self._trees.mkdir()
        self.socket = str(folder / "releases.sock")
        self._lock = threading.Lock()
        self._watching: list[socket.socket] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(self.socket)
        self._listening.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    def push(self, **files: str | bytes) -> str:
        """`etl__py` stands for etl.py. The new set's digest."""
        with self._lock:
            for key, data in files.items():
                name = key.replace("__", ".")
                number = self.active[name][0] + 1 if name in self.active else 1
                self.active[name] = (number, data.encode() if isinstance(data, str) else data)
            digest = self._set()
            for peer in list(self._watching):
                self._tell(peer, digest)
            return digest

    def drop(self, name: str) -> str:
        with self._lock:
            del self.active[name]
            digest = self._set()
            for peer in list(self._watching):
                self._tell(peer, digest)
            return digest

    def close(self) -> None:
        self._listening.close()
        for peer in self._watching:
            peer.close()

    def folder_of(self, digest: str) -> Path:
        """Looked through, and made again where it is not what it was."""
        files = {name: data for name, (_, data) in self.sets[digest].items()}
        for found in self._trees.glob(f"{digest[:16]}-*"):
            if {path.name: path.read_bytes() for path in found.iterdir() if path.is_file()} == files:
                return found
            shutil.rmtree(found)
        made = self._trees / f"{digest[:16]}-{secrets.token_hex(8)}"
        made.mkdir()
        for name, data in files.items():
            (made / name).write_bytes(data)
            (made / name).chmod(0o444)
        made.chmod(0o555)
        return made

    def _set(self) -> str:
        releases = [
            {"archive": name, "number": number, "digest": str(Digest.of(data))}
            for name, (number, data) in sorted(self.active.items())
        ]
        digest = Digest.of(canonical.dump({"v": 1, "releases": releases})).hex
        self.sets[digest] = dict(self.active)
        return digest

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listening.accept()
            except OSError:
                return
            data = peer.recv(65536)
            if data:
                self._answer(peer, messages.decode(data[messages.HEADER_BYTES :]))

    def _answer(self, peer: socket.socket, message: Message) -> None:
        fields = message.fields
        question = {key: fields.take(key) for key in fields.keys()}
        self.questions.append((message.kind, question))
        with self._lock:
            if self.refusing:
                peer.sendall(messages.encode("refused", error="not-found", detail=self.refusing))
                peer.close()
            elif message.kind == "watch":
                self._watching.append(peer)
                self._tell(peer, self._set())
            elif message.kind == "set":
                digest = question["digest"] or self._set()
                if digest in self.sets:
                    folder, spoilt, self.spoilt = self.folder_of(digest), self.spoilt, None
                    if spoilt:
                        spoilt(folder)
                    peer.sendall(messages.encode("set", digest=digest, folder=str(folder)))
                else:
                    peer.sendall(messages.encode("refused", error="not-found", detail="there is no such set"))
                peer.close()
            else:
                number, data = self.active[question["archive"]]
                self._give(peer, question["archive"], number, data)

    def _give(self, peer: socket.socket, name: str, number: int, data: bytes) -> None:
        fd = os.memfd_create("release")
        os.write(fd, data)
        frame = messages.encode(
            "release", fds=1, archive=name, number=number, digest=str(Digest.of(data)), size=len(data), folder=""
        )
        socket.send_fds(peer, [frame], [fd])
        os.close(fd)
        peer.close()

    def _tell(self, peer: socket.socket, digest: str) -> None:
        try:
            peer.sendall(messages.encode("set", digest=digest, folder=""))
        except OSError:
            self._watching.remove(peer)


class Parser:
    """The launcher's side, in a process of its own. `parsed` is what it was asked for."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.socket = str(folder / "launcher.sock")
        self._log = folder / "parser.log"
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "airflow_parsing_peer.py"), self.socket],
            env=environment,
            stdout=self._log.open("wb"),
            cwd=ROOT,
        )
        until(lambda: self._log.read_text().startswith("ready"))

    @property
    def parsed(self) -> list[str]:
        return [line.split()[1] for line in self._log.read_text().splitlines() if line.startswith("parsed ")]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Airflow:
    """`home` has a migrated database."""

    def __init__(self, home: Path, agent_socket: str, launcher_socket: str, **more: str) -> None:
        self.home = home
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")},
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
            "AIRFLOW__CORE__UNIT_TEST_MODE": "false",
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([BUNDLE]),
            "AIRFLOW__DAGSEAL__RELEASES_SOCKET": agent_socket,
            "AIRFLOW__DAGSEAL__LAUNCHER_SOCKET": launcher_socket,
            "PYTHONPATH": str(ROOT),
            **more,
        }

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        database = sqlite3.connect(self.home / "airflow.db", timeout=30)
        try:
            return database.execute(statement).fetchall()
        finally:
            database.close()

    def run(self, program: str, **more: str) -> str:
        """The stdout of a Python program in a process of its own."""
        found = subprocess.run(
            [sys.executable, "-c", program], env=self.environment | more, capture_output=True, text=True, cwd=ROOT
        )
        assert found.returncode == 0, found.stderr[-4000:]
        return found.stdout

    def processor(self, log: Path, *words: str, **more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "dagseal", "dag-processor", *words],
            env=self.environment | more,
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            cwd=ROOT,
        )


def migrate(home: Path) -> None:
    Airflow(home, "/x", "/x").run("from airflow.utils.db import initdb; initdb()")


def until(found: Callable[[], Any], seconds: float = DEADLINE_SECONDS) -> Any:
    """What it gives when it is true at last."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return value

"""Real brokers for Celery: Redis that syncs each write, and RabbitMQ; on the hub's address, gone with everything they wrote."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from tests.whole_airflow.network import HUB

_START_SECONDS = 90.0


@dataclass(slots=True)
class Redis:
    folder: Path
    port: int = 6379
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://{HUB}:{self.port}/0"

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        shutil.chown(self.folder, "redis", "redis")
        words = ["redis-server", "--bind", HUB, "--port", str(self.port), "--dir", str(self.folder)]
        more = ["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--protected-mode", "no"]
        self.process = _spawn([*words, *more], "redis", self.folder / "log", {})
        _until_listening(self.port, self.process)
        # It answers "loading" until it has read what it wrote.
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                if self.client().ping():
                    return
            except redis.exceptions.RedisError:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def client(self) -> Any:
        return redis.Redis(host=HUB, port=self.port)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    stop = kill


@dataclass(slots=True)
class Rabbit:
    folder: Path
    port: int = 5672
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"amqp://e2e:e2e@{HUB}:{self.port}//"

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        shutil.chown(self.folder, "rabbitmq", "rabbitmq")
        self.environment = {
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": "dagseal-e2e@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": HUB,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        }
        self.process = _spawn(
            ["/usr/lib/rabbitmq/bin/rabbitmq-server"], "rabbitmq", self.folder / "log", self.environment
        )
        _until_listening(self.port, self.process)
        self._control("await_startup")
        if b"e2e" not in self._control("list_users"):
            self._control("add_user", "e2e", "e2e")
            self._control("set_permissions", "e2e", ".*", ".*", ".*")

    def kill(self) -> None:
        """Its whole session: the shell and Erlang's virtual machine."""
        assert self.process is not None
        _kill_session(self.process.pid)
        self.process.wait()

    def stop(self) -> None:
        self.kill()
        # Erlang's port mapper, which it started, and which outlives it.
        for pid in _of_account("rabbitmq"):
            os.kill(pid, signal.SIGKILL)

    def _control(self, *words: str) -> bytes:
        answer = subprocess.run(
            ["/usr/lib/rabbitmq/bin/rabbitmqctl", *words],
            env={**_environment(), **self.environment},
            capture_output=True,
            check=True,
            timeout=_START_SECONDS,
            cwd="/",
            **_who("rabbitmq"),
        )
        return answer.stdout


def _spawn(command: list[str], account: str, log: Path, more: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            env={**_environment(), **more},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            **_who(account),
        )


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def _who(account: str) -> dict[str, Any]:
    entry = pwd.getpwnam(account)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _until_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        with socket.socket() as sock:
            if sock.connect_ex((HUB, port)) == 0:
                return
        assert process.poll() is None and time.monotonic() < deadline, f"the broker on port {port} did not start"
        time.sleep(0.05)


def _kill_session(leader: int) -> None:
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and os.getsid(int(entry.name)) == leader:
                os.kill(int(entry.name), signal.SIGKILL)
        except ProcessLookupError:
            continue


def _of_account(name: str) -> list[int]:
    """In our network: what the host itself runs as this account is not ours."""
    own, uid = os.readlink("/proc/self/ns/net"), pwd.getpwnam(name).pw_uid
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and entry.stat().st_uid == uid and os.readlink(entry / "ns" / "net") == own:
                found.append(int(entry.name))
        except OSError:
            continue
    return found

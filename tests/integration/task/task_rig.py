"""Plays the launcher's side towards real warm processes and their real tasks: sockets, sealed memfds, pipes.

Nothing here checks anything that the launcher would check; the tests do.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pwd
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dagseal.airflow import asking
from integrity import messages
from integrity.digests import Digest
from launcher.isolation import PROFILES, Confinement
from vocabulary import logrecords
from vocabulary.grants import Secrets

ROOT = Path(__file__).parents[3]
BECOME = str(ROOT / "launcher" / "become.py")
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
DEADLINE_SECONDS = 120
# What an operator may let through by name, for the tests of that.
ENVIRONMENT = {"AIRFLOW_CONN_LEGACY_DB": "postgres://u:legacysecret@h/db", "AIRFLOW_VAR_REGION": "eu-west"}
NOBODY = 65534
USER = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


def send(sock: socket.socket, kind: str, *, fds: tuple[int, ...] = (), **fields: Any) -> None:
    asking.send(sock, messages.encode(kind, fds=len(fds), **fields), *fds)


def confinement(profile: str = "minimal", **changes: Any) -> Confinement:
    """That profile, with the network and nothing of the operator's."""
    usual: dict[str, Any] = {"network": True, "readable": (), "writable": (), "tcp_ports": (), "tmp_bytes": 1 << 26}
    return Confinement(profile=PROFILES[profile], **usual | changes)


def receive(sock: socket.socket) -> tuple[str, dict[str, Any]]:
    """Kind and fields. Raises `EOFError`."""
    header = _exactly(sock, messages.HEADER_BYTES)
    body = json.loads(_exactly(sock, messages.body_length(header)))
    body.pop("fds")
    return body.pop("kind"), body


def _exactly(sock: socket.socket, size: int) -> bytes:
    taken = b""
    while len(taken) < size:
        chunk = sock.recv(size - len(taken))
        if not chunk:
            raise EOFError(f"the other end closed after {len(taken)} of {size} bytes")
        taken += chunk
    return taken


def sealed(data: bytes, *, seals: int = SEALS) -> int:
    fd = os.memfd_create("archive", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def wait_until(done: Callable[[], bool], what: str) -> None:
    """For what no descriptor tells of: a zombie that is reaped, a folder that is removed."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not done():
        assert time.monotonic() < deadline, what
        select.select([], [], [], 0.005)


def gone(pid: int) -> bool:
    """Whether it ended and was reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def zipped(members: dict[str, str | bytes]) -> bytes:
    """A zip as `vocabulary.archives` accepts it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(members.items()):
            info = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return out.getvalue()


@dataclass
class Answer:
    """What a task said last, and its log: all of it for reading, and what came on each of its three pipes."""

    kind: str
    fields: dict[str, Any]
    streams: dict[str, str]
    task_digest: str = ""
    pid: int = 0

    @property
    def log(self) -> str:
        lines = self.streams["log"].splitlines()
        return self.streams["stdout"] + self.streams["stderr"] + "".join(logrecords.readable(line) for line in lines)

    @property
    def state(self) -> str:
        return str(self.fields.get("state"))

    @property
    def tasks(self) -> dict[tuple[str, str], dict[str, Any]]:
        return {(dag["dag_id"], task["task_id"]): task for dag in self.fields["dags"] for task in dag["tasks"]}

    def xcom(self, key: str = "return_value") -> Any:
        return json.loads({one["key"]: one["value"] for one in self.fields["xcoms"]}[key])


@dataclass
class Grant:
    """What the secrets pipe brings; None as `secrets` closes the pipe without a byte."""

    connections: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    xcoms: tuple[dict[str, Any], ...] = ()
    run: dict[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        return Secrets(
            connections=self.connections, variables=self.variables, xcoms=self.xcoms, run=self.run
        ).to_bytes()


class Task:
    """One fork, up to its control socket's end."""

    def __init__(self, warm: Warm) -> None:
        self.control, theirs = socket.socketpair()
        self.control.settimeout(DEADLINE_SECONDS)
        self.control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        secrets, self.secrets_fd = os.pipe()
        pipes = {source: os.pipe() for source in ("stdout", "stderr", "log")}
        writes = [write for _, write in pipes.values()]
        send(warm.control, "fork", fds=(theirs.fileno(), secrets, *writes))
        for fd in (secrets, *writes):
            os.close(fd)
        theirs.close()
        self._streams = {source: bytearray() for source in pipes}
        self._readers = [
            threading.Thread(target=self._read_log, args=(fd, self._streams[source]), daemon=True)
            for source, (fd, _) in pipes.items()
        ]
        for reader in self._readers:
            reader.start()
        kind, fields = receive(warm.control)
        assert kind == "forked", kind
        self.pid = self._sender()
        self.control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        self.hello = receive(self.control)
        # A warm process in a pid namespace knows its forks by other numbers.
        assert warm.namespaces or self.pid == fields["pid"]

    def _sender(self) -> int:
        """Who speaks, by its number here; nothing is taken from the socket."""
        size = struct.calcsize("3i")
        said, ancillary, _, _ = self.control.recvmsg(1, socket.CMSG_SPACE(size), socket.MSG_PEEK)
        if not said:
            raise EOFError(f"the task said no hello: {self._said()}")
        ((_, _, credentials),) = ancillary
        return int(struct.unpack("3i", credentials)[0])

    def ask(self, data: bytes, *, seals: int = SEALS, code: int | None = None, **job: Any) -> None:
        """The job, with the archive beside it, and where code was given to that too."""
        archive = sealed(data, seals=seals)
        send(self.control, "job", fds=(archive,) if code is None else (archive, code), **job)
        os.close(archive)

    def _read_log(self, fd: int, into: bytearray) -> None:
        with open(fd, "rb", buffering=0) as pipe:
            while chunk := pipe.read(65536):
                into += chunk

    def said(self, source: str) -> bytes:
        """What came on that pipe so far."""
        return bytes(self._streams[source])

    def _said(self) -> dict[str, str]:
        for reader in self._readers:
            reader.join(DEADLINE_SECONDS)
        return {source: said.decode(errors="replace") for source, said in self._streams.items()}

    def send_secrets(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError), open(self.secrets_fd, "wb") as pipe:
            self.secrets_fd = -1
            pipe.write(data)

    def close(self) -> dict[str, str]:
        """End the task as the launcher does; what came on each pipe of its log."""
        if self.secrets_fd >= 0:
            os.close(self.secrets_fd)
            self.secrets_fd = -1
        self.control.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        return self._said()


class Warm:
    """A warm process as the launcher starts it: by `launcher/become.py`, in a clean environment, with one inherited descriptor.
    Started by root it becomes nobody. With `unprivileged` nobody starts it, as a launcher without privileges would; so it is
    too where the tests are not root, for their own account."""

    def __init__(
        self,
        purpose: str,
        profile: str = "minimal",
        *,
        environment: dict[str, str] | None = None,
        unprivileged: bool = False,
        **changes: Any,
    ) -> None:
        chosen = confinement(profile, **changes)
        self.profile, self.namespaces = profile, chosen.profile.namespaces
        alone = unprivileged or os.geteuid() != 0
        who = ["-"] if alone else [str(NOBODY), str(NOBODY), ""]
        self.control, theirs = socket.socketpair()
        self.control.settimeout(DEADLINE_SECONDS)
        self.home = tempfile.mkdtemp(prefix="dagseal-home-")
        os.chmod(self.home, 0o1777)
        self.environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "AIRFLOW_HOME": f"{self.home}/not-there",
            "HOME": self.home,
            "USER": USER,
            "LOGNAME": USER,
            **(environment or {}),
        }
        what = ["3", str(os.getpid()), purpose, chosen.to_json()]
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.dup2(theirs.fileno(), 63)
                os.dup2(63, 3)
                os.closerange(4, 64)
                os.chdir("/")
                if alone and os.geteuid() == 0:
                    os.setgroups([])
                    os.setresgid(NOBODY, NOBODY, NOBODY)
                    os.setresuid(NOBODY, NOBODY, NOBODY)
                os.execve(sys.executable, [sys.executable, "-s", "-P", "-S", BECOME, *what, *who], self.environment)
            finally:
                os._exit(127)
        theirs.close()
        kind, fields = receive(self.control)
        assert kind == "warm", kind
        self.airflow_version = str(fields["airflow_version"])

    def close(self) -> int:
        """The exit status after the control socket closed."""
        self.control.close()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        shutil.rmtree(self.home, ignore_errors=True)
        return status

    def describe(self, name: str, data: bytes, *, variant: int = 0, **extra: Any) -> Answer:
        return self.look("describe", name, data, variant=variant, **extra)

    def look(self, job: str, name: str, data: bytes, **extra: Any) -> Answer:
        task = Task(self)
        task.ask(data, job=job, name=name, digest=str(Digest.of(data)), members=None, **extra)
        return _last(task)

    def run(
        self,
        name: str,
        data: bytes,
        dag_id: str,
        task_id: str,
        grant: Grant | None = Grant(),  # noqa: B008 - never changed
        code: int | None = None,
        supervisor: socket.socket | None = None,
        **changes: Any,
    ) -> Answer:
        """With `supervisor`, the task's end of its socket, which is closed here, it is a supervised launch."""
        task = Task(self)
        changes = {"supervised": supervisor is not None, **changes}
        task.ask(data, code=code, **run_job(name, data, dag_id, task_id, **changes))
        try:
            kind, fields = receive(task.control)
        except EOFError:
            return Answer("eof", {}, task.close(), pid=task.pid)
        if kind != "ready":
            return Answer(kind, fields, task.close(), pid=task.pid)
        if supervisor is not None:
            send(task.control, "supervisor", fds=(supervisor.fileno(),))
            supervisor.close()
        task.send_secrets(grant.to_bytes() if grant else b"")
        answer = _last(task)
        answer.task_digest = fields["task_digest"]
        return answer

    def compile(self, name: str, data: bytes) -> tuple[Answer, int]:
        """What it says, and the sealed memfd into which it wrote."""
        task, code = Task(self), os.memfd_create("code", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        task.ask(data, code=code, job="compile", name=name, digest=str(Digest.of(data)), members=None)
        answer = _last(task)
        fcntl.fcntl(code, fcntl.F_ADD_SEALS, SEALS)
        return answer, code


def run_job(name: str, data: bytes, dag_id: str, task_id: str, **changes: Any) -> dict[str, Any]:
    job = {
        "job": "run",
        "name": name,
        "digest": str(Digest.of(data)),
        "members": None,
        "dag_id": dag_id,
        "task_id": task_id,
        "run_id": "manual__2026-01-31T00:00:00+00:00",
        "map_index": -1,
        "try_number": 1,
        "queue": "default",
        "unix_user": USER,
        "supervised": False,
    }
    return job | changes


def _last(task: Task) -> Answer:
    try:
        kind, fields = receive(task.control)
    except EOFError:
        return Answer("eof", {}, task.close(), pid=task.pid)
    return Answer(kind, fields, task.close(), pid=task.pid)

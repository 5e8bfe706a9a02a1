"""The supervisor's end of the agent's `tasks.sock`, blocking: one connection is one task.

    → launch {task_instance, dag_id, task_id, run_id, map_index, try_number} + 1 fd    the task's end of the requests
    ← offered {launch_id, archive, release, digest, unix_user, xcom_dags}    → start {}    → cancel {grace_seconds}
    ← log {data} …     ← ended {state, error, detail, exit_code}     or, before the claim, ← refused {error, detail}

Promise: what the agent sends is read strictly, and nothing but a whole `ended` says that a task ended well: a connection that
breaks, or nonsense, is `Ended` as lost. Closing the link kills the task, whatever it does.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

from dagseal.airflow.asking import Incoming, send
from integrity import messages
from integrity.errors import FetchError, MalformedError
from integrity.messages import Message
from vocabulary import claims

MAX_LOG_BYTES = 8 * 1024 * 1024
MAX_GRACE_SECONDS = 60
_MAX_XCOM_DAGS = 1000
_CHUNK_BYTES = 256 * 1024
_SEND_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Which queued task instance is to run, in the words of Airflow's workload."""

    task_instance: str
    dag_id: str
    task_id: str
    run_id: str
    map_index: int
    try_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """A ticket for it is there, and the agent verified it."""

    launch_id: str
    archive: str
    release: int
    digest: str
    unix_user: str
    xcom_dags: frozenset[str]


@dataclass(frozen=True, slots=True)
class Refused:
    """It will not run; `error` is a slug."""

    error: str
    detail: str


@dataclass(frozen=True, slots=True)
class Log:
    """Some of the log, as `vocabulary.logrecords`."""

    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The launcher's last word, as far as the agent told it."""

    state: str
    error: str
    detail: str
    exit_code: int


LOST = "lost"
Event = Offered | Refused | Log | Ended


class AgentLink:
    """One connection. `ask` first; then `start`; `fileno` can be read when `arrived` has something to say."""

    def __init__(self, path: str) -> None:
        """Raises `FetchError` when nobody listens there."""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._incoming = Incoming()
        try:
            self._sock.settimeout(_SEND_SECONDS)
            self._sock.connect(path)
        except OSError as error:
            self._sock.close()
            raise FetchError(f"dagseal's agent does not answer at {path}: {error}") from None

    @property
    def sock(self) -> socket.socket:
        """For a selector."""
        return self._sock

    def ask(self, question: Question, requests: socket.socket, *, timeout: float) -> Offered | Refused:
        """Wait for the answer. Raises `FetchError` when none came in `timeout` seconds, or the agent went away."""
        self._send(
            messages.encode(
                "launch",
                fds=1,
                task_instance=question.task_instance,
                dag_id=question.dag_id,
                task_id=question.task_id,
                run_id=question.run_id,
                map_index=question.map_index,
                try_number=question.try_number,
            ),
            requests.fileno(),
        )
        self._sock.settimeout(max(timeout, 0.001))
        try:
            while True:
                for event in self._read():
                    if isinstance(event, Offered | Refused):
                        return event
                    raise MalformedError(f"the agent said {type(event).__name__} before it offered anything")
        except (OSError, EOFError) as error:
            raise FetchError(f"dagseal's agent gave no answer: {error or 'it closed the connection'}") from None

    def start(self) -> None:
        """Airflow agreed. Raises `FetchError` when the agent went away."""
        self._send(messages.encode("start"))

    def cancel(self, grace_seconds: int) -> None:
        """Raises `FetchError` when the agent went away."""
        self._send(messages.encode("cancel", grace_seconds=max(0, min(grace_seconds, MAX_GRACE_SECONDS))))

    def arrived(self) -> list[Event]:
        """What can be read now. The last is `Ended` when the agent went away or spoke nonsense. Raises `BlockingIOError` when
        there is nothing."""
        events: list[Event] = []
        try:
            for event in self._read():
                if isinstance(event, Offered):
                    raise MalformedError("the agent offered twice")
                events.append(event)
        except BlockingIOError:
            raise
        except (OSError, EOFError):
            events.append(_lost("dagseal's agent closed the connection before the task ended"))
        except MalformedError as error:
            events.append(_lost(f"dagseal's agent spoke nonsense: {error}"))
        return events

    def close(self) -> None:
        """The agent then kills the task."""
        self._sock.close()

    def _read(self) -> Iterator[Event]:
        """One read, and every frame that is whole by then. Raises `EOFError` after the last of them."""
        chunk = self._sock.recv(_CHUNK_BYTES)
        for message in self._incoming.feed(chunk):
            yield _event(message)
        if not chunk:
            raise EOFError

    def _send(self, frame: bytes, *fds: int) -> None:
        try:
            self._sock.settimeout(_SEND_SECONDS)
            send(self._sock, frame, *fds)
        except OSError as error:
            raise FetchError(f"dagseal's agent went away: {error}") from None


def _event(message: Message) -> Event:
    fields = message.fields
    event: Event
    match message.kind:
        case "offered":
            event = Offered(
                launch_id=fields.name("launch_id", "id"),
                archive=fields.name("archive", "archive"),
                release=fields.integer("release", least=1),
                digest=str(fields.digest("digest")),
                unix_user=fields.name("unix_user", "unix user"),
                xcom_dags=frozenset(str(dag) for dag in fields.items("xcom_dags", max_items=_MAX_XCOM_DAGS)),
            )
        case "refused":
            event = Refused(fields.text("error", max_chars=100), fields.text("detail", max_chars=8192))
        case "log":
            event = Log(fields.binary("data", max_bytes=MAX_LOG_BYTES))
        case "ended":
            event = Ended(
                state=fields.choice("state", claims.STATES),
                error=fields.text("error", max_chars=100),
                detail=fields.text("detail", max_chars=8192),
                exit_code=fields.integer("exit_code", least=-64),
            )
        case other:
            raise MalformedError(f"the agent sent {other!r}, which is not part of this conversation")
    fields.done()
    if message.fds:
        raise MalformedError("the agent announced descriptors: it never sends any")
    return event


def _lost(detail: str) -> Ended:
    return Ended(state=LOST, error=LOST, detail=detail, exit_code=-9)

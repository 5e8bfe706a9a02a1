"""One DAG file parsed by the launcher: verified bytes in, Airflow's own parsing result out.

    → serialise {name, digest, task_check} + 1 fd
    ← serialised {airflow_version, dags: [{dag_id, member, data}]}, or refused {error, rule, entry, detail, …}

Promise: the file is imported in the launcher's sandbox, as the parser user, and never by this process or a child of it. What
comes back is data of a process that ran the author's code: framed, capped, its names and places checked. To Airflow's loop it
looks like one of its own parsing processes.
"""

from __future__ import annotations

import json
import selectors
import signal
import socket
import time
from typing import Any

import airflow
from airflow._shared.timezones import timezone
from airflow.dag_processing.processor import DagFileParsingResult
from airflow.serialization.serialized_objects import LazyDeserializedDAG

from dagseal.airflow.asking import Incoming, connect, send
from integrity import messages, names
from integrity.digests import Digest
from integrity.errors import (
    DagsealError,
    FetchError,
    InvalidArchiveError,
    MalformedError,
    OutOfScopeError,
    SettingsError,
    UnsafeArchiveError,
)
from integrity.messages import Message
from vocabulary.manifest import MAX_DAGS

_CHUNK_BYTES = 256 * 1024


class Serialising:
    """`digest`: of the bytes that it is about, None where nobody knows them. At its end it has a `parsing_result`, or a
    `problem` and nothing is known."""

    had_callbacks = False
    pid = 0  # no child of ours

    def __init__(self, *, archive: str, digest: Digest | None, folder: str) -> None:
        self.archive = archive
        self.digest = digest
        self.start_time = self.asked_at = time.monotonic()
        self.dags: list[tuple[str, str]] = []
        self.refusal = ""
        self.problem: DagsealError | None = None
        self.folder = folder
        self._sock: socket.socket | None = None
        self._selector: selectors.BaseSelector | None = None
        self._incoming = Incoming()

    def ask(self, launcher_socket: str, fd: int, selector: selectors.BaseSelector) -> None:
        """Raises `SettingsError`, `FetchError`. What the archive's rules refuse was refused when it was submitted: the
        description's checks of stability are not made again."""
        frame = messages.encode("serialise", fds=1, name=self.archive, digest=str(self.digest), task_check="archive")
        sock = connect(launcher_socket, "the launcher's")
        try:
            send(sock, frame, fd)
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            raise FetchError(f"the launcher at {launcher_socket} turned away: {error.strerror or error}") from None
        self._sock, self._selector = sock, selector
        selector.register(sock, selectors.EVENT_READ, (self._read, selector.unregister))

    def fail(self, problem: DagsealError) -> None:
        self.problem = problem

    def repeat(self, earlier: Serialising) -> None:
        """The outcome of the same bytes, which was just made."""
        self.dags, self.refusal, self.asked_at = earlier.dags, earlier.refusal, earlier.asked_at

    @property
    def is_ready(self) -> bool:
        return self._sock is None

    @property
    def parsing_result(self) -> DagFileParsingResult | None:
        if self.problem is not None or not self.is_ready:
            return None
        found = [self._dag(relative, text) for relative, text in self.dags]
        errors = {self.archive: self.refusal} if self.refusal else {}
        return DagFileParsingResult(fileloc=self.archive, serialized_dags=found, import_errors=errors)

    def kill(self, signal_to_send: signal.Signals = signal.SIGKILL, **_: Any) -> None:
        """The launcher ends a job whose asker hangs up."""
        if self._sock is not None and self._selector is not None:
            self._selector.unregister(self._sock)
            self._sock.close()
            self._sock = None
            self.problem = FetchError(f"{self.archive}: its parsing was ended before the launcher had answered")

    def close(self) -> None:
        self.kill()

    def _read(self, sock: socket.socket) -> bool:
        """As Airflow's selector loop calls it: whether more is to come; after False it is unregistered and closed."""
        try:
            chunk = sock.recv(_CHUNK_BYTES)
            if not chunk:
                raise FetchError("the launcher closed the connection before it answered")
            for message in list(self._incoming.feed(chunk)):
                self._answer(message)
                self._sock = None
                return False
        except BlockingIOError:
            pass
        except OSError as error:
            self.problem = FetchError(f"the launcher does not answer ({error.strerror or error})")
        except MalformedError as error:
            self.problem = FetchError(f"the launcher sent what cannot be used: {error}")
        except DagsealError as error:
            self.problem = error
        if self.problem is not None:
            self._sock = None
        return self.problem is None

    def _answer(self, message: Message) -> None:
        """Raises `MalformedError`, `FetchError`, `SettingsError`."""
        fields = message.fields
        if message.kind == "refused":
            self.refusal = _refusal(message)
            return
        if message.kind != "serialised" or message.fds:
            raise MalformedError(f"the launcher answered {message.kind!r} to a serialise")
        version = fields.text("airflow_version", max_chars=100)
        if version != airflow.__version__:
            raise SettingsError(
                f"the launcher's tasks have Airflow {version}, this dag processor {airflow.__version__}: install the same"
            )
        found: dict[str, tuple[str, str]] = {}
        for item in fields.items("dags", max_items=MAX_DAGS):
            dag_id, relative, text = self._read_dag(item)
            if found.setdefault(dag_id, (relative, text)) != (relative, text):
                raise MalformedError(f"dag {dag_id!r} is there twice")
        fields.done()
        self.dags = list(found.values())

    def _read_dag(self, item: Any) -> tuple[str, str, str]:
        if not isinstance(item, dict) or set(item) != {"dag_id", "member", "data"}:
            raise MalformedError("a serialised dag has dag_id, member and data")
        dag_id, member, text = names.check("dag_id", item["dag_id"]), item["member"], item["data"]
        if not isinstance(member, str) or not isinstance(text, str):
            raise MalformedError(f"dag {dag_id!r}: member and data are texts")
        relative = self.archive if self.archive.endswith(".py") else f"{self.archive}/{member}"
        if {"", ".", ".."} & set(relative.split("/")):
            raise MalformedError(f"dag {dag_id!r}: {member[:80]!r} is no member of an archive")
        try:
            document = json.loads(text)
            same = document["dag"]["dag_id"] == dag_id and isinstance(document["dag"]["tasks"], list)
        except (ValueError, TypeError, KeyError, RecursionError):
            same = False
        if not same:
            raise MalformedError(f"dag {dag_id!r}: its data is no serialised dag of that name")
        return dag_id, relative, text

    def _dag(self, relative: str, text: str) -> LazyDeserializedDAG:
        """Read anew each time: Airflow keeps and changes it. Its code is shown from the set's folder."""
        document = json.loads(text)
        document["dag"] |= {"relative_fileloc": relative, "fileloc": f"{self.folder}/{relative}"}
        return LazyDeserializedDAG(data=document, last_loaded=timezone.utcnow())


def _refusal(message: Message) -> str:
    """What Airflow shows as the import error. Raises `SettingsError` where this account may not ask, `FetchError` for what says
    nothing of the archive."""
    fields = message.fields
    slug, detail = fields.text("error", max_chars=100), fields.text("detail", max_chars=8192)
    rule, entry = (fields.text(key, max_chars=1024) if key in fields.keys() else "" for key in ("rule", "entry"))
    if slug in (InvalidArchiveError.slug, UnsafeArchiveError.slug):
        return "\n".join(line for line in (f"dagseal: {rule}", entry, detail) if line)
    if slug == OutOfScopeError.slug:
        raise SettingsError(
            f"the launcher does not describe for this account ({detail}): name it in peers.describe of the launcher's policy"
        )
    raise FetchError(f"the launcher did not parse it ({slug}): {detail}")

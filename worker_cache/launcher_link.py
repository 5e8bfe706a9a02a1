"""A local caller's end of a connection to the launcher: `identity`, the one conversation of a `run`, and `serialise`.

One connection is one job. Closing it ends the job and kills the task's whole tree, so leaving `run` in any way leaves
nothing behind. The launcher sends no descriptors; we send the archive's beside the first byte of `run`, and behind it, of a
supervised launch, the task's end of its supervisor's socket.
"""

from __future__ import annotations

import array
import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from integrity import messages
from integrity.digests import Digest
from integrity.errors import FetchError, MalformedError
from integrity.fields import Fields, to_base64
from integrity.messages import Message
from vocabulary import claims, envelopes, refusals
from vocabulary.keys import KEY_BYTES, SealTo, VerifyKey
from vocabulary.manifest import MAX_DAGS
from worker_cache import framing
from worker_cache.launchers import Launcher

MAX_LOG_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who the launcher says it is. The API believes the keys only because an administrator compared the fingerprint."""

    verify_key: VerifyKey
    sealing_key: SealTo
    version: str
    privileged: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClaimMade:
    """The bytes agreed and the child is ready: send this to the API, then answer with `grant` or `deny`."""

    envelope: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """Refused before the ticket could be trusted: unsigned, for the API's log."""

    error: str
    detail: str


@dataclass(frozen=True, slots=True)
class Log:
    """Some of the task's output."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The launcher's signed last word."""

    envelope: bytes


Event = ClaimMade | Refused | Log | Ended


@dataclass(frozen=True, slots=True, kw_only=True)
class SerialisedDag:
    """`data` is the JSON text of Airflow's serialised dag, whose dag_id is this one; what else it says is its author's word."""

    dag_id: str
    member: str
    data: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Serialised:
    """Every dag of an archive, sorted, as the launcher's sandbox saw them."""

    airflow_version: str
    dags: tuple[SerialisedDag, ...]


class Link:
    """One connection. What arrives is read by `event`; the others send."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._sending = asyncio.Lock()

    async def identity(self) -> Identity:
        await self._send(messages.encode("identity"))
        fields = (await self._expect("identity")).fields
        identity = Identity(
            verify_key=VerifyKey(fields.binary("verify_key", max_bytes=KEY_BYTES)),
            sealing_key=SealTo(fields.binary("sealing_key", max_bytes=KEY_BYTES)),
            version=fields.text("version", max_chars=100),
            privileged=fields.boolean("privileged"),
            warnings=tuple(str(item) for item in fields.items("warnings", max_items=100)),
        )
        fields.done()
        return identity

    async def run(self, *, ticket: bytes, manifest: bytes, archive_fd: int, supervisor_fd: int | None = None) -> None:
        """`supervisor_fd` is the task's end of its supervisor's socket, where the ticket says that it is supervised. It stays
        the caller's to close, best at once: its other end is at its end when nobody holds it."""
        fds = (archive_fd,) if supervisor_fd is None else (archive_fd, supervisor_fd)
        frame = messages.encode("run", fds=len(fds), ticket=to_base64(ticket), manifest=to_base64(manifest))
        await self._send(frame, *fds)

    async def serialise(self, *, name: str, digest: Digest, archive_fd: int, task_check: str) -> Serialised:
        """For Airflow's dag processor. Raises `InvalidArchiveError`, `UnsafeArchiveError`, `DigestMismatchError`, or
        `FetchError` when nobody can say now."""
        await self._send(
            messages.encode("serialise", fds=1, name=name, digest=str(digest), task_check=task_check), archive_fd
        )
        try:
            answer = await self._receive()
            if answer.kind == "refused":
                raise refusals.read(answer.fields)
            if answer.kind != "serialised":
                raise MalformedError(f"the launcher answered {answer.kind!r} to a serialise")
            return read_serialised(answer.fields)
        except MalformedError as error:
            raise FetchError(f"the launcher sent what cannot be used: {error}") from None

    async def grant(self, envelope: bytes) -> None:
        await self._send(messages.encode("grant", envelope=to_base64(envelope)))

    async def deny(self, detail: str) -> None:
        await self._send(messages.encode("deny", detail=detail[:4000]))

    async def cancel(self, grace_seconds: int = 0) -> None:
        """The task is asked to end by itself first, where it is given time for that (60 s at most)."""
        await self._send(messages.encode("cancel", grace_seconds=grace_seconds))

    async def event(self) -> Event:
        """The next thing that the launcher says. Raises `FetchError` when it went away, `MalformedError` for nonsense."""
        message = await self._receive()
        fields = message.fields
        event: Event
        match message.kind:
            case "claim":
                event = ClaimMade(fields.binary("envelope", max_bytes=claims.MAX_CLAIM_BYTES * 2))
            case "refused":
                event = Refused(fields.text("error", max_chars=100), fields.text("detail", max_chars=8192))
                for extra in fields.keys():  # rule, entry, exit_code: what is reported is the slug and the words
                    fields.take(extra)
            case "log":
                event = Log(fields.binary("data", max_bytes=MAX_LOG_BYTES))
            case "result":
                event = Ended(fields.binary("envelope", max_bytes=envelopes.MAX_ENVELOPE_BYTES))
            case other:
                raise MalformedError(f"the launcher sent {other!r}, which is not part of this conversation")
        fields.done()
        return event

    async def _expect(self, kind: str) -> Message:
        message = await self._receive()
        if message.kind != kind:
            raise MalformedError(f"the launcher answered {message.kind!r}, expected was {kind!r}")
        return message

    async def _send(self, frame: bytes, *fds: int) -> None:
        async with self._sending:  # frames of the canceller and of the conversation do not mix
            try:
                sent = await self._send_first(frame, fds) if fds else 0
                if sent < len(frame):  # even no byte at all is an error when the launcher has answered and closed
                    await self._loop.sock_sendall(self._sock, frame[sent:])
            except OSError as error:
                raise FetchError(f"the launcher went away: {error}") from None

    async def _send_first(self, frame: bytes, fds: tuple[int, ...]) -> int:
        """Descriptors travel with the first bytes; how many bytes went with them."""
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        while True:
            try:
                return self._sock.sendmsg([frame], control)
            except BlockingIOError:
                await self._writable()

    async def _writable(self) -> None:
        ready = asyncio.Event()
        self._loop.add_writer(self._sock, ready.set)
        try:
            await ready.wait()
        finally:
            self._loop.remove_writer(self._sock)

    async def _receive(self) -> Message:
        try:
            message = await framing.receive(self._sock)
        except EOFError:
            raise FetchError("the launcher closed the connection: look at its log") from None
        except OSError as error:
            raise FetchError(f"the launcher went away: {error}") from None
        if message.fds:
            raise MalformedError("the launcher announced descriptors: it never sends any")
        return message


def read_serialised(fields: Fields) -> Serialised:
    """Read strictly what a process that ran an author's code says of it. Raises `MalformedError`."""
    version = fields.text("airflow_version", max_chars=100)
    dags = tuple(_serialised_dag(Fields(item, "dag")) for item in fields.items("dags", max_items=MAX_DAGS))
    fields.done()
    ids = [dag.dag_id for dag in dags]
    if ids != sorted(set(ids)):
        raise MalformedError("the dags of an archive are to be sorted, each named once")
    return Serialised(airflow_version=version, dags=dags)


def _serialised_dag(fields: Fields) -> SerialisedDag:
    dag_id, member = fields.name("dag_id", "dag_id"), fields.text("member", max_chars=1024)
    data = fields.text("data", max_chars=messages.MAX_FRAME_BYTES)
    fields.done()
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"dag {dag_id!r}: its data is not JSON: {error}") from None
    dag = document.get("dag") if isinstance(document, dict) else None
    if not isinstance(dag, dict) or dag.get("dag_id") != dag_id:
        raise MalformedError(f"dag {dag_id!r}: its data is not of that dag")
    return SerialisedDag(dag_id=dag_id, member=member, data=data)


@asynccontextmanager
async def connect(launcher: Launcher) -> AsyncIterator[Link]:
    """A connection to the launcher; closed in every case. Raises `FetchError`."""
    with await launcher.connection() as sock:
        yield Link(sock)

"""Ask the launcher what an archive defines: it runs the bytes as the parser user, this process never does.

One connection to the launcher's unix socket is one description (`docs/protocol.md`): `describe` goes out with one
descriptor of the bytes, `described` or `refused` comes back. What comes back is untrusted: framed, capped, and read by
the manifest's own strict readers.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import Protocol

from integrity import messages
from integrity.digests import Digest
from integrity.errors import FetchError, InvalidArchiveError, MalformedError
from submit_api import framing
from vocabulary import refusals
from vocabulary.manifest import MAX_DAGS, DagEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What an archive defines, as the launcher's sandbox saw it. `dags` are sorted, each named once."""

    airflow_version: str
    dags: tuple[DagEntry, ...]


class Describer(Protocol):
    """Whoever can say what an archive defines."""

    async def describe(self, name: str, digest: Digest, fd: int, task_check: str) -> Description:
        """Raises `InvalidArchiveError`, `UnsafeArchiveError`, or `FetchError` when nobody can say now."""


class LauncherDescriber:
    """The launcher of this host. It is asked by `at_once` at a time, the others wait: it describes few side by side, and who
    comes when its socket's queue is full is turned away."""

    def __init__(self, socket_path: str, *, seconds: float, at_once: int) -> None:
        self._path = socket_path
        self._seconds = seconds
        self._turns = asyncio.Semaphore(at_once)

    async def describe(self, name: str, digest: Digest, fd: int, task_check: str) -> Description:
        frame = messages.encode("describe", fds=1, name=name, digest=str(digest), task_check=task_check)
        try:
            async with self._turns, asyncio.timeout(self._seconds):
                answer = await self._ask(frame, fd)
        except TimeoutError:
            raise FetchError(f"the launcher did not describe {name} within {self._seconds:g} seconds") from None
        except OSError as error:
            raise FetchError(
                f"the launcher at {self._path} did not answer ({error.strerror or error}): start it, then send again"
            ) from None
        except MalformedError as error:
            raise FetchError(f"the launcher sent what cannot be read: {error}") from None
        if answer.kind == "refused":
            raise refusals.read(answer.fields)
        return _description(answer)

    async def _ask(self, frame: bytes, fd: int) -> messages.Message:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.setblocking(False)
            await loop.sock_connect(peer, self._path)
            # The descriptor goes beside the first byte; a socket just connected takes it without blocking.
            sent = socket.send_fds(peer, [frame], [fd])
            if sent < len(frame):  # even no byte at all is an error when the launcher has answered and closed
                await loop.sock_sendall(peer, frame[sent:])
            return await framing.receive(peer)


def _description(answer: messages.Message) -> Description:
    try:
        if answer.kind != "described" or answer.fds:
            raise MalformedError(f"the launcher answered {answer.kind!r} to a describe")
        version = answer.fields.text("airflow_version", max_chars=100)
        dags = tuple(DagEntry.from_json(item) for item in answer.fields.items("dags", max_items=MAX_DAGS))
        answer.fields.done()
        ids = [dag.dag_id for dag in dags]
        if ids != sorted(set(ids)):
            raise MalformedError("the dags of a description are to be sorted, each named once")
    except MalformedError as error:
        raise FetchError(f"the launcher sent what cannot be used: {error}") from None
    if not dags:
        raise InvalidArchiveError("no-dag-found", "the archive was imported and defines no DAG")
    return Description(airflow_version=version, dags=dags)

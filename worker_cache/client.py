"""The API's calls, one method each. Used by the agent and by the command line.

Bodies and answers are as in docs/protocol.md; what is signed stays bytes until somebody with a key reads it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from integrity.digests import Digest
from integrity.errors import FetchError
from integrity.fields import to_base64
from vocabulary import checkpoints, claims, envelopes, lognews, logrecords
from vocabulary.keys import SealTo, VerifyKey
from worker_cache.transport import Answer, Transport

ENVELOPE_TYPE = "application/vnd.dsse+json"
MAX_TAKE_BYTES = 32 * 1024 * 1024
MAX_SET_BYTES = 4 * 1024 * 1024
MAX_ENTRIES_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPart:
    """Some of a launch's log (`vocabulary.logrecords`, cut anywhere), where to go on, and the launch's state at that time."""

    data: bytes
    next_offset: int
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an agent says of itself (docs/protocol.md, *What workers hold*)."""

    log_size: int
    log_root: bytes
    held_root: bytes
    missing: Sequence[Digest]
    missing_count: int
    damaged: Sequence[Digest]
    alarm: str


def segment(text: str) -> str:
    """One path segment: a name with a slash in it stays one name."""
    return quote(text, safe="")


class Client:
    """Calls over one transport."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def get(self, path: str, query: Mapping[str, str] | None = None, *, wait_seconds: float = 0.0) -> Any:
        """Any JSON resource."""
        return (await self._transport.request("GET", path, query=query, wait_seconds=wait_seconds)).json()

    async def send(
        self,
        method: str,
        path: str,
        json_body: object = None,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Change something; the answer's JSON, or None where there is none."""
        answer = await self._transport.request(method, path, json_body=json_body, query=query, headers=headers)
        return answer.json() if answer.body else None

    async def send_raw(self, method: str, path: str, body: bytes, content_type: str) -> Any:
        """As `send`, with a body that is not JSON of ours."""
        answer = await self._transport.request(method, path, body=body, headers={"Content-Type": content_type})
        return answer.json() if answer.body else None

    async def put_archive(
        self,
        name: str,
        body: AsyncIterable[bytes],
        *,
        size: int,
        digest: Digest,
        query: Mapping[str, str],
        author: bytes | None = None,
    ) -> tuple[bool, Any]:
        """Submit, with the author's signature if there is one; whether the release is new, and the release."""
        answer = await self._transport.request(
            "PUT",
            f"/v1/archives/{segment(name)}",
            query=query,
            body=body,
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Length": str(size),
                "Repr-Digest": digest.repr_digest,
                **({"Author-Signature": to_base64(author)} if author is not None else {}),
            },
            wait_seconds=240.0,  # the server describes the archive before it answers
        )
        return answer.status == 201, answer.json()

    async def manifest(self, name: str, number: int) -> bytes:
        """The envelope."""
        path = f"/v1/archives/{segment(name)}/releases/{number}/manifest"
        return (await self._transport.request("GET", path, max_bytes=envelopes.MAX_ENVELOPE_BYTES)).body

    def blob(self, digest: Digest, start: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes from `start` on as they arrive, unverified: the caller hashes and caps them."""
        return self._transport.stream(f"/v1/blobs/sha512/{digest.hex}", start=start)

    def blobs(self, digests: Sequence[Digest]) -> AsyncGenerator[bytes, None]:
        """Frames of many (`vocabulary.blobframes`) as they arrive, unverified."""
        return self._transport.stream_of_json("/v1/blobs/batch", {"digests": [str(digest) for digest in digests]})

    def audit_lines(self, media_type: str, query: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        """The audit log as lines of this form, as they arrive, cut anywhere."""
        return self._transport.stream("/v1/audit", query=query, headers={"Accept": media_type})

    async def launch_log(self, launch_id: str, *, offset: int, wait_seconds: int) -> LogPart:
        """What was logged from `offset` on; waits up to `wait_seconds` for more."""
        answer = await self._transport.request(
            "GET",
            f"/v1/launches/{segment(launch_id)}/log",
            query={"offset": str(offset), "wait_seconds": str(wait_seconds)},
            headers={"Accept": logrecords.MEDIA_TYPE},
            wait_seconds=wait_seconds,
        )
        next_offset = _number(answer.headers.get("Dagseal-Next-Offset"), "Dagseal-Next-Offset")
        return LogPart(data=answer.body, next_offset=next_offset, state=answer.headers.get("Dagseal-Launch-State", ""))

    async def log_checkpoint(self) -> bytes:
        """The transparency log's newest signed note, unverified. Asked without saying who asks."""
        return (await self._transport.ask("/v1/log/checkpoint", max_bytes=checkpoints.MAX_BYTES, public=True)).body

    async def log_entries(self, start: int, end: int) -> bytes:
        """Leaves of the transparency log from `start` to before `end`, or the first of them: a bundle, unverified."""
        query = {"start": str(start), "end": str(end)}
        answer = await self._transport.request("GET", "/v1/log/entries", query=query, max_bytes=MAX_ENTRIES_BYTES)
        return answer.body

    async def log_news(self, start: int, end: int) -> tuple[bytes, list[lognews.Blob]]:
        """A few leaves as `log_entries` has them, and maybe blobs that they name, unverified."""
        query = {"start": str(start), "end": str(end), "blobs": str(lognews.MAX_BLOBS_BYTES)}
        answer = await self._transport.ask("/v1/log/entries", query=query, max_bytes=MAX_ENTRIES_BYTES)
        if answer.headers.get("Content-Type") == lognews.MEDIA_TYPE:
            return lognews.decode(answer.body)
        return answer.body, []

    # What only a worker calls.

    async def take(
        self, worker: str, queues: list[str], *, wait_seconds: int, task_instance: str | None = None
    ) -> Any | None:
        """The next offer for one of these queues, or that of a task instance of Airflow's; None when there was none in that
        time."""
        answer = await self._transport.request(
            "POST",
            f"/v1/workers/{segment(worker)}/take",
            query={"wait_seconds": str(wait_seconds)},
            json_body={"queues": queues, **({"task_instance": task_instance} if task_instance is not None else {})},
            wait_seconds=wait_seconds,
            max_bytes=MAX_TAKE_BYTES,
        )
        return None if answer.status == 204 else answer.json()

    async def put_set(self, body: bytes) -> str:
        """Canonical JSON of a set of releases; its name, the SHA-512 of the body."""
        name = Digest.of(body).hex
        headers = {"Content-Type": "application/json"}
        await self._transport.request("PUT", f"/v1/sets/{name}", body=body, headers=headers)
        return name

    async def get_set(self, name: str) -> bytes:
        """The body of this set, of this digest. Raises `DigestMismatchError` for another."""
        answer = await self._transport.request("GET", f"/v1/sets/{segment(name)}", max_bytes=MAX_SET_BYTES)
        Digest(name).require(Digest.of(answer.body), "the set that the server sent")
        return answer.body

    async def join(
        self, worker: str, *, token: str, request_key: VerifyKey, verify_key: VerifyKey, sealing_key: SealTo
    ) -> dict[str, Any]:
        """With an invitation's token; the transport signs with `request_key`. The worker, as it is on record."""
        body = {
            "token": token,
            "request_key": to_base64(request_key.raw),
            "verify_key": to_base64(verify_key.raw),
            "sealing_key": to_base64(sealing_key.raw),
        }
        value = await self.send("POST", f"/v1/workers/{segment(worker)}/join", body)
        if not isinstance(value, dict) or value.get("request_key_id") != request_key.key_id:
            raise FetchError("the server's answer is not of this worker with this key: is it a dagseal server?")
        return value

    async def report(self, worker: str, said: Report) -> str:
        """The state that the server sees this worker in."""
        body = {
            "log_size": said.log_size,
            "log_root": to_base64(said.log_root),
            "held_root": to_base64(said.held_root),
            "missing": [str(digest) for digest in said.missing],
            "missing_count": said.missing_count,
            "damaged": [str(digest) for digest in said.damaged],
            "alarm": said.alarm,
        }
        return str((await self.send("POST", f"/v1/workers/{segment(worker)}/report", body)).get("state"))

    async def claim(self, launch_id: str, envelope: bytes) -> bytes:
        """Claim envelope in, grant envelope out."""
        return (await self._envelope(launch_id, "claim", envelope, max_bytes=envelopes.MAX_ENVELOPE_BYTES)).body

    async def append_log(self, launch_id: str, data: bytes, *, offset: int) -> int:
        """Add to the log; where it goes on. An offset that the server already holds is answered, not doubled."""
        answer = await self._transport.request(
            "POST",
            f"/v1/launches/{segment(launch_id)}/log",
            query={"offset": str(offset)},
            body=data,
            headers={"Content-Type": "application/octet-stream"},
        )
        value = answer.json()
        return _number(value.get("next_offset") if isinstance(value, dict) else None, "next_offset")

    async def heartbeat(self, launch_id: str) -> tuple[str, bool]:
        """Say that it runs; its state, and whether somebody asked to cancel it."""
        return _state(await self.send("POST", f"/v1/launches/{segment(launch_id)}/state", {"state": "running"}))

    async def refuse(self, launch_id: str, *, error: str, detail: str) -> None:
        """Say that this host refuses the launch, before any claim."""
        body = {"state": "refused", "error": error, "detail": detail[:4000]}
        await self.send("POST", f"/v1/launches/{segment(launch_id)}/state", body)

    async def result(self, launch_id: str, envelope: bytes) -> tuple[str, bool]:
        """Hand in the launcher's signed result."""
        answer = await self._envelope(launch_id, "state", envelope, max_bytes=claims.MAX_RESULT_BYTES)
        return _state(answer.json())

    async def _envelope(self, launch_id: str, call: str, envelope: bytes, *, max_bytes: int) -> Answer:
        return await self._transport.request(
            "POST",
            f"/v1/launches/{segment(launch_id)}/{call}",
            body=envelope,
            headers={"Content-Type": ENVELOPE_TYPE},
            max_bytes=max_bytes,
        )


def _state(value: Any) -> tuple[str, bool]:
    if not isinstance(value, dict) or not isinstance(value.get("state"), str):
        raise FetchError("the server's answer lacks the launch's state")
    return value["state"], value.get("cancel") is True


def _number(value: object, what: str) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = -1
    if number < 0:
        raise FetchError(f"the server's answer lacks {what}")
    return number

"""The scheduler's side of the API: reserve what is queued, and read what a set of releases holds.

Promise: an answer is read strictly and bound to what was asked, in the same order; a set is what its SHA-512 says. A
`FetchError` says: try again, nothing is to be sent; a `SettingsError`: nothing is to be sent until somebody acts.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from integrity.digests import Digest
from integrity.errors import FetchError, MalformedError, NotFoundError, SettingsError
from integrity.fields import Fields
from vocabulary import sets

MAX_BATCH = 500
MAX_ANSWER_BYTES = 16 * 1024 * 1024
TIMEOUTS = httpx.Timeout(10.0, connect=3.0)
KEEP_SECONDS = 30.0  # an idle connection; a new one is a handshake that a task waits for


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """One queueing of one task instance. `set`: the digest of the set its run is pinned to; `task_digest`: of Airflow's own
    serialised form of the task."""

    task_instance: str
    queueing: str
    dag_id: str
    task_id: str
    run_id: str
    map_index: int
    try_number: int
    queue: str
    set: str | None
    task_digest: Digest | None
    valid_seconds: int

    def to_json(self) -> dict[str, Any]:
        digest = None if self.task_digest is None else str(self.task_digest)
        return {name: getattr(self, name) for name in self.__slots__ if name != "task_digest"} | {"task_digest": digest}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """The API's word on one of them. A refusal has a slug in `error`, and the worker will tell it to the task's log; but one
    without a launch is on no record that a worker could ask for."""

    launch_id: str | None
    state: str
    error: str
    detail: str


class Reserver:
    """One API. `token` is asked at each request."""

    def __init__(
        self, server: str, *, token: Callable[[], str], ca_file: str = "", transport: httpx.BaseTransport | None = None
    ) -> None:
        """Raises `SettingsError` for a `ca_file` that cannot be used."""
        try:
            context = ssl.create_default_context(cafile=ca_file or None)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"[dagseal] ca_file {ca_file} cannot be used: {error}") from None
        self._token = token
        self._client = httpx.Client(
            base_url=server,
            verify=context,
            timeout=TIMEOUTS,
            limits=httpx.Limits(keepalive_expiry=KEEP_SECONDS),
            transport=transport,
            trust_env=False,
            follow_redirects=False,
        )

    def reserve(self, wanted: Sequence[Reservation]) -> list[Reserved]:
        """In the same order. Raises `FetchError`, `SettingsError`, `MalformedError`."""
        answers: list[Reserved] = []
        for start in range(0, len(wanted), MAX_BATCH):
            batch = wanted[start : start + MAX_BATCH]
            body = self._ask("POST", "/v1/reservations", {"reservations": [one.to_json() for one in batch]})
            answers += _answers(body, batch)
        return answers

    def releases(self, set_hex: str) -> Mapping[str, Digest]:
        """The set's archives. Raises `NotFoundError` too."""
        body = self._ask("GET", f"/v1/sets/{set_hex}")
        return {archive: member.digest for archive, member in sets.parse(body, Digest(set_hex)).items()}

    def close(self) -> None:
        self._client.close()

    def _ask(self, method: str, path: str, body: Any = None) -> bytes:
        headers = {"Authorization": f"Bearer {self._token()}"}
        try:
            with self._client.stream(method, path, json=body, headers=headers) as answer:
                data = b""
                for chunk in answer.iter_bytes():
                    data += chunk
                    if len(data) > MAX_ANSWER_BYTES:
                        raise MalformedError(f"{path}: an answer of more than {MAX_ANSWER_BYTES} bytes")
        except httpx.HTTPError as error:
            raise FetchError(f"dagseal's API does not answer: {type(error).__name__}: {error}") from None
        if answer.status_code == httpx.codes.OK:
            return data
        detail = f"{path}: {answer.status_code} {_detail(data)}"
        match answer.status_code:
            case 401 | 403:
                raise SettingsError(f"dagseal's API does not accept [dagseal] token_file: {detail}")
            case 404:
                raise NotFoundError(detail)
            case 429:
                raise FetchError(detail)
            case code if code >= 500:
                raise FetchError(detail)
            case _:
                raise MalformedError(detail)


def _answers(body: bytes, asked: Sequence[Reservation]) -> list[Reserved]:
    fields = Fields(_json(body), "answer to reservations")
    items = fields.items("reservations", max_items=MAX_BATCH)
    fields.done()
    if len(items) != len(asked):
        raise MalformedError(f"{len(asked)} reservations were asked for, {len(items)} are answered")
    return [_answer(Fields(item, "reservation"), one) for item, one in zip(items, asked, strict=True)]


def _answer(fields: Fields, asked: Reservation) -> Reserved:
    named = fields.text("task_instance"), fields.text("queueing")
    if named != (asked.task_instance, asked.queueing):
        raise MalformedError(f"reservation {asked.task_instance} was asked for, {named[0]!r:.80} is answered")
    reserved = Reserved(
        launch_id=fields.optional("launch_id", lambda key: fields.name(key, "id")),
        state=fields.text("state", max_chars=32),
        error=fields.text("error", max_chars=100),
        detail=fields.text("detail", max_chars=8192),
    )
    fields.done()
    return reserved


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"dagseal's API answered no JSON: {error}") from None


def _detail(body: bytes) -> str:
    try:
        return str(json.loads(body)["detail"])[:1000]
    except (ValueError, RecursionError, KeyError, TypeError):
        return ""

"""One HTTP connection that stays open between requests, as a client in a loop has it."""

from __future__ import annotations

import http.client
import json
from typing import Any

from tests.live import Live


class Http:
    """An administrator's connection to the API."""

    def __init__(self, port: int, token: str) -> None:
        self._token = token
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    @classmethod
    def to(cls, live: Live) -> Http:
        return cls(live.stack.port, live.token)

    def fresh(self) -> None:
        """Connect anew, before the clock starts: the server closes what was idle for long."""
        self._connection.close()
        self.call("GET", "/healthz", expect=200)

    def call(
        self, method: str, path: str, body: bytes | dict[str, Any] | None = None, *, expect: int, kind: str = "json"
    ) -> Any:
        """The answer's JSON. Raises `RuntimeError` for any other status."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": f"application/{kind}"}
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        self._connection.request(method, path, body=data, headers=headers)
        with self._connection.getresponse() as answer:
            said = answer.read()
        if answer.status != expect:
            raise RuntimeError(f"{method} {path} answered {answer.status}: {said[:500]!r}")
        return json.loads(said)

    def post(self, path: str, value: Any) -> Any:
        return self.call("POST", path, json.dumps(value).encode(), expect=201)

"""One HTTP connection that stays open between requests, as a client in a loop has it."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any

from tests.live import Live


@dataclass(slots=True)
class Http:
    """The administrator's connection to the API."""

    live: Live
    connection: http.client.HTTPConnection

    @classmethod
    def to(cls, live: Live) -> Http:
        return cls(live, http.client.HTTPConnection("127.0.0.1", live.stack.port, timeout=120))

    def fresh(self) -> None:
        """Connect anew, before the clock starts: the server closes what was idle for long."""
        self.connection.close()
        self.call("GET", "/healthz", expect=200)

    def call(self, method: str, path: str, body: bytes | None = None, *, expect: int, kind: str = "json") -> Any:
        """The answer's JSON. Raises `RuntimeError` for any other status."""
        headers = {"Authorization": f"Bearer {self.live.token}", "Content-Type": f"application/{kind}"}
        self.connection.request(method, path, body=body, headers=headers)
        with self.connection.getresponse() as answer:
            data = answer.read()
        if answer.status != expect:
            raise RuntimeError(f"{method} {path} answered {answer.status}: {data[:500]!r}")
        return json.loads(data)

    def post(self, path: str, value: Any) -> Any:
        return self.call("POST", path, json.dumps(value).encode(), expect=201)

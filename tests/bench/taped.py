"""What a worker was answered, once more and at once: what of an update is the worker's own work, without network and server."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from worker_cache.transport import Answer, Transport

Tape = dict[str, list[Any]]


class Recording(Transport):
    """Asks, and has the newest answer to each question on the tape."""

    def __init__(self, server: str, token: str | None, tape: Tape) -> None:
        super().__init__(server, token)
        self._tape = tape

    async def ask(
        self, path: str, *, query: Mapping[str, str] | None = None, max_bytes: int, public: bool = False
    ) -> Answer:
        answer = await super().ask(path, query=query, max_bytes=max_bytes, public=public)
        self._tape[_question(path, query)] = [answer]
        return answer

    async def request(self, method: str, path: str, **more: Any) -> Answer:
        answer = await super().request(method, path, **more)
        self._tape[_question(path, more.get("query"))] = [answer]
        return answer

    async def stream_of_json(self, path: str, json_body: object) -> AsyncGenerator[bytes, None]:
        pieces = self._tape[_question(path, json_body)] = []
        async for piece in super().stream_of_json(path, json_body):
            pieces.append(piece)
            yield piece


class Playing(Recording):
    """Asks nobody: what is on the tape is the answer, and it is there at once."""

    async def ask(
        self, path: str, *, query: Mapping[str, str] | None = None, max_bytes: int, public: bool = False
    ) -> Answer:
        return await self.request("GET", path, query=query)

    async def request(self, method: str, path: str, **more: Any) -> Answer:
        (answer,) = self._tape[_question(path, more.get("query"))]
        assert isinstance(answer, Answer)
        return answer

    async def stream_of_json(self, path: str, json_body: object) -> AsyncGenerator[bytes, None]:
        for piece in self._tape[_question(path, json_body)]:
            yield piece


def _question(path: str, more: object) -> str:
    return f"{path} {json.dumps(more)}"

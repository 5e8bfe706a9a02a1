"""What a route is: one row of the table that both the server and OpenAPI are made from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from aiohttp import web
from pydantic import BaseModel

from submit_api import bodies
from submit_api.identity import Caller
from submit_api.service import Service

JSON, BYTES, DSSE = "application/json", "application/octet-stream", "application/vnd.dsse+json"
ANYTHING = "(?s:.+)"  # the rest of a path: a line break in it is no good name, and not another address
MAX_RELEASE_NUMBER = 999_999_999  # nine digits, as the paths have them
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request with who makes it. Public routes have a caller without a name."""

    request: web.Request
    service: Service
    caller: Caller

    def part(self, name: str) -> str:
        """A part of the path, as it was before quoting."""
        return self.request.match_info[name]

    def number(self, name: str, default: int, *, most: int = 2**53) -> int:
        return bodies.query_number(self.request, name, default, most=most)

    @property
    def wait_seconds(self) -> float:
        return bodies.wait_seconds(self.request, self.service.settings.limits)

    async def body(self, model: type[M]) -> M:
        return await bodies.read_model(self.request, self.service.settings.limits, model)

    async def raw(self, max_bytes: int) -> bytes:
        return await bodies.read(self.request, self.service.settings.limits, max_bytes=max_bytes)


Handler: TypeAlias = Callable[[Call], Awaitable[web.StreamResponse]]
Content: TypeAlias = type[BaseModel] | str | None
Answer: TypeAlias = Content | tuple[Content, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """`body` and the values of `answers` are a model, media types, or None; `refusals` are statuses besides the usual;
    of a `quiet` one what went well is not logged: it is asked too often."""

    method: str
    path: str
    handler: Handler
    action: str
    summary: str
    about: str = ""
    body: tuple[Content, ...] = ()
    answers: dict[int, Answer] = field(default_factory=dict)
    query: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    refusals: tuple[int, ...] = ()
    quiet: bool = False


def answer(view: BaseModel, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=view.model_dump_json().encode(), content_type=JSON)

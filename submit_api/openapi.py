"""The OpenAPI 3.1 description, made from the route table and the models: what is not in the table is not served.

Every status that a route can answer is listed, refusals too, as RFC 9457 problems.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, TypeAlias

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from integrity import names
from submit_api.audit import ACCEPTED, REFUSED
from submit_api.http.routes import ANYTHING, MAX_RELEASE_NUMBER, Answer, Content, Route
from submit_api.importing import FORMATS
from submit_api.launches import TRANSITIONS
from submit_api.models.system import Problem
from submit_api.permissions import ACTIONS, PUBLIC
from submit_api.problems import MEDIA_TYPE
from vocabulary.claims import PROFILES
from vocabulary.lognews import MAX_BLOBS_BYTES
from vocabulary.manifest import TASK_CHECKS

Document: TypeAlias = dict[str, Any]

ALWAYS = (400, 405, 500)
WITH_TOKEN = (
    401,
    403,
    429,
    503,
)  # 503: database or bucket are away, or the token's issuer cannot be asked for its keys
WITH_BODY = (408, 411, 413, 415, 417, 422)
_PARAMETER = re.compile(r"\{(\w+)(?::((?:[^{}]|\{[0-9,]+\})+))?\}")
_INTEGERS = {  # name: the largest
    "limit": 1000,
    "after": 2**53,
    "offset": 2**53,
    "start": 2**53,
    "end": 2**53,
    "blobs": MAX_BLOBS_BYTES,
    "old": 2**53,
    "new": 2**53,
    "number": MAX_RELEASE_NUMBER,
    "to": MAX_RELEASE_NUMBER,
    "against": MAX_RELEASE_NUMBER,
}
_CHOICES = {
    "task_check": TASK_CHECKS,
    "isolation": PROFILES,
    "state": tuple(TRANSITIONS),
    "format": FORMATS,
    "verdict": (ACCEPTED, REFUSED),
    "kill": ("true", "false"),
    "require_caller": ("true", "false"),
}
_TIMES = frozenset({"since", "until"})
_TIME: Document = {"type": "string", "anyOf": [{"format": "date-time"}, {"pattern": "^[0-9]{1,16}$"}]}
_NAMED = {  # parameter, and how its path begins where that matters: the kind of name
    ("name", "/v1/archives"): "archive",
    ("name", "/v1/groups"): "group",
    ("name", "/v1/workers"): "worker",
    ("name", "/v1/queues"): "queue",
    ("dag_id", "/v1/dags"): "dag_id",
    ("secret", "/v1/connections"): "connection",
    ("secret", "/v1/variables"): "variable",
    ("launch_id", "/v1/launches"): "id",
    ("group", "/v1/archives"): "group",
    ("dag_id", "/v1/impersonation-rules"): "dag_id",
    ("task_id", "/v1/impersonation-rules"): "task_id",
    ("run_as_user", "/v1/impersonation-rules"): "unix user",
    ("queue", "/v1/impersonation-rules"): "queue",
}
_PATTERNS = {  # parameter and path, where it is not what it is elsewhere
    ("after", "/v1/archives"): names.pattern("archive"),
    ("digest", "/v1/archives/{name}/releases"): "^sha512:[0-9a-f]{128}$",
}
_REQUIRED = frozenset({("dag_id", "/v1/impersonation-rules/explain"), ("task_id", "/v1/impersonation-rules/explain")})
_FROM_ONE = frozenset({"to", "against"})
_HEADERS = {
    "Repr-Digest": r"^sha-512=:[A-Za-z0-9+/]{86}==:$",
    "Author-Signature": r"^[A-Za-z0-9+/]{4,4094}={0,2}$",
    "Range": r"^bytes=([0-9]{1,16}-[0-9]{0,16}|-[0-9]{1,16})$",
}


def document(routes: Iterable[Route]) -> Document:
    """The whole description."""
    listed = list(routes)
    models = sorted({m for r in listed for m in _models(r)} | {Problem}, key=lambda model: model.__name__)
    _, schemas = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    paths: Document = {}
    for route in listed:
        paths.setdefault(_PARAMETER.sub(r"{\1}", route.path), {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "dagseal",
            "version": "1",
            "description": "Submit DAG archives, launch their tasks, and administer who may do so.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "dgs_<id>_<secret>_<sum>"}
            },
        },
    }


def statuses(route: Route) -> list[int]:
    """Every status besides the answers."""
    found = {*ALWAYS, *route.refusals}
    if ACTIONS[route.action] != PUBLIC:
        found.update(WITH_TOKEN if route.method == "GET" else (*WITH_TOKEN, 507))
    if route.body:
        found.update(WITH_BODY)
    return sorted(found - set(route.answers))


def _operation(route: Route) -> Document:
    path = _PARAMETER.sub(r"by_\1", route.path)
    made: Document = {
        "operationId": re.sub(r"\W+", "_", route.method.lower() + path).strip("_"),
        "summary": route.summary,
        "tags": [route.action.partition(".")[0]],
        "parameters": _parameters(route),
        "responses": {
            **{str(status): _response(status, content) for status, content in route.answers.items()},
            **{
                str(status): {
                    "description": HTTPStatus(status).phrase,
                    "content": {MEDIA_TYPE: {"schema": _reference(Problem)}},
                }
                for status in statuses(route)
            },
        },
        "security": [] if ACTIONS[route.action] == PUBLIC else [{"token": []}],
    }
    if route.body:
        made["requestBody"] = {"required": True, "content": _content(route.body)}
    return made


def _parameters(route: Route) -> list[Document]:
    found: list[Document] = []
    for name, pattern in _PARAMETER.findall(route.path):
        schema: Document = {"type": "string", "minLength": 1}
        if name in _INTEGERS:
            schema = {"type": "integer", "minimum": 1, "maximum": _INTEGERS[name]}
        elif pattern and pattern != ANYTHING:
            schema["pattern"] = f"^{pattern}$"
        elif kind := _kind_of(name, route.path):
            schema["pattern"] = names.pattern(kind)
        found.append({"name": name, "in": "path", "required": True, "schema": schema})
    for name in route.query:
        schema = {"type": "string"}
        if pattern := _PATTERNS.get((name, route.path)):
            schema["pattern"] = pattern
        elif name in _INTEGERS:
            schema = {"type": "integer", "minimum": int(name in _FROM_ONE), "maximum": _INTEGERS[name]}
        elif kind := _kind_of(name, route.path):
            schema["pattern"] = names.pattern(kind)
        if name in _CHOICES:
            schema["enum"] = list(_CHOICES[name])
        if name in _TIMES:
            schema = _TIME
        if name == "wait_seconds":
            schema = {"type": "number", "minimum": 0}
        found.append({"name": name, "in": "query", "required": (name, route.path) in _REQUIRED, "schema": schema})
    for name in route.headers:
        schema = {"type": "string", "pattern": _HEADERS[name]} if name in _HEADERS else {"type": "string"}
        found.append({"name": name, "in": "header", "required": False, "schema": schema})
    return found


def _kind_of(parameter: str, path: str) -> str | None:
    """What kind of name it is, if it is one."""
    return next((kind for (name, begin), kind in _NAMED.items() if name == parameter and path.startswith(begin)), None)


def _response(status: int, content: Answer) -> Document:
    made: Document = {"description": HTTPStatus(status).phrase}
    if content is not None:
        made["content"] = _content(content if isinstance(content, tuple) else (content,))
    return made


def _content(contents: tuple[Content, ...]) -> Document:
    made: Document = {}
    models = [content for content in contents if isinstance(content, type)]
    if models:
        references = [_reference(model) for model in models]
        made["application/json"] = {"schema": references[0] if len(references) == 1 else {"anyOf": references}}
    for content in contents:
        if isinstance(content, str):
            made[content] = {"schema": {}}
    return made


def _reference(model: type[BaseModel]) -> Document:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _models(route: Route) -> set[type[BaseModel]]:
    answers = [one for answer in route.answers.values() for one in (answer if isinstance(answer, tuple) else (answer,))]
    return {content for content in (*route.body, *answers) if isinstance(content, type)}

"""Errors as RFC 9457 problem details: one literal table from error class to status; the slug is the stable type.

An archive's type is its rule, so that a client needs no list to tell a symbolic link from a bomb.

Promise: an error that is not in the table is our bug; it answers 500 with no detail, and the log has the traceback.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from aiohttp import web

from integrity.errors import (
    ArchiveError,
    ConflictError,
    DagsealError,
    DigestMismatchError,
    FetchError,
    MalformedError,
    NotFoundError,
    PrivilegeError,
    SecurityError,
    SignatureError,
    StaleError,
    UnauthorizedError,
)
from submit_api.refusals import (
    CANCELLED,
    SUPERSEDED,
    ContentEncodingError,
    DigestAlgorithmError,
    EndedError,
    NoSpaceError,
    RequestError,
    UnauthenticatedError,
)
from vocabulary.archiverules import RULES, TOO_LARGE_RULES, UNSUPPORTED_RULES

TYPE_PREFIX = "https://dagseal.dev/problems/"
MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 5
_HEADERS = {  # what would have been accepted
    ContentEncodingError.slug: {"Accept-Encoding": "identity"},
    DigestAlgorithmError.slug: {"Want-Repr-Digest": "sha-512=10"},
}

# The first class that matches decides.
STATUSES: tuple[tuple[type[DagsealError], int], ...] = (
    (UnauthenticatedError, 401),
    (MalformedError, 400),
    (DigestMismatchError, 422),
    (SignatureError, 403),
    (StaleError, 409),
    (UnauthorizedError, 403),
    (PrivilegeError, 403),
    (ArchiveError, 422),
    (SecurityError, 403),
    (ConflictError, 409),
    (NotFoundError, 404),
    (FetchError, 503),
    (NoSpaceError, 507),
)


def _slugs(kind: type[DagsealError]) -> set[str]:
    return {kind.slug}.union(*(_slugs(below) for below in kind.__subclasses__()))


# Why a reservation has ended, as far as the words are ours: a launcher may have said it. None that says to try again.
ENDED = frozenset({*_slugs(DagsealError), *RULES, CANCELLED, SUPERSEDED}) - _slugs(FetchError)


def status_of(error: DagsealError) -> int:
    """The HTTP status; 500 for what a caller cannot have caused."""
    if isinstance(error, RequestError):
        return error.status
    if isinstance(error, ArchiveError) and error.rule in TOO_LARGE_RULES:
        return 413
    if isinstance(error, ArchiveError) and error.rule in UNSUPPORTED_RULES:
        return 415
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)


def slug_of(error: DagsealError) -> str:
    """The last part of the problem's type. An archive's code may have named the rule: only one that we know is a type."""
    if isinstance(error, ArchiveError) and error.rule in RULES:
        return error.rule
    if isinstance(error, EndedError) and error.rule in ENDED:
        return error.rule
    return error.slug


def document(error: DagsealError) -> dict[str, Any]:
    """The problem's members."""
    status = status_of(error)
    if status == 500:
        return internal()
    problem: dict[str, Any] = {
        "type": TYPE_PREFIX + slug_of(error),
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": str(error),
    }
    if isinstance(error, ArchiveError):
        problem["errors"] = [{"rule": error.rule, "entry": error.entry, "detail": error.detail}]
    elif isinstance(error, RequestError) and error.findings:
        problem["errors"] = [{"rule": f.rule, "entry": f.entry, "detail": f.detail} for f in error.findings]
    return problem


def internal() -> dict[str, Any]:
    """What a caller learns of a bug of ours."""
    return {
        "type": TYPE_PREFIX + "internal",
        "title": "Internal Server Error",
        "status": 500,
        "detail": "the service failed; its log has the details under this response's Dagseal-Request-Id",
    }


def response(problem: dict[str, Any]) -> web.Response:
    answer = web.Response(
        status=problem["status"],
        body=json.dumps(problem, ensure_ascii=False).encode("utf-8", "replace"),
        content_type=MEDIA_TYPE,
    )
    if problem["status"] == 401:
        answer.headers["WWW-Authenticate"] = 'Bearer realm="dagseal"'
    if problem["status"] in (429, 503):
        answer.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    answer.headers.update(_HEADERS.get(problem["type"].removeprefix(TYPE_PREFIX), {}))
    if problem["status"] == 408:
        answer.force_close()
    return answer

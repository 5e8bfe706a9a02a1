"""Answers that are not what was asked for, as our errors: the one reading of RFC 9457 problem details.

The `type` of a problem ends in the slug of an error class or in an archive's rule; where a proxy or another server answered,
the status decides.
A 408, 425, 429 or 5xx is a `FetchError`: the peer did not do the work, and the same request may succeed later.
"""

from __future__ import annotations

import json
import re
from typing import Any

from integrity import errors
from vocabulary.archiverules import RULES

PROBLEM_TYPE = "application/problem+json"
MAX_TEXT_CHARS = 2000
MAX_FINDINGS = 5


class RequestError(errors.DagsealError):
    """The server cannot use the request as it was written; sending it again changes nothing."""

    slug = "bad-request"


class StatedError(errors.ConflictError):
    """A conflict that the server calls by a name of its own: `named`, which is `conflict` for who knows none but ours."""

    def __init__(self, named: str, detail: str) -> None:
        super().__init__(detail)
        self.named = named


def named(error: errors.DagsealError) -> str:
    """The slug to pass on."""
    return error.named if isinstance(error, StatedError) else error.slug


_SLUG = re.compile(r"[a-z0-9-]{1,100}")
_RETRYABLE = frozenset({408, 425, 429})


# The shared classes only: another service's own ones may be loaded in the same process, and are not ours.
_CLASSES: dict[str, type[errors.DagsealError]] = {
    kind.slug: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.DagsealError)
} | {RequestError.slug: RequestError}


def to_error(status: int, content_type: str, body: bytes, *, what: str) -> errors.DagsealError:
    """The error that this answer stands for; `what` names the request, for answers that do not explain themselves."""
    problem = _problem(content_type, body)
    detail = _text(problem.get("detail")) or _text(problem.get("title")) or f"{what} was answered with status {status}"
    if status in _RETRYABLE or status >= 500:
        return errors.FetchError(f"{detail}; try again")
    slug = _text(problem.get("type")).rpartition("/")[2]
    kind = _CLASSES.get(slug) or _archive_rule(slug, problem) or _by_status(status)
    if status == 409 and kind is errors.ConflictError and slug != kind.slug and _SLUG.fullmatch(slug):
        return StatedError(slug, detail)
    if status == 413 and not issubclass(kind, errors.ArchiveError):
        return errors.InvalidArchiveError("too-large", detail)
    if issubclass(kind, errors.ArchiveError):
        return _archive_error(kind, problem, detail)
    return kind("; ".join([detail, *_findings(problem)]) if kind is RequestError else detail)


def from_slug(slug: str, detail: str) -> errors.DagsealError:
    """The error that a launch or a launcher names by its slug."""
    kind = _CLASSES.get(slug, errors.SecurityError)
    return kind(slug, detail) if issubclass(kind, errors.ArchiveError) else kind(detail)


def _archive_rule(slug: str, problem: dict[str, Any]) -> type[errors.ArchiveError] | None:
    """`unsupported-media-type` is a rule, and also what is said of a request: only a rule comes with its finding."""
    return RULES.get(slug) if isinstance(problem.get("errors"), list) else None


def _by_status(status: int) -> type[errors.DagsealError]:
    if status in (401, 403):
        return errors.UnauthorizedError
    if status in (404, 410):
        return errors.NotFoundError
    if status in (409, 412, 428):
        return errors.ConflictError
    return RequestError


def _findings(problem: dict[str, Any]) -> list[str]:
    """What the server says of single entries, where its detail does not say it already."""
    listed, detail = problem.get("errors"), _text(problem.get("detail"))
    found = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    lines = (f"{_text(item.get('entry'))}: {_text(item.get('detail'))}" for item in found[:MAX_FINDINGS])
    return [line for line in lines if line not in detail]


def _archive_error(kind: type[errors.ArchiveError], problem: dict[str, Any], detail: str) -> errors.ArchiveError:
    """The first of `errors` has the rule and the member; the rest is said in the detail."""
    listed = problem.get("errors")
    first = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], dict) else {}
    rule = _text(first.get("rule")) or kind.slug
    return kind(rule, _text(first.get("detail")) or detail, _text(first.get("entry")))


def _problem(content_type: str, body: bytes) -> dict[str, Any]:
    if content_type.partition(";")[0].strip() != PROBLEM_TYPE:
        return {}
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value[:MAX_TEXT_CHARS] if isinstance(value, str) else ""

"""Every answer of the API becomes one of our errors, whoever answered."""

from __future__ import annotations

import json

import pytest

from integrity import errors
from worker_cache import problems
from worker_cache.problems import RequestError


def problem(status: int, slug: str, **more: object) -> errors.DagsealError:
    body = json.dumps({"type": f"https://dagseal.dev/problems/{slug}", "status": status, "detail": "why", **more})
    return problems.to_error(status, "application/problem+json; charset=utf-8", body.encode(), what="GET /x")


@pytest.mark.parametrize(
    ("status", "slug", "kind"),
    [
        (401, "unauthenticated", errors.UnauthorizedError),
        (403, "unauthorized", errors.UnauthorizedError),
        (403, "not-owner", errors.NotOwnerError),
        (403, "out-of-scope", errors.OutOfScopeError),
        (403, "privilege", errors.PrivilegeError),
        (404, "not-found", errors.NotFoundError),
        (404, "unknown-path", errors.NotFoundError),
        (409, "conflict", errors.ConflictError),
        (409, "replay", errors.ReplayError),
        (412, "precondition", errors.ConflictError),
        (422, "digest-mismatch", errors.DigestMismatchError),
        (422, "invalid-request", RequestError),
        (400, "malformed", errors.MalformedError),
        (400, "bad-request", RequestError),
        (413, "too-large", errors.InvalidArchiveError),
        (408, "slow-body", errors.FetchError),
        (429, "slow-down", errors.FetchError),
        (500, "internal", errors.FetchError),
        (503, "fetch", errors.FetchError),
        (507, "no-space", errors.FetchError),
    ],
)
def test_slug_and_status_give_the_class(status: int, slug: str, kind: type[errors.DagsealError]) -> None:
    error = problem(status, slug)
    assert type(error) is kind
    assert "why" in str(error)


def test_an_archive_refusal_keeps_rule_and_entry() -> None:
    error = problem(
        422, "unsafe-archive", errors=[{"rule": "zip-absolute", "entry": "/etc/x", "detail": "is absolute"}]
    )
    assert isinstance(error, errors.UnsafeArchiveError)
    assert (error.rule, error.entry, str(error)) == ("zip-absolute", "/etc/x", "/etc/x: is absolute")


def test_a_rule_as_type_is_an_archive_refusal_and_only_with_its_finding() -> None:
    finding = [{"rule": "zip-crc", "entry": "a", "detail": "is damaged"}]
    assert type(problem(422, "zip-crc", errors=finding)) is errors.UnsafeArchiveError
    assert type(problem(413, "source-too-large", errors=finding)) is errors.UnsafeArchiveError
    assert type(problem(422, "import-error", errors=finding)) is errors.InvalidArchiveError
    assert type(problem(415, "unsupported-media-type", errors=finding)) is errors.InvalidArchiveError
    assert type(problem(415, "unsupported-media-type")) is RequestError


def test_single_entries_are_said() -> None:
    error = problem(422, "invalid-request", errors=[{"rule": "r", "entry": "db", "detail": "has no type"}, 7])
    assert str(error) == "why; db: has no type"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'{"type": 7, "detail": 9, "errors": 3}', b"\xff"])
@pytest.mark.parametrize("content_type", ["application/problem+json", "text/html", ""])
def test_an_answer_that_explains_nothing_is_told_by_its_status(body: bytes, content_type: str) -> None:
    error = problems.to_error(404, content_type, body, what="GET /x")
    assert type(error) is errors.NotFoundError
    assert "GET /x" in str(error)


def test_a_very_long_detail_is_cut() -> None:
    assert len(str(problem(404, "not-found", detail="x" * 100_000))) == problems.MAX_TEXT_CHARS


@pytest.mark.parametrize(("slug", "kind"), [("replay", errors.ReplayError), ("nonsense", errors.SecurityError)])
def test_a_slug_alone(slug: str, kind: type[errors.DagsealError]) -> None:
    assert type(problems.from_slug(slug, "why")) is kind


def test_a_conflict_keeps_the_name_that_the_server_gave_it() -> None:
    for slug, named in (("no-version", "no-version"), ("conflict", "conflict"), ("No Version", "conflict")):
        error = problem(409, slug)
        assert (isinstance(error, errors.ConflictError), problems.named(error)) == (True, named)
    assert problems.named(problem(409, "digest-mismatch")) == "digest-mismatch"

"""Errors that only an HTTP service has; all other refusals are `integrity.errors`. Each has its own status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from integrity.errors import DagsealError, FetchError, SecurityError

NO_SPACE = "the service has no space left: nothing was stored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of a problem's `errors`."""

    rule: str
    entry: str
    detail: str


class RequestError(DagsealError):
    """The request is to be changed before it is sent again."""

    slug = "bad-request"
    status: ClassVar[int] = 400

    def __init__(self, detail: str, findings: tuple[Finding, ...] = ()) -> None:
        super().__init__(detail)
        self.findings = findings


class InvalidRequestError(RequestError):
    """Well-formed, but a field is missing, unknown or has a value that cannot be used."""

    slug = "invalid-request"
    status = 422


class TooLargeError(RequestError):
    slug = "too-large"
    status = 413


class LengthRequiredError(RequestError):
    slug = "length-required"
    status = 411


class UnsupportedMediaError(RequestError):
    slug = "unsupported-media-type"
    status = 415


class SlowBodyError(RequestError):
    slug = "slow-body"
    status = 408


class PreconditionError(RequestError):
    """Somebody else changed it meanwhile (RFC 9110, section 13.1.1): look again, then decide."""

    slug = "precondition"
    status = 412


class RangeError(RequestError):
    slug = "range-not-satisfiable"
    status = 416


class UnknownPathError(RequestError):
    slug = "unknown-path"
    status = 404


class MethodError(RequestError):
    slug = "method-not-allowed"
    status = 405


class ExpectationError(RequestError):
    slug = "expectation-failed"
    status = 417


class UnauthenticatedError(SecurityError):
    """No token, or none that is valid now."""

    slug = "unauthenticated"


class BelowFloorError(SecurityError):
    """The launch is isolated less than its release or its queue asks for: no secret is given to it."""

    slug = "below-isolation-floor"


class UnavailableError(FetchError):
    """The database is away, or somebody else's: nothing was changed, or, for an upload, ask for it again to find out."""

    slug = "unavailable"


class NoSpaceError(DagsealError):
    """The disk of the service is full; nothing was stored."""

    slug = "no-space"

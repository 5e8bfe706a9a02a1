"""Errors that only an HTTP service has; all other refusals are `integrity.errors`. Each has its own status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from integrity.errors import ConflictError, DagsealError, FetchError, SecurityError, UnauthorizedError

CANCELLED, SUPERSEDED = "cancelled", "superseded"  # slugs, of why a reservation has ended
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


class ContentEncodingError(RequestError):
    """A coded body is refused: what is hashed, counted and stored is what was sent."""

    slug = "content-encoding"
    status = 415


class TooManyUploadsError(RequestError):
    """This principal has as many uploads under way as one may have: send it again when one of them has ended."""

    slug = "too-many-uploads"
    status = 429


class DriftedError(ConflictError):
    """What this worker holds was changed under it, or it follows another log: it is mended first, then gets launches again."""

    slug = "drifted"


class DigestAlgorithmError(RequestError):
    """Repr-Digest names no digest that is taken here (RFC 9530)."""

    slug = "digest-algorithm"


class AuthorSignatureError(RequestError):
    """What was sent as the author's signature is none of this archive with these bytes: sign it again, as it is now."""

    slug = "author-signature"
    status = 422


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
    """No token, or none that is valid now. `token_id` is the one that was tried with a secret that is not its own."""

    slug = "unauthenticated"

    def __init__(self, detail: str, token_id: str = "") -> None:
        super().__init__(detail)
        self.token_id = token_id


class RequestSignatureError(UnauthenticatedError):
    """The request is signed, but not as an agent of an enrolled worker signs it (`vocabulary.signedrequests`)."""

    slug = "request-signature"


class ClockSkewError(UnauthenticatedError):
    """The signature is of another time than the service's clock shows."""

    slug = "clock-skew"


class ReplayedRequestError(UnauthenticatedError):
    """The signed request was made already."""

    slug = "replayed-request"


class JoinTokenError(UnauthenticatedError):
    """No worker joins with this token: it is none of ours, was used, has expired, or is for another worker."""

    slug = "join-token"


class EpochError(RequestError):
    """Signed for another process of this service than the one that answers: sign it again, with the epoch of the answer."""

    slug = "request-epoch"
    status = 401


class TooManyRequestsError(RequestError):
    slug = "too-many-requests"
    status = 429


class ThrottledError(RequestError):
    """A failed authentication, after too many others. A right token is not affected."""

    slug = "too-many-failures"
    status = 429

    def __init__(self, seconds: int) -> None:
        super().__init__(
            f"this failed, as too much did before it from here or for this token: wait {seconds} seconds, and look at the token"
        )
        self.seconds = seconds


class NoPublisherError(UnauthorizedError):
    """A true token of CI, and no trusted publisher for the run that it tells of."""

    slug = "no-publisher"


class BelowFloorError(SecurityError):
    """The launch is isolated less than its release or its queue asks for: no secret is given to it."""

    slug = "below-isolation-floor"


class SecondMemberError(UnauthorizedError):
    """A second member is to approve a release: not its submitter, and nobody from outside the group."""

    slug = "second-member"


class UnapprovedError(ConflictError):
    """The release waits for approval, and is not launched before."""

    slug = "unapproved"


class NoVersionError(ConflictError):
    """Airflow's run is pinned to no set of releases, so what it would run is not known: begin a run of a version."""

    slug = "no-version"


class EndedError(ConflictError):
    """The reservation is not offered, or not again; `rule` is the slug of why, also of the problem."""

    def __init__(self, detail: str, rule: str = ConflictError.slug) -> None:
        super().__init__(detail)
        self.rule = rule


class UnavailableError(FetchError):
    """Database or bucket are away, or somebody else's: nothing was changed, or, for an upload, ask for it again to find out."""

    slug = "unavailable"


class TakenError(UnavailableError):
    """Another process serves this database."""


class NoSpaceError(DagsealError):
    """The disk of the service is full; nothing was stored."""

    slug = "no-space"

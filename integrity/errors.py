"""Errors, named by what the reader should do.

    SecurityError      never retried, always audited
    FetchError         retry may help
    InvalidArchiveError, ConflictError, NotFoundError
                       the caller's request is to be changed
    SettingsError      fix the configuration

A `RuntimeError` is a bug of ours and is never caught. Each class has a `slug`: the stable last part of the `type` of an
RFC 9457 problem, of an audit event and of a launcher's refusal.
"""

from __future__ import annotations

from typing import ClassVar


class DagsealError(Exception):
    """The common base. `str(error)` says what is wrong and what to do next."""

    slug: ClassVar[str] = "error"


class SecurityError(DagsealError):
    """Something is not what it claims to be, or somebody may not do it: refuse, audit, do not retry."""

    slug = "security"


class MalformedError(SecurityError):
    """Bytes are not the one canonical form of the document that they claim to be."""

    slug = "malformed"


class DigestMismatchError(SecurityError):
    """Bytes do not have the SHA-512 that was recorded for them."""

    slug = "digest-mismatch"


class SignatureError(SecurityError):
    """No trusted key signed exactly these bytes for this purpose."""

    slug = "signature"


class StaleError(SecurityError):
    """Genuine, but not now."""

    slug = "stale"


class ExpiredError(StaleError):
    """Its time is over, or has not come yet."""

    slug = "expired"


class RollbackError(StaleError):
    """Older than what was already seen."""

    slug = "rollback"


class ReplayError(StaleError):
    """Was already used, and is good for once."""

    slug = "replay"


class UnauthorizedError(SecurityError):
    """The caller is known but may not do this."""

    slug = "unauthorized"


class NotOwnerError(UnauthorizedError):
    """The object belongs to somebody else, and the caller is not in its group."""

    slug = "not-owner"


class OutOfScopeError(UnauthorizedError):
    """Outside what the caller, the token, the audience or a grant covers; `rule`: the id of the rule that says so, if any."""

    slug, rule = "out-of-scope", ""


class PrivilegeError(SecurityError):
    """This unix account may not be become, or a privilege could not be proved gone."""

    slug = "privilege"


class ArchiveError(DagsealError):
    """An archive is refused. `rule` is a stable slug; `entry` names the member, or is empty for the whole archive."""

    slug = "archive"

    def __init__(self, rule: str, detail: str, entry: str = "") -> None:
        super().__init__(f"{entry}: {detail}" if entry else detail)
        self.rule = rule
        self.detail = detail
        self.entry = entry


class UnsafeArchiveError(ArchiveError, SecurityError):
    """The archive is built so that two readers could see different files, or files in other places."""

    slug = "unsafe-archive"


class InvalidArchiveError(ArchiveError):
    """The archive is honest but cannot be used: not Python, fails on import, defines no DAG, is unstable."""

    slug = "invalid-archive"


class FetchError(DagsealError):
    """A peer did not answer, or not fully: try again."""

    slug = "fetch"


class ConflictError(DagsealError):
    """The request contradicts what is recorded; read the current state and decide again."""

    slug = "conflict"


class NotFoundError(DagsealError):
    """No such thing, or none that the caller may see."""

    slug = "not-found"


class SettingsError(DagsealError):
    """The configuration of this process or host is to be fixed first."""

    slug = "settings"

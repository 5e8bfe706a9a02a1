"""Exit codes, and the one table that gives an error its code."""

from __future__ import annotations

from integrity import errors

OK = 0
VERIFICATION_FAILED = 1
USAGE = 2
NOT_VERIFIED = 3
NOT_AUTHORISED = 4
NOT_FOUND = 5
CONFLICT = 6
REFUSED = 7
TASK_FAILED = 8
TRY_AGAIN = 75
INTERRUPTED = 130


class UsageError(errors.DagsealError):
    """The command was written in a way that cannot be carried out."""

    slug = "usage"


class TaskFailedError(errors.DagsealError):
    """The launch was carried out and its task did not succeed."""

    slug = "task-failed"


class VerificationFailedError(errors.DagsealError):
    """The bytes are not what is recorded."""

    slug = "verification-failed"


class NotVerifiedError(errors.DagsealError):
    """It could not be found out whether the bytes are what is recorded: never a success."""

    slug = "not-verified"


class PolicyError(errors.SecurityError):
    """The caller is who he is, and a rule of this installation refuses what he asks for."""

    slug = "policy"


# The first class that matches decides: more special ones stand first.
_CODES: tuple[tuple[type[errors.DagsealError], int], ...] = (
    (UsageError, USAGE),
    (VerificationFailedError, VERIFICATION_FAILED),
    (NotVerifiedError, NOT_VERIFIED),
    (TaskFailedError, TASK_FAILED),
    (PolicyError, REFUSED),
    (errors.UnauthorizedError, NOT_AUTHORISED),
    (errors.SecurityError, REFUSED),
    (errors.ArchiveError, REFUSED),
    (errors.NotFoundError, NOT_FOUND),
    (errors.ConflictError, CONFLICT),
    (errors.FetchError, TRY_AGAIN),
    (errors.SettingsError, USAGE),
)


def code_of(error: errors.DagsealError) -> int:
    """The exit code; what the server could not use as it was written counts as usage."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), USAGE)


# How a launch ended, for `launch --follow`.
_LAUNCH_CODES = {
    "success": OK,
    "skipped": OK,
    "refused": REFUSED,
    "up_for_reschedule": TRY_AGAIN,
    "deferred": TRY_AGAIN,
}


def code_of_launch(state: str) -> int:
    """0 success or skipped, 7 refused, 75 the task asked to go on later, 8 for every other end."""
    return _LAUNCH_CODES.get(state, TASK_FAILED)

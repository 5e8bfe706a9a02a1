"""What a token is limited to. Scopes take away from what its principal may, and never give.

    archive:push:<prefix>   submit archives whose names begin so, and see them
    launch:<glob>           launch tasks of dags whose ids match; see these launches, their logs, and cancel them; ask what
                            a launch would run as; see what sets consist of
    audit:read              read the audit log
    admin                   no limit: what an administrator's token without scopes may

A token without scopes has no limit. Globs are those of `fnmatch`, case-sensitive, over the whole dag_id.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from fnmatch import fnmatchcase

ARCHIVE, LAUNCH, AUDIT, EVERYTHING = "archive:push", "launch", "audit:read", "admin"
_SCOPE = re.compile(r"archive:push:[\w.-]{1,200}|launch:[\w.*?\[\]!-]{1,250}|audit:read|admin")

# Actions that a limited token can have at all; for every other it needs `admin`.
ACTIONS: dict[str, str] = {
    "archive.submit": ARCHIVE,
    "archive.list": ARCHIVE,
    "archive.read": ARCHIVE,
    "release.read": ARCHIVE,
    "manifest.read": ARCHIVE,
    "blob.read": ARCHIVE,
    "launch.create": LAUNCH,
    "launch.reserve": LAUNCH,
    "set.read": LAUNCH,  # the scheduler checks against it what it reserves
    "launch.list": LAUNCH,
    "launch.read": LAUNCH,
    "launch.log.read": LAUNCH,
    "launch.cancel": LAUNCH,
    "impersonation.explain": LAUNCH,
    "audit.read": AUDIT,
}


def is_scope(text: str) -> bool:
    """Whether it is written as one of the four."""
    return _SCOPE.fullmatch(text) is not None


def permit(scopes: Collection[str], action: str) -> bool:
    """Whether a token with these may ask for `action` at all, of some object."""
    if not scopes or EVERYTHING in scopes:
        return True
    kind = ACTIONS.get(action)
    return kind is not None and any(scope == kind or scope.startswith(f"{kind}:") for scope in scopes)


def prefixes(scopes: Collection[str]) -> list[str]:
    """How the names of the archives begin that they cover: one of these; the empty one is every name's."""
    if not scopes or EVERYTHING in scopes:
        return [""]
    return sorted(scope.removeprefix(f"{ARCHIVE}:") for scope in scopes if scope.startswith(f"{ARCHIVE}:"))


def cover(scopes: Collection[str], kind: str, name: str) -> bool:
    """Whether they cover this object: the archive's name for `ARCHIVE`, the dag_id for `LAUNCH`."""
    if kind == ARCHIVE:
        return any(name.startswith(prefix) for prefix in prefixes(scopes))
    if not scopes or EVERYTHING in scopes:
        return True
    globs = [scope.removeprefix(f"{kind}:") for scope in scopes if scope.startswith(f"{kind}:")]
    return any(fnmatchcase(name, glob) for glob in globs)

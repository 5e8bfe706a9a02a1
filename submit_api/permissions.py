"""Who may do what: one literal table, and the one rule about what people own.

An action's word says who may ask at all. `archive:r` and its like then ask for a bit of the object's mode
(`submit_api.modes`), which administrators always have. Workers only do worker actions: they never submit, read or administer.
"""

from __future__ import annotations

from integrity.errors import NotOwnerError, OutOfScopeError
from submit_api import modes, scopes
from submit_api.identity import USER, WORKER, Caller
from submit_api.modes import Owned

PUBLIC, USERS, ADMIN, WORKERS, FETCHERS = "public", "users", "admin", "workers", "fetchers"

ACTIONS: dict[str, str] = {
    "archive.submit": "archive:w",  # a new name is free
    "archive.list": "archive:r",  # lists only such
    "archive.read": "archive:r",
    "release.read": "archive:r",
    "release.activate": "archive:w",
    "release.rollback": "archive:w",
    "release.revoke": "archive:w",
    "release.approve": "archive:r",  # and of the groups that ask, other than its submitter: `submit_api.approving`
    "manifest.read": FETCHERS,  # workers, and users with archive:r
    "blob.read": FETCHERS,
    "set.put": WORKERS,
    "set.read": FETCHERS,  # workers, and users with archive:r on each of its archives
    "log.checkpoint": PUBLIC,  # names nothing
    "log.read": FETCHERS,  # whoever has a token: names, digests and principals, no bytes
    "launch.create": "archive:x",
    "launch.reserve": "archive:x",  # of each reservation; what is refused is told of each, too
    "launch.list": "archive:r",  # and who launched it
    "launch.read": "archive:r",  # and who launched it
    "launch.log.read": "archive:r",  # and who launched it
    "launch.cancel": "archive:x",  # and who launched it
    "launch.take": WORKERS,
    "launch.claim": WORKERS,
    "launch.log.append": WORKERS,
    "launch.state": WORKERS,
    "connection.write": "connection:w",  # a new name: administrators, as names are everybody's
    "connection.read": "connection:r",
    "connection.remove": "connection:w",
    "connection.import": ADMIN,
    "variable.write": "variable:w",  # a new name: administrators
    "variable.read": "variable:r",
    "variable.remove": "variable:w",
    "ownership.read": USERS,  # what the mode lets them read
    "ownership.change": USERS,  # the owner; some of it administrators only
    "dag.transfer": "archive:w",  # on both archives
    "queue.write": ADMIN,
    "queue.read": "queue:r",  # lists only such
    "queue.remove": ADMIN,
    "grant.add": ADMIN,
    "grant.read": ADMIN,
    "grant.remove": ADMIN,
    "impersonation.add": ADMIN,
    "impersonation.read": ADMIN,
    "impersonation.remove": ADMIN,
    "impersonation.explain": "archive:x",
    "group.write": ADMIN,
    "group.read": ADMIN,
    "token.create": ADMIN,
    "token.read": ADMIN,
    "token.revoke": ADMIN,
    "token.exchange": PUBLIC,  # what is in the body proves who asks
    "publisher.add": ADMIN,
    "publisher.read": ADMIN,
    "publisher.remove": ADMIN,
    "key.read": ADMIN,
    "key.rotate": ADMIN,
    "key.retire": ADMIN,
    "worker.enroll": ADMIN,
    "worker.invite": ADMIN,
    "worker.join": PUBLIC,  # who has the invitation's token
    "worker.report": WORKERS,
    "worker.read": ADMIN,
    "worker.revoke": ADMIN,
    "audit.read": ADMIN,
    "health": PUBLIC,
    "metrics": PUBLIC,
    "openapi": PUBLIC,
    "docs": PUBLIC,
}


def require_action(action: str, caller: Caller) -> None:
    """Raises `OutOfScopeError` when this kind of caller never may; `KeyError` for an action that is not listed."""
    who = ACTIONS[action]
    allowed = {
        ADMIN: caller.kind == USER and caller.admin,
        WORKERS: caller.kind == WORKER,
        FETCHERS: True,
    }.get(who, caller.kind == USER)
    if not allowed:
        need = {ADMIN: "an administrator's token", WORKERS: "a worker's token"}.get(who, "a user's token")
        raise OutOfScopeError(f"{action} needs {need}; this one is of {caller.kind} {caller.principal}")
    if not scopes.permit(caller.scopes, action):
        raise OutOfScopeError(f"{action} is outside this token's scopes, {', '.join(caller.scopes)}: use another token")


def require_scope(caller: Caller, kind: str, name: str) -> None:
    """Raises `OutOfScopeError` where the token is limited to other archives or dags."""
    if not scopes.cover(caller.scopes, kind, name):
        raise OutOfScopeError(f"{name} is outside this token's scopes, {', '.join(caller.scopes)}: use another token")


def may(caller: Caller, wanted: int, found: Owned) -> bool:
    """Whether this user has that bit."""
    if caller.kind != USER:
        return False
    return caller.admin or modes.permits(found, wanted, principal=caller.principal, groups=caller.groups)


def require(caller: Caller, wanted: int, found: Owned, what: str) -> None:
    """Raises `NotOwnerError`, saying whom to ask."""
    if not may(caller, wanted, found):
        raise NotOwnerError(
            f"{what} belongs to {found.owner} and group {found.group} with mode {modes.shown(found.mode)}; "
            f"{caller.principal} may not {modes.WORDS[wanted]} it: ask {found.owner} to change the mode, or an administrator "
            f"to add {caller.principal} to group {found.group}"
        )

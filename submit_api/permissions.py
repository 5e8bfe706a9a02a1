"""Who may do what: one literal table, and the one rule about objects.

An action's word says who may ask at all; `MEMBER` actions then look at the object: its owner, a member of its group, or
an administrator. Workers only do worker actions: they never submit, read or administer.
"""

from __future__ import annotations

from integrity.errors import NotOwnerError, OutOfScopeError
from submit_api import scopes
from submit_api.identity import USER, WORKER, Caller

PUBLIC, USERS, MEMBER, ADMIN, WORKERS, FETCHERS = "public", "users", "member", "admin", "workers", "fetchers"

ACTIONS: dict[str, str] = {
    "archive.submit": USERS,  # a new name is free; an existing archive asks for MEMBER besides
    "archive.list": USERS,  # shows what the caller is a member of
    "archive.read": MEMBER,
    "release.read": MEMBER,
    "release.activate": MEMBER,
    "release.revoke": MEMBER,
    "manifest.read": FETCHERS,
    "blob.read": FETCHERS,
    "launch.create": MEMBER,
    "launch.list": USERS,
    "launch.read": MEMBER,
    "launch.log.read": MEMBER,
    "launch.cancel": MEMBER,
    "launch.take": WORKERS,
    "launch.claim": WORKERS,
    "launch.log.append": WORKERS,
    "launch.state": WORKERS,
    "connection.write": ADMIN,
    "connection.read": ADMIN,
    "connection.remove": ADMIN,
    "connection.import": ADMIN,
    "variable.write": ADMIN,
    "variable.read": ADMIN,
    "variable.remove": ADMIN,
    "grant.add": ADMIN,
    "grant.read": ADMIN,
    "grant.remove": ADMIN,
    "impersonation.add": ADMIN,
    "impersonation.read": ADMIN,
    "impersonation.remove": ADMIN,
    "group.write": ADMIN,
    "group.read": ADMIN,
    "token.create": ADMIN,
    "token.read": ADMIN,
    "token.revoke": ADMIN,
    "key.read": ADMIN,
    "key.rotate": ADMIN,
    "key.retire": ADMIN,
    "worker.enroll": ADMIN,
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
        USERS: caller.kind == USER,
        MEMBER: caller.kind == USER,
        ADMIN: caller.kind == USER and caller.admin,
        WORKERS: caller.kind == WORKER,
        FETCHERS: True,
    }[who]
    if not allowed:
        need = {ADMIN: "an administrator's token", WORKERS: "a worker's token"}.get(who, "a user's token")
        raise OutOfScopeError(f"{action} needs {need}; this one is of {caller.kind} {caller.principal}")
    if not scopes.permit(caller.scopes, action):
        raise OutOfScopeError(f"{action} is outside this token's scopes, {', '.join(caller.scopes)}: use another token")


def require_scope(caller: Caller, kind: str, name: str) -> None:
    """Raises `OutOfScopeError` where the token is limited to other archives or dags."""
    if not scopes.cover(caller.scopes, kind, name):
        raise OutOfScopeError(f"{name} is outside this token's scopes, {', '.join(caller.scopes)}: use another token")


def is_member(caller: Caller, owner: str, group: str) -> bool:
    return caller.kind == USER and (caller.admin or caller.principal == owner or group in caller.groups)


def require_member(caller: Caller, owner: str, group: str, what: str) -> None:
    """Raises `NotOwnerError`, saying whom to ask."""
    if not is_member(caller, owner, group):
        raise NotOwnerError(
            f"{what} belongs to {owner} and group {group}; {caller.principal} is neither: "
            f"ask {owner}, or an administrator to add {caller.principal} to group {group}"
        )

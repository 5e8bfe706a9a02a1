"""Scopes: what a limited token may, as one literal table, and that they only ever take away."""

from __future__ import annotations

from dataclasses import replace

import pytest

from integrity.errors import OutOfScopeError
from submit_api import permissions, scopes
from submit_api.identity import Caller

ALICE = Caller(principal="alice", kind="user", admin=False, token_id="t", address="", groups=frozenset())
ROOT = replace(ALICE, principal="root", admin=True)

# scope: the actions that a token with this one alone may ask for
PERMITTED = {
    "archive:push:etl": {
        "archive.submit", "archive.list", "archive.read", "release.read", "manifest.read", "blob.read",
    },
    "launch:etl*": {
        "launch.create", "launch.reserve", "launch.list", "launch.read", "launch.log.read", "launch.cancel",
        "impersonation.explain", "set.read",
    },
    "audit:read": {"audit.read"},
    "admin": set(permissions.ACTIONS),
}  # fmt: skip


def may(caller: Caller, action: str) -> bool:
    try:
        permissions.require_action(action, caller)
    except OutOfScopeError:
        return False
    return True


@pytest.mark.parametrize("action", sorted(a for a, who in permissions.ACTIONS.items() if who != permissions.PUBLIC))
@pytest.mark.parametrize("scope", PERMITTED)
@pytest.mark.parametrize("caller", [ALICE, ROOT], ids=lambda caller: caller.principal)
def test_a_scope_takes_away_and_never_gives(caller: Caller, scope: str, action: str) -> None:
    assert may(replace(caller, scopes=(scope,)), action) == (may(caller, action) and action in PERMITTED[scope])


def test_two_scopes_permit_what_either_does() -> None:
    both = replace(ALICE, scopes=("archive:push:etl", "launch:x"))
    assert may(both, "archive.submit") and may(both, "launch.create")
    assert not may(both, "release.revoke") and not may(both, "audit.read")


@pytest.mark.parametrize(
    ("given", "kind", "name", "covered"),
    [
        ((), scopes.ARCHIVE, "any.py", True),
        (("admin",), scopes.LAUNCH, "any", True),
        (("archive:push:etl",), scopes.ARCHIVE, "etl.py", True),
        (("archive:push:etl",), scopes.ARCHIVE, "Etl.py", False),
        (("archive:push:etl",), scopes.ARCHIVE, "my-etl.py", False),
        (("archive:push:etl",), scopes.LAUNCH, "etl", False),
        (("launch:etl*",), scopes.LAUNCH, "etl_daily", True),
        (("launch:etl",), scopes.LAUNCH, "etl_daily", False),
        (("launch:ETL*",), scopes.LAUNCH, "etl_daily", False),
        (("launch:etl*",), scopes.ARCHIVE, "etl.py", False),
        (("audit:read",), scopes.LAUNCH, "etl", False),
        (("launch:a", "launch:b"), scopes.LAUNCH, "b", True),
    ],
)
def test_what_is_covered(given: tuple[str, ...], kind: str, name: str, covered: bool) -> None:
    assert scopes.cover(given, kind, name) == covered


@pytest.mark.parametrize(
    "text",
    [
        "",
        "admin ",
        "Admin",
        "audit",
        "audit:write",
        "archive:push:",
        "archive:push:a/b",
        "archive:*",
        "launch:",
        "launch:a b",
    ],
)
def test_what_is_no_scope(text: str) -> None:
    assert not scopes.is_scope(text)

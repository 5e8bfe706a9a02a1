"""Which releases may be retired: the rule without I/O, one reason to stay at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from submit_api.registry.retention import Head
from submit_api.retiring import retirable

OLD = Head(archive="a.py", number=1, digest="sha512:0", created_at=100, approvals=0, approved_at=None)
LATEST = {"a.py": 5, "b.py": 1}


@pytest.mark.parametrize(
    ("changes", "keep", "used", "goes"),
    [
        ({}, 1, (), True),
        ({}, 4, (), True),
        ({}, 5, (), False),  # one of the newest five
        ({"number": 5}, 1, (), False),  # the newest
        ({"number": 4}, 1, (), True),
        ({"created_at": 100}, 1, (), True),
        ({"created_at": 101}, 1, (), False),  # not old enough
        ({}, 1, {("a.py", 1)}, False),
        ({}, 1, {("a.py", 2), ("b.py", 1)}, True),
        ({"approvals": 1}, 1, (), False),  # waits
        ({"approvals": 1, "approved_at": 50}, 1, (), True),
        ({"archive": "b.py"}, 1, (), False),  # the newest of its own archive
    ],
)
def test_who_goes(changes: dict[str, Any], keep: int, used: Any, goes: bool) -> None:
    head = replace(OLD, **changes)
    assert retirable([head], LATEST, used, keep=keep, before_us=100) == ([head] if goes else [])

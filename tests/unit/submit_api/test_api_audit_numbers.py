"""Gaps in the audit log's numbers: which are explained, and up to where the log was exported."""

from __future__ import annotations

import pytest

from submit_api.audit_numbers import Numbers, exported_through, named, read


def heard(*told: int | tuple[int, int], after: int = 0) -> list[str]:
    """Findings of events with these numbers; a pair is a removal up to its second."""
    found = Numbers(after)
    for one in told:
        seq, through = one if isinstance(one, tuple) else (one, 0)
        found.hear(seq, "audit.remove" if through else "x", named(1, through) if through else "x")
    return found.findings()


@pytest.mark.parametrize(
    "told",
    [(), (1, 2, 3), (4, 5, (6, 3)), ((7, 6),), (3, (4, 1), (5, 2)), (5, (6, 2), (7, 4), 8)],
)  # fmt: skip
def test_whole_or_explained(told: tuple[int | tuple[int, int], ...]) -> None:
    assert heard(*told) == []


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ((2, 3), "numbers 1 to 1 are missing, and no event says why"),
        ((1, 4), "numbers 2 to 3 are missing, and no event says why"),
        ((5, 6, (7, 3)), "numbers 1 to 4 are missing, and no event says why"),
        ((4, 6, (7, 3)), "numbers 5 to 5 are missing, and no event says why"),
        ((1, 2, (3, 2)), "number 1 is there, but numbers 1 to 2 are said to be removed"),
        ((1, 2, 2), "number 2 stands after number 2"),
        ((1, 2, 3, 2), "number 2 stands after number 3"),
    ],
)
def test_what_is_wrong(told: tuple[int | tuple[int, int], ...], says: str) -> None:
    assert heard(*told)[0] == says


def test_a_part_of_the_log_begins_where_it_begins() -> None:
    assert heard(8, 9, after=7) == []
    assert heard(8, 10, after=7) == ["numbers 9 to 9 are missing, and no event says why"]


def test_a_range_is_read_as_it_is_written() -> None:
    assert read(named(3, 9)) == (3, 9)
    for other in ("audit", "audit:3", "audit:3-", "audit:a-b", "audit:1-2 ", "launch:1-2", "audit:-1-2", "audit:1-2-3"):
        assert read(other) is None


@pytest.mark.parametrize(
    ("first", "exports", "through"),
    [
        (1, [], 0),
        (101, [], 100),
        (1, ["audit:1-50"], 50),
        (1, ["audit:1-50", "audit:51-90", "audit"], 90),
        (1, ["audit:1-50", "audit:52-90"], 50),
        (1, ["audit:2-50"], 0),
        (41, ["audit:1-50"], 50),
        (41, ["audit:20-30"], 40),
        (1, ["audit:1-50", "audit:1-20", "audit:30-60"], 60),
        (1, ["audit:9-5", "audit:1000-5"], 0),
    ],
)
def test_exports_that_join_on_to_each_other(first: int, exports: list[str], through: int) -> None:
    assert exported_through(first, exports) == through

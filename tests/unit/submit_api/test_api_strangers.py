"""How many refusals of strangers are written: never more than the limit, and none is left out uncounted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from submit_api.strangers import WINDOW_US, LeftOut, Strangers

MINUTE = WINDOW_US
FIRST = 10 * MINUTE


def test_one_address_has_a_quarter_and_all_have_the_whole() -> None:
    found = Strangers(8)
    assert [found.admit("a", FIRST) for _ in range(4)] == [True, True, False, False]
    assert [found.admit(address, FIRST + 1) for address in "bbbcccddde"] == [
        True, True, False, True, True, False, True, True, False, False,
    ]  # fmt: skip
    assert found.over(FIRST + MINUTE - 1) is None
    assert found.over(FIRST + MINUTE) == LeftOut(refusals=6, since=FIRST)
    assert found.over(FIRST + MINUTE) is None
    assert found.admit("a", FIRST + MINUTE)


def test_a_minute_without_any_is_no_news() -> None:
    found = Strangers(1)
    assert found.admit("a", FIRST)
    assert found.over(FIRST + MINUTE) is None
    assert found.over(FIRST + MINUTE, anyway=True) is None


def test_a_clock_that_was_set_back_does_not_keep_the_count() -> None:
    found = Strangers(1)
    assert found.admit("a", FIRST) and not found.admit("a", FIRST)
    assert found.over(FIRST - 1) == LeftOut(refusals=1, since=FIRST)


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, MINUTE // 2)), max_size=200), st.integers(1, 20))
def test_written_and_left_out_are_all(asked: list[tuple[str, int]], most: int) -> None:
    found, now, written, left_out = Strangers(most), FIRST, 0, 0
    in_window = 0
    for address, later in asked:
        now += later
        ended = found.over(now)
        if ended is not None:
            left_out += ended.refusals
        in_window = 0 if ended is not None or not found._written else in_window
        admitted = found.admit(address, now)
        written += admitted
        in_window += admitted
        assert in_window <= most
    last = found.over(now, anyway=True)
    assert written + left_out + (last.refusals if last else 0) == len(asked)

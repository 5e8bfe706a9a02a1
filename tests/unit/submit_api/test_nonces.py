"""The memory of signed requests: none twice, none for ever, and nobody fills it for others.

Seen to fail when weakened: `_forget` that forgets what has not expired, or nothing; `use` without `_forgotten`, or a limit.
"""

from __future__ import annotations

import pytest

from submit_api.nonces import Nonces
from submit_api.refusals import ReplayedRequestError, TooManyRequestsError


def test_none_is_used_twice_until_it_has_expired() -> None:
    nonces = Nonces(most_of_one=10)
    nonces.use("key", "a", 160, 100)
    for now in (100, 130, 160):
        with pytest.raises(ReplayedRequestError):
            nonces.use("key", "a", 160, now)
        with pytest.raises(ReplayedRequestError):
            nonces.use("key", "a", 220, now)
    nonces.use("key", "b", 160, 160)
    nonces.use("other", "a", 160, 160)
    assert len(nonces) == 3


def test_what_has_expired_is_forgotten() -> None:
    nonces = Nonces(most_of_one=1000)
    for now in range(1000):
        nonces.use("key", f"n{now}", now + 60, now)
        assert len(nonces) <= 61
    nonces.use("other", "n", 5000, 4940)
    assert len(nonces) == 1


def test_a_clock_that_is_set_back_brings_nothing_back() -> None:
    """What was forgotten by the later time is refused at the earlier one, though its signature would be good again."""
    nonces = Nonces(most_of_one=10)
    nonces.use("key", "a", 160, 100)
    nonces.use("key", "b", 1060, 1000)
    assert len(nonces) == 1
    with pytest.raises(ReplayedRequestError):
        nonces.use("key", "a", 160, 100)
    nonces.use("key", "c", 161, 101)


def test_one_key_has_so_many_and_no_other_pays_for_it() -> None:
    nonces = Nonces(most_of_one=3)
    for number in range(3):
        nonces.use("key", f"n{number}", 160, 100)
    for number in range(3, 100):
        with pytest.raises(TooManyRequestsError):
            nonces.use("key", f"n{number}", 160, 100)
    with pytest.raises(ReplayedRequestError):
        nonces.use("key", "n0", 160, 100)
    assert len(nonces) == 3
    nonces.use("other", "n0", 160, 100)
    nonces.use("key", "later", 221, 161)
    assert len(nonces) == 1

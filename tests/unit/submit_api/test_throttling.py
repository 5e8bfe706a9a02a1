"""Limits on failures, and whose address a request has: rules without I/O."""

from __future__ import annotations

import doctest
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from submit_api import addresses
from submit_api.throttling import Throttle


class Clock:
    def __init__(self) -> None:
        self.at = 1_800_000_000_000_000

    def now_us(self) -> int:
        return self.at


def throttle(clock: Clock, *, max_keys: int = 100) -> Throttle:
    return Throttle(clock, burst=3, seconds_each=10, max_keys=max_keys)


def test_so_many_at_once_and_then_one_every_so_often() -> None:
    clock = Clock()
    failures = throttle(clock)
    assert [failures.spend("a") for _ in range(3)] == [None] * 3
    over = failures.spend("a")
    assert over is not None and (over.seconds, over.first) == (10, True)
    clock.at += 4_000_000
    over = failures.spend("a")
    assert over is not None and (over.seconds, over.first) == (6, False)
    clock.at += 6_000_000
    assert failures.spend("a") is None
    over = failures.spend("a")
    assert over is not None and (over.seconds, over.first) == (10, True)
    clock.at += 3_600_000_000
    assert [failures.spend("a") is None for _ in range(4)] == [True, True, True, False]


def test_one_key_does_not_spend_another() -> None:
    failures = throttle(Clock())
    for _ in range(9):
        failures.spend("a")
    assert failures.spend("b") is None


def test_of_two_keys_the_emptier_one_decides() -> None:
    failures = throttle(Clock())
    for number in range(3):
        assert failures.spend(f"address {number}", "token t") is None
    over = failures.spend("address 9", "token t")
    assert over is not None and (over.seconds, over.first) == (10, True)
    assert failures.spend("address 9") is None


def test_a_clock_that_is_set_back_gives_nothing() -> None:
    clock = Clock()
    failures = throttle(clock)
    for _ in range(4):
        failures.spend("a")
    clock.at -= 3_600_000_000
    assert failures.spend("a") is not None
    clock.at += 10_000_000
    assert failures.spend("a") is None


@given(keys=st.lists(st.integers(0, 50), max_size=200))
def test_the_memory_is_bounded_and_forgetting_forgives(keys: list[int]) -> None:
    failures = throttle(Clock(), max_keys=5)
    for key in keys:
        failures.spend(str(key))
        assert len(failures) <= 5


def test_the_one_that_is_used_is_not_the_one_that_is_forgotten() -> None:
    failures = throttle(Clock(), max_keys=2)
    for _ in range(3):
        failures.spend("a")
    for number in range(20):
        assert failures.spend(f"other {number}") is None
        assert failures.spend("a") is not None


# Who sent it

PROXIES = [ipaddress.ip_network(text) for text in ("10.0.0.0/8", "2001:db8:ffff::/48")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "found"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["203.0.113.9"], "192.0.2.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["198.51.100.1, 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["198.51.100.1", "203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["203.0.113.9, 10.0.0.2"], "203.0.113.9"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["203.0.113.9, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9:4711"], "203.0.113.9"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("::ffff:192.0.2.1", ["203.0.113.9"], "192.0.2.1"),
        ("2001:db8:ffff::1", ["203.0.113.9"], "203.0.113.9"),
        ("fe80::1%eth0", ["203.0.113.9"], "fe80::1"),
        ("10.0.0.1", ["203.0.113.9"] + ["10.0.0.2"] * 50, "10.0.0.2"),
        (None, ["203.0.113.9"], ""),
        ("", ["203.0.113.9"], ""),
    ],
    ids=str,
)
def test_whose_address_it_is(peer: str | None, forwarded: list[str], found: str) -> None:
    assert addresses.client(peer, forwarded, PROXIES) == found
    if peer is not None and peer.startswith("10."):
        assert addresses.client(peer, forwarded, []) == peer


@given(st.lists(st.text(max_size=50)))
def test_a_client_that_is_no_proxy_is_not_asked(forwarded: list[str]) -> None:
    assert addresses.client("192.0.2.1", forwarded, PROXIES) == "192.0.2.1"


@given(st.lists(st.text(max_size=50)))
def test_what_a_proxy_tells_is_an_address_or_its_own(forwarded: list[str]) -> None:
    ipaddress.ip_address(addresses.client("10.0.0.1", forwarded, PROXIES))


def test_a_neighbourhood_is_what_one_client_has() -> None:
    assert addresses.neighbourhood("2001:db8::1") == addresses.neighbourhood("2001:db8::ffff:ffff:ffff:ffff")
    assert addresses.neighbourhood("2001:db8::1") != addresses.neighbourhood("2001:db8:0:1::1")
    assert addresses.neighbourhood("192.0.2.1") != addresses.neighbourhood("192.0.2.2")
    assert addresses.neighbourhood("::ffff:192.0.2.1") == "192.0.2.1"
    assert addresses.neighbourhood("") == ""


def test_the_examples() -> None:
    assert doctest.testmod(addresses).failed == 0

"""Which accounts may be become. The account database is given here; the kernel's own is used in the tests for root."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable
from dataclasses import replace

import pytest

from integrity.errors import MalformedError, PrivilegeError
from launcher import accounts
from launcher.accounts import AccountRules, resolve

NOW = 1_700_000_000
RULES = AccountRules(
    allowed=frozenset(("etl", "etl2", "root", "toor", "minus", "web", "agent", "agent2", "low", "weird", "dock")),
    allowed_groups=frozenset(("batch", "docker")),
    banned=frozenset(("web", "gone")),
    reserved=frozenset(("agent",)),
    min_uid=500,
)
USERS = {
    "root": (0, 0),
    "toor": (0, 100),
    "groupzero": (1009, 0),
    "etl": (1001, 1001),
    "etl2": (1002, 1002),
    "minus": (-1, 1001),
    "minusgroup": (1010, -1),
    "short": (65535, 1001),
    "web": (1003, 1003),
    "web2": (1003, 1003),
    "agent": (1004, 1004),
    "agent2": (1004, 1004),
    "low": (499, 1001),
    "edge": (500, 1300),
    "batchuser": (1005, 1300),
    "other": (1006, 1006),
    "dock": (1007, 1400),
    "dockmember": (1008, 1008),
}
GROUPS = {"root": 0, "etl": 1001, "batch": 1300, "fake": 1400, "docker": 1400, "adm": 4}
MEMBERS = {"etl": [1001, 1300, 1400, 4, 0], "dockmember": [1008, 1400], "etl2": [1002, 7777]}


@pytest.fixture(autouse=True)
def database(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the C library answers: by number, the first name of the file."""

    def getpwnam(name: str) -> pwd.struct_passwd:
        uid, gid = USERS[name]
        return pwd.struct_passwd((name, "x", uid, gid, "", f"/home/{name}", "/bin/sh"))

    def group(name: str, gid: int) -> grp.struct_group:
        return grp.struct_group((name, "x", gid, []))

    def getgrgid(gid: int) -> grp.struct_group:
        return next((group(name, found) for name, found in GROUPS.items() if found == gid), None) or GROUPS[str(gid)]  # type: ignore[return-value]

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    monkeypatch.setattr(grp, "getgrgid", getgrgid)
    monkeypatch.setattr(grp, "getgrnam", lambda name: group(name, GROUPS[name]))
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: MEMBERS.get(name, [gid]))
    monkeypatch.setattr(accounts, "shadow_expiry", lambda name: NOW if name == "etl2" else None)


def test_an_allowed_account_comes_out_as_numbers() -> None:
    account = resolve("etl", RULES, now=NOW)
    assert (account.name, account.uid, account.gid, account.home) == ("etl", 1001, 1001, "/home/etl")


def test_groups_with_power_over_the_host_stay_behind_under_any_name() -> None:
    """`fake` and `docker` are one gid; `adm` and gid 0 go too."""
    assert resolve("etl", RULES, now=NOW).groups == (1001, 1300)


def test_a_privileged_group_allows_nobody() -> None:
    with pytest.raises(PrivilegeError, match="is not allowed here"):
        resolve("dockmember", RULES, now=NOW)


def test_an_account_is_allowed_by_its_group() -> None:
    assert resolve("batchuser", RULES, now=NOW).uid == 1005


def test_the_lowest_allowed_uid_is_min_uid() -> None:
    assert resolve("edge", RULES, now=NOW).uid == 500


@pytest.mark.parametrize(
    "name",
    [
        "0",
        "#0",
        "-1",
        "+0",
        "4294967295",
        "1001",
        "1e3",
        "٠",
        "root ",
        " root",
        "",
        "-",
        "a\nb",
        "etl\n",
        "etl\x00",
        "../x",
        "etl/",
        "Etl",
        "ëtl",
        "e" * 33,
        "$(id)",
        "etl,root",
        "etl:1001",
    ],
)
def test_what_is_no_name_is_refused_before_it_is_looked_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def looked_up(_: str) -> pwd.struct_passwd:
        raise AssertionError("looked up")

    monkeypatch.setattr(pwd, "getpwnam", looked_up)
    with pytest.raises(MalformedError, match="not a good name"):
        resolve(name, replace(RULES, allowed=frozenset((name,))), now=NOW)


REFUSED = {
    "absent": "does not exist",
    "gone": "does not exist",
    "root": "uid or gid 0",
    "toor": "uid or gid 0",
    "groupzero": "uid or gid 0",
    "minus": "'unchanged'",
    "minusgroup": "'unchanged'",
    "short": "'unchanged'",
    "web": "banned",
    "web2": "banned",
    "agent": "dagseal's own",
    "agent2": "dagseal's own",
    "low": "below min_uid 500",
    "other": "is not allowed here",
    "dock": "primary group",
    "etl2": "expired",
}


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(PrivilegeError) as raised:
        resolve(name, RULES, now=NOW)
    assert f"unix user {name}" in str(raised.value) and REFUSED[name] in str(raised.value)


def test_a_name_that_resolves_to_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[[str], pwd.struct_passwd] = pwd.getpwnam
    monkeypatch.setattr(pwd, "getpwnam", lambda name: real("etl"))
    with pytest.raises(PrivilegeError, match="resolves to 'etl'"):
        resolve("web", RULES, now=NOW)


def test_an_account_is_good_until_the_second_of_its_expiry() -> None:
    assert resolve("etl2", RULES, now=NOW - 1).uid == 1002


def test_a_group_without_a_name_is_no_obstacle() -> None:
    assert resolve("etl2", RULES, now=NOW - 1).groups == (1002, 7777)

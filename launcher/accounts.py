"""Which unix accounts a task may become. Names are resolved once; from then on only numbers travel.

Promise: an account that comes out of `resolve` exists under exactly that name, is not uid 0 or gid 0 under any name, is
not banned, not below `min_uid`, not expired, not one of dagseal's own, and is on the operator's list. Names are compared
by their numbers, so a second name for an account or a group changes nothing. Groups that give power over the host never
come along. A locked password or a nologin shell is normal for a service account.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from dataclasses import dataclass

from integrity import names
from integrity.errors import PrivilegeError

PRIVILEGED_GROUPS = frozenset(
    ("root", "adm", "disk", "docker", "kmem", "lxd", "libvirt", "podman", "shadow", "sudo", "systemd-journal", "wheel")
)
NO_UID = frozenset((2**32 - 1, 2**16 - 1, -1))  # setresuid(2) reads these as "leave it as it is"
_SECONDS_PER_DAY = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A unix account as it is to be become: numbers, and what its environment needs."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRules:
    """The operator's rules. `reserved` are dagseal's own accounts: a task must never be able to signal them. `check_expiry` is
    false only for a launcher that cannot read /etc/shadow (launcher.modes)."""

    allowed: frozenset[str]
    allowed_groups: frozenset[str]
    banned: frozenset[str]
    reserved: frozenset[str]
    min_uid: int
    check_expiry: bool = True


def resolve(name: str, rules: AccountRules, *, now: int) -> Account:
    """The account of that name, if a task may run as it. Raises `PrivilegeError` or `MalformedError`, naming the rule."""
    account = look_up(name)
    if account.name in rules.banned or account.uid in uids_of(rules.banned):
        raise PrivilegeError(f"unix user {name} is banned by the launcher's policy (users.banned)")
    if account.name in rules.reserved or account.uid in uids_of(rules.reserved):
        raise PrivilegeError(f"unix user {name} is one of dagseal's own accounts: choose another for tasks")
    if account.uid < rules.min_uid:
        raise PrivilegeError(
            f"unix user {name} has uid {account.uid}, below min_uid {rules.min_uid} of the launcher's policy"
        )
    groups = {grp.getgrgid(gid).gr_name for gid in (*account.groups, account.gid) if _known_group(gid)}
    if account.name not in rules.allowed and not groups & rules.allowed_groups:
        raise PrivilegeError(f"unix user {name} is not allowed here: add it to users.allowed of the launcher's policy")
    expires = shadow_expiry(name) if rules.check_expiry else None
    if expires is not None and now >= expires:
        raise PrivilegeError(f"unix user {name} has expired (see chage -l {name})")
    return account


def look_up(name: str) -> Account:
    """The account, without regard to policy but never root. Raises `PrivilegeError` when there is none."""
    names.check("unix user", name)
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise PrivilegeError(f"unix user {name} does not exist on this host") from None
    if entry.pw_name != name:
        raise PrivilegeError(f"unix user {name} resolves to {entry.pw_name!r}: use the account's own name")
    if entry.pw_uid in NO_UID or entry.pw_gid in NO_UID:
        raise PrivilegeError(f"unix user {name} has an id that means 'unchanged' to the kernel")
    if entry.pw_uid == 0 or entry.pw_gid == 0:
        raise PrivilegeError(f"unix user {name} is uid or gid 0: nothing of a DAG runs as root")
    privileged = _privileged_gids()
    if entry.pw_gid in privileged:
        raise PrivilegeError(
            f"the primary group of unix user {name} (gid {entry.pw_gid}) gives power over the host: give it another"
        )
    groups = [gid for gid in os.getgrouplist(name, entry.pw_gid) if gid not in privileged]
    return Account(name=name, uid=entry.pw_uid, gid=entry.pw_gid, groups=tuple(sorted(set(groups))), home=entry.pw_dir)


def invoking_account() -> Account:
    """Who runs this process, for a launcher without privileges."""
    entry = pwd.getpwuid(os.geteuid())
    return Account(
        name=entry.pw_name,
        uid=os.geteuid(),
        gid=os.getegid(),
        groups=tuple(sorted(set(os.getgroups()))),
        home=entry.pw_dir,
    )


def shadow_expiry(name: str) -> int | None:
    """When the account expires, in seconds since 1970 (shadow(5), eighth field); None for never. Raises `PrivilegeError`
    when that cannot be found out."""
    try:
        with open("/etc/shadow", encoding="utf-8", errors="replace") as shadow:
            for line in shadow:
                fields = line.rstrip("\n").split(":")
                if fields[0] == name and len(fields) > 7 and fields[7].isascii() and fields[7].isdigit():
                    return int(fields[7]) * _SECONDS_PER_DAY
    except OSError as error:
        raise PrivilegeError(
            f"whether unix user {name} has expired is unknown: /etc/shadow: {error.strerror}"
        ) from None
    return None


def uids_of(user_names: frozenset[str]) -> set[int]:
    """Of those that exist."""
    found = set()
    for name in user_names:
        with contextlib.suppress(KeyError):
            found.add(pwd.getpwnam(name).pw_uid)
    return found


def _privileged_gids() -> set[int]:
    found = {0}
    for name in PRIVILEGED_GROUPS:
        with contextlib.suppress(KeyError):
            found.add(grp.getgrnam(name).gr_gid)
    return found


def _known_group(gid: int) -> bool:
    try:
        grp.getgrgid(gid)
    except KeyError:
        return False
    return True

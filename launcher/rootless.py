"""Mode (d): root of a user namespace that belongs to an ordinary account, with the account's subordinate ids (subuid(5)).

Inside, uid and gid 0 are that account and 1 to 65536 are its subordinate ids, written by newuidmap(1) and newgidmap(1), which
are setuid programs and check /etc/subuid and /etc/subgid. "As U" is the id of U's number in there: another one for each U, and
on the host none that belongs to anybody. It is never the real account. Who takes the launcher over has no more than this.
"""

from __future__ import annotations

import os
import subprocess

from integrity.errors import PrivilegeError, SettingsError
from launcher import namespaces
from launcher.accounts import Account, invoking_account

IDS = 65_536
_PROGRAMS = {"newuidmap": "/etc/subuid", "newgidmap": "/etc/subgid"}
_ENVIRONMENT = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}


def enter() -> Account:
    """From now on this process is root of such a namespace; the account that it was before. Call it while it is dumpable and
    has one thread, once everything with numbers of the host was checked. Raises `SettingsError` or `PrivilegeError`."""
    owner = invoking_account()
    if owner.uid == 0:
        raise SettingsError("--rootless is for an ordinary account: start it as one, or as root without --rootless")
    starts = {program: first_of(path, owner) for program, path in _PROGRAMS.items()}
    own = {"newuidmap": owner.uid, "newgidmap": owner.gid}
    process = os.getpid()

    def write_maps() -> None:
        for program, start in starts.items():
            words = [program, str(process), "0", str(own[program]), "1", "1", str(start), str(IDS)]
            subprocess.run(words, env=_ENVIRONMENT, stdin=subprocess.DEVNULL, check=True)

    if not namespaces.unshare_mapped(namespaces.CLONE_NEWUSER, write_maps):
        raise PrivilegeError(
            "newuidmap and newgidmap gave no ids: install them (Debian: uidmap), setuid root or with file capabilities;"
            " NoNewPrivileges=yes and a mount with nosuid keep them from working"
        )
    os.setgroups([])
    if os.getresuid() != (0, 0, 0) or os.getresgid() != (0, 0, 0):
        raise PrivilegeError(f"the user namespace has other ids than were asked for: {os.getresuid()} {os.getresgid()}")
    return owner


def first_of(path: str, owner: Account) -> int:
    """Where the account's range of at least `IDS` ids begins (subuid(5)). Raises `SettingsError`."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.strip().split(":") for line in file]
    except OSError:
        lines = []
    for name, start, count in (fields for fields in lines if len(fields) == 3 and "".join(fields[1:]).isdecimal()):
        if name in (owner.name, str(owner.uid)) and int(start or 0) > 0 and int(count or 0) >= IDS:
            return int(start)
    raise SettingsError(
        f"{path} gives {owner.name} no {IDS} subordinate ids: run, as root, usermod --add-subuids 100000-165535"
        f" --add-subgids 100000-165535 {owner.name}, with a range that nobody else has"
    )


def require_within(account: Account) -> Account:
    """Raises `PrivilegeError` for an account one of whose numbers is not in the namespace."""
    if max(account.uid, account.gid, *account.groups) > IDS:
        raise PrivilegeError(
            f"unix user {account.name} or one of its groups has a number over {IDS}: a rootless launcher has no such id"
        )
    return account

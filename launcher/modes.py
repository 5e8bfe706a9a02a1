"""The ways to be privileged: what each cannot do is refused before anything is served, or said (`notary.unpromised`).

    root          a daemon, or started by its caller through sudo (`--on-stdin`)
    capabilities  another account with CAP_SETUID, CAP_SETGID and CAP_KILL; no less to be trusted, as it can become root
    rootless      root of a user namespace of an ordinary account (`--rootless`, launcher/rootless.py)
    alone         no privileges: everything runs as the account of the launcher itself

docs/privilege-separation.md has the whole table.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Literal

from integrity.errors import MalformedError, SettingsError
from launcher import accounts, privileges
from launcher.accounts import Account, invoking_account
from launcher.isolation import profile
from launcher.policy import Policy
from launcher.privileges import CAP_KILL, CAP_SETGID, CAP_SETUID, Identity
from launcher.trees import Trees

_ON_STDIN = "it is for a launcher that sudo starts with one end of its caller's socket pair as stdin"
_NEEDED = {"CAP_SETUID": CAP_SETUID, "CAP_SETGID": CAP_SETGID, "CAP_KILL": CAP_KILL}
Mode = Literal["root", "capabilities", "rootless", "alone"]


def mode(owner: Account | None) -> Mode:
    """Which of them this process is; a rootless one has an `owner`. Raises `SettingsError` where it holds but a part."""
    held = {name: privileges.holds(number) for name, number in _NEEDED.items()}
    if not any(held.values()):
        return "alone"
    if not all(held.values()):
        missing = ", ".join(name for name, there in held.items() if not there)
        raise SettingsError(
            f"this launcher holds some capabilities and lacks {missing}: start it as root, as"
            " docs/systemd/dagseal-launcher-capabilities.service does, or without any"
        )
    if owner is not None:
        return "rootless"
    return "root" if os.geteuid() == 0 else "capabilities"


def require(policy: Policy, trees: Trees, owner: Account | None) -> None:
    """What the policy asks for and this mode cannot do is refused here, not at the first launch. Raises `SettingsError`."""
    mine = mode(owner)
    notary_identity(policy, mine)
    if owner is not None:
        if policy.may_run | policy.may_describe != {owner.name}:
            raise SettingsError(
                f"a rootless launcher can tell its callers apart from nobody but {owner.name}: peers.run and peers.describe"
                " are to name this account only"
            )
        if policy.users.check_expiry:
            raise SettingsError(
                "a rootless launcher cannot read from /etc/shadow whether an account has expired: accept that by"
                " users.unsafe_no_expiry_check = true, or use another mode"
            )
    elif not policy.users.check_expiry:
        raise SettingsError(
            "users.unsafe_no_expiry_check is for a rootless launcher: remove it, /etc/shadow is read here"
        )
    if mine == "capabilities" and not profile(policy.isolation.describe).namespaces:
        raise SettingsError(
            f"isolation.describe = {policy.isolation.describe!r} takes the network from descriptions without a user namespace,"
            " and that needs CAP_SYS_ADMIN: choose standard or strict"
        )
    if mine in ("capabilities", "rootless") and " v1:" in f" {trees.describe()}":
        raise SettingsError(
            "in cgroup v1 only root may move other users' processes (Documentation/admin-guide/cgroup-v1/cgroups.rst): use a"
            " host with these controllers in v2 and Delegate=yes, or set isolation.unsafe_no_cgroup_limits = true"
        )


def notary_identity(policy: Policy, mine: Mode) -> Identity | None:
    """Whom the notary becomes; None where it keeps the account of the launcher, and only gives up its capabilities. Raises
    `SettingsError` or `PrivilegeError`."""
    name = policy.notary
    if mine != "root":
        if name not in ("", invoking_account().name):
            raise SettingsError(
                f"users.notary is {name}, and a launcher in mode {mine} keeps its own account: remove it"
            )
        return None
    if not name:
        raise SettingsError(
            "users.notary is missing: name an account that nothing else runs as, which the launcher's keys and journal"
            " belong to (useradd --system --no-create-home dagseal-launcher)"
        )
    account = accounts.look_up(name)
    if account.uid in accounts.uids_of(policy.may_run | policy.may_describe | {policy.parser}):
        raise SettingsError(f"users.notary {name} is a peer or the parser too: it is to be the notary's alone")
    return Identity(account.uid, account.gid, ())


def made_by(sock: socket.socket) -> int:
    """The uid at the other end of a connected unix socket, by SO_PEERCRED: of a socket pair, who made it (unix(7)). Raises
    `MalformedError` for any other socket."""
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        raise MalformedError("that is no unix stream socket")
    try:
        sock.getpeername()
    except OSError as error:
        raise MalformedError(f"that is no connected socket: {error.strerror}") from None
    return int(struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1])


def caller_of(stdin: socket.socket) -> int:
    """The uid that started us through sudo and is at the other end of our stdin. Raises `SettingsError`."""
    if os.environ.get("SUDO_UID", "") != str(made_by(stdin)):
        raise SettingsError(f"--on-stdin: who made the socket is not whom sudo names; {_ON_STDIN}")
    return made_by(stdin)


def stdin_socket() -> socket.socket:
    """Descriptor 0, which is /dev/null from now on. Raises `SettingsError` when it is no socket."""
    try:
        stdin = socket.socket(fileno=os.dup(0))
    except OSError as error:
        raise SettingsError(f"--on-stdin: {error.strerror}; {_ON_STDIN}") from None
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.close(null)
    return stdin

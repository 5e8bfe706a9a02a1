"""Dropping privileges for good, and the proof of it.

The order is the only one that works: groups, then gid, then uid (setresuid(2), capabilities(7)). A drop is done when the
kernel says so and every way back was tried and failed, not when the calls returned. After OpenSSH's `permanently_set_uid`.
Capabilities go last and by hand: who drops from another account than root keeps them (capabilities(7), "effect of user ID
changes"), and a warm process still needs those over its own user namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass

from integrity.errors import PrivilegeError

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_SYS_ADMIN = 5, 6, 7, 8, 21
_CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3

_libc = ctypes.CDLL(None, use_errno=True)
_CAPABILITY_LINES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


@dataclass(frozen=True, slots=True)
class Identity:
    """The numbers to become."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def prctl(option: int, *arguments: int) -> None:
    """prctl(2). Raises `PrivilegeError` when the kernel refuses."""
    numbers = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    if _libc.prctl(option, *numbers) != 0:
        code = ctypes.get_errno()
        raise PrivilegeError(f"prctl({option}, {arguments}) failed: {os.strerror(code)}")


def drop(identity: Identity, *, keep_capabilities: bool = False) -> None:
    """To `identity`, for good. Raises `PrivilegeError` or `OSError`: exit then. Only who has capabilities over a user namespace
    of its own keeps them: it has no other ids to become."""
    if identity.uid == 0 or identity.gid == 0:
        raise PrivilegeError("nothing is dropped by becoming uid or gid 0")
    os.setgroups(list(identity.groups))
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    if not keep_capabilities:
        shed_capabilities()
    prove_dropped(identity)


def empty_bounding_set() -> None:
    """No exec can bring a capability back. Without CAP_SETPCAP only no_new_privs says so, and the attestation shows it."""
    if not holds(CAP_SETPCAP):
        return
    capability = 0
    while _libc.prctl(PR_CAPBSET_READ, ctypes.c_ulong(capability), 0, 0, 0) >= 0:  # fails after the kernel's last one
        prctl(PR_CAPBSET_DROP, capability)
        capability += 1


def shed_capabilities() -> None:
    """Give up every capability of every set. Raises `PrivilegeError` unless the kernel then shows none."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    if _libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise PrivilegeError(f"capset failed: {os.strerror(ctypes.get_errno())}")
    status = status_of("self")
    held = {name: status[name] for name in _CAPABILITY_LINES if name != "CapBnd" and int(status[name], 16)}
    if held:
        raise PrivilegeError(f"the drop left capabilities {held}")


def holds(capability: int) -> bool:
    """Whether this process may use that capability now."""
    return bool(int(status_of("self")["CapEff"], 16) >> capability & 1)


def prove_dropped(identity: Identity) -> None:
    """Ask the kernel who we are, then try every way back. Raises `PrivilegeError` unless all of them fail."""
    if os.getresuid() != (identity.uid,) * 3 or os.getresgid() != (identity.gid,) * 3:
        raise PrivilegeError(f"the drop left ids {os.getresuid()} {os.getresgid()}")
    if sorted(os.getgroups()) != sorted(identity.groups):
        raise PrivilegeError(f"the drop left groups {os.getgroups()}")
    ways_back: list[Callable[[], None]] = [
        lambda: os.setresuid(0, 0, 0),
        lambda: os.seteuid(0),
        lambda: os.setresgid(0, 0, 0),
        lambda: os.setegid(0),
        lambda: os.setgroups([0]),
    ]
    for way in ways_back:
        # EPERM, or EINVAL in a user namespace where there is no such id.
        with contextlib.suppress(OSError):
            way()
            raise PrivilegeError("a dropped privilege could be regained: this process must end")


def harden(*, parent: int) -> None:
    """What holds for every process after the drop, privileged or not: no new privileges by exec, memory that a neighbour
    of the same user cannot read, no core dump, orphans that come back to us, and death with the parent."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    die_with(parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)


def die_with(parent: int) -> None:
    """SIGKILL when `parent` dies. Set after the drop, which clears it; the parent may have died before. A parent outside of
    our pid namespace is 0."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise PrivilegeError("the parent is gone already")


def status_of(pid: int | str) -> dict[str, str]:
    """`/proc/<pid>/status` as names and values."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in status)}

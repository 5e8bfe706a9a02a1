"""Dropping privileges for good, and the proof of it.

The order is the only one that works: groups, then gid, then uid (setresuid(2), capabilities(7)). A drop is done when the
kernel says so and every way back was tried and failed, not when the calls returned. After OpenSSH's `permanently_set_uid`.
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
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
CLONE_NEWNET = 0x40000000

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


def leave_network() -> None:
    """Enter an empty network namespace. Raises `PrivilegeError`."""
    if _libc.unshare(CLONE_NEWNET) != 0:
        raise PrivilegeError(f"unshare(CLONE_NEWNET) failed: {os.strerror(ctypes.get_errno())}")


def drop(identity: Identity) -> None:
    """From root to `identity`, for good. Raises `PrivilegeError`; the caller must then exit."""
    if identity.uid == 0 or identity.gid == 0:
        raise PrivilegeError("nothing is dropped by becoming uid or gid 0")
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as last:
        for capability in range(int(last.read()) + 1):
            prctl(PR_CAPBSET_DROP, capability)
    os.setgroups(list(identity.groups))
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    prove_dropped(identity)


def prove_dropped(identity: Identity) -> None:
    """Ask the kernel who we are, then try every way back. Raises `PrivilegeError` unless all of them fail."""
    if os.getresuid() != (identity.uid,) * 3 or os.getresgid() != (identity.gid,) * 3:
        raise PrivilegeError(f"the drop left ids {os.getresuid()} {os.getresgid()}")
    if sorted(os.getgroups()) != sorted(identity.groups):
        raise PrivilegeError(f"the drop left groups {os.getgroups()}")
    held = {name: value for name, value in status_of(os.getpid()).items() if name in _CAPABILITY_LINES}
    if any(int(value, 16) for value in held.values()):
        raise PrivilegeError(f"the drop left capabilities {held}")
    ways_back: list[Callable[[], None]] = [
        lambda: os.setresuid(0, 0, 0),
        lambda: os.seteuid(0),
        lambda: os.setresgid(0, 0, 0),
        lambda: os.setegid(0),
        lambda: os.setgroups([0]),
    ]
    for way in ways_back:
        with contextlib.suppress(PermissionError):
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
    """SIGKILL when `parent` dies. Set after the drop, which clears it; the parent may have died before."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise PrivilegeError("the parent is gone already")


def status_of(pid: int) -> dict[str, str]:
    """`/proc/<pid>/status` as names and values."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in status)}


def attest(pid: int, identity: Identity, *, privileged: bool) -> dict[str, object]:
    """What the kernel says of a task before it gets a secret. Raises `PrivilegeError` when a mitigation is not in force,
    `EOFError` when the task is gone."""
    try:
        # /proc/<pid> of a process that is not dumpable belongs to root (proc(5)); as an ordinary user it cannot be seen.
        status, owner = status_of(pid), os.stat(f"/proc/{pid}/environ").st_uid
    except (FileNotFoundError, ProcessLookupError):
        raise EOFError("the task's process is gone") from None
    found: dict[str, object] = {
        "uid": [int(value) for value in status["Uid"].split()],
        "gid": [int(value) for value in status["Gid"].split()],
        "groups": sorted(int(value) for value in status["Groups"].split()),
        "no_new_privs": status["NoNewPrivs"] == "1",
        **{name.lower(): status[name] for name in _CAPABILITY_LINES},
    }
    wanted: dict[str, object] = {
        "uid": [identity.uid] * 4,
        "gid": [identity.gid] * 4,
        "groups": sorted(identity.groups),
        "no_new_privs": True,
    }
    if privileged:
        wanted |= {name.lower(): "0" * 16 for name in _CAPABILITY_LINES}
        found["dumpable"] = owner != 0
        wanted["dumpable"] = False
    for name, value in wanted.items():
        if found[name] != value:
            raise PrivilegeError(f"the task's {name} is {found[name]}, not {value}: no secret is given to it")
    return found

"""Landlock: which files, TCP ports, abstract unix sockets and processes a task can reach, whoever it runs as and for good.

After the kernel's Documentation/userspace-api/landlock.rst. `restrict` holds for the calling thread and what it starts, so it
is called in a process that has one thread, after no_new_privs and after every mount: a confined process can mount no more.

Not covered up to ABI 7, and so the business of namespaces, of the seccomp filter or of file modes: descriptors that are open
already; stat, chdir, chmod, chown, utime and xattrs; unix sockets that have a path; UDP; listening on a port the kernel picks;
TCP by MPTCP or Fast Open, which `launcher.task.seccomp` denies.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
from dataclasses import dataclass

from integrity.errors import PrivilegeError

# Every architecture has these three calls under the same numbers.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH, _NET_PORT = 1, 1, 2

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_FIRST_RIGHTS = (1 << 13) - 1  # the above, and to remove and make each kind of file
_READ = EXECUTE | READ_FILE | READ_DIR
_OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
BIND_TCP, CONNECT_TCP = 1 << 0, 1 << 1
_ABSTRACT_UNIX_SOCKETS, _SIGNALS = 1 << 0, 1 << 1

_LINUX = {1: "5.13", 2: "5.19", 3: "6.2", 4: "6.7", 5: "6.10", 6: "6.12", 7: "6.15"}
NEWEST_ABI = max(_LINUX)
_TCP_ABI, _SCOPE_ABI = 4, 6

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What stays in reach. Everything that is handled and not named here is denied.

    `read`: beneath these to read and execute. `write`: beneath these everything. A symlink stands for what it points to now.
    `connect_ports`: TCP may connect to these and bind to none; None leaves TCP as it is. `scope`: no abstract unix socket of,
    and no signal to, a process that is not confined with this one.
    """

    read: tuple[str, ...]
    write: tuple[str, ...]
    connect_ports: tuple[int, ...] | None
    scope: bool

    def __post_init__(self) -> None:
        for path in (*self.read, *self.write):
            if not path.startswith("/"):
                raise PrivilegeError(f"Landlock takes absolute paths only, not {path!r}")
        for port in self.connect_ports or ():
            if not 0 < port < 1 << 16:
                raise PrivilegeError(f"{port} is no TCP port: 1 to 65535")


def abi() -> int:
    """The kernel's Landlock ABI; 0 where it has none, or has it switched off."""
    found: int = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    return max(0, found)


def restrict(access: Access, *, least_abi: int) -> int:
    """Confine this thread for good; returns the ABI in force. Raises `PrivilegeError`; the caller must then exit."""
    found = min(abi(), NEWEST_ABI)
    needed = max(least_abi, 1 if access.connect_ports is None else _TCP_ABI, _SCOPE_ABI if access.scope else 1)
    if found < needed:
        linux = _LINUX.get(needed, "later than this dagseal knows")
        raise PrivilegeError(
            f"Landlock ABI {needed} is needed and ABI {found} is here: it takes Linux {linux} with landlock among its lsm=; "
            "run dagseal doctor, or choose a lesser profile"
        )
    if len(os.listdir("/proc/self/task")) != 1:
        raise PrivilegeError("a process with several threads cannot be confined: Landlock would hold for one of them")
    handled = _FIRST_RIGHTS | REFER * (found >= 2) | TRUNCATE * (found >= 3) | IOCTL_DEV * (found >= 5)
    tcp = 0 if access.connect_ports is None else BIND_TCP | CONNECT_TCP
    scoped = _ABSTRACT_UNIX_SOCKETS | _SIGNALS if access.scope else 0
    attribute = struct.pack("=QQQ", handled, tcp, scoped)[: 8 + 8 * (found >= _TCP_ABI) + 8 * (found >= _SCOPE_ABI)]
    ruleset = _call("making a ruleset", _CREATE_RULESET, attribute, ctypes.c_size_t(len(attribute)), ctypes.c_uint32(0))
    try:
        for rights, paths in ((handled & _READ, access.read), (handled, access.write)):
            for path in paths:
                _allow_path(ruleset, path, rights)
        for port in access.connect_ports or ():
            _add_rule(f"the rule for port {port}", ruleset, _NET_PORT, struct.pack("=QQ", CONNECT_TCP, port))
        _call("confining itself", _RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
    _prove(access)
    return found


def _allow_path(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise PrivilegeError(f"{path} is to stay in reach but cannot be opened: {error.strerror}") from None
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _OF_A_FILE  # the kernel refuses a folder's rights for anything else
        _add_rule(f"the rule for {path}", ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, fd))
    finally:
        os.close(fd)


def _prove(access: Access) -> None:
    """The root folder must be out of reach now, unless it was named."""
    if "/" not in (*access.read, *access.write):
        with contextlib.suppress(PermissionError):
            os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            raise PrivilegeError("Landlock is in force and / can still be read: this process must end")


def _add_rule(what: str, ruleset: int, kind: int, rule: bytes) -> None:
    _call(what, _ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(kind), rule, ctypes.c_uint32(0))


def _call(what: str, number: int, *arguments: object) -> int:
    answer: int = _libc.syscall(number, *arguments)
    if answer < 0:
        raise PrivilegeError(f"Landlock, {what}: {os.strerror(ctypes.get_errno())}; run dagseal doctor")
    return answer

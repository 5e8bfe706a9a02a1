"""Seccomp: the system calls that no task needs and many attacks do, denied for good (seccomp(2), Documentation/userspace-api/
seccomp_filter.rst). They answer EPERM, but clone3 ENOSYS, so that a libc falls back to clone, whose flags can be inspected.
Another architecture's calls (int 0x80, x32) kill the process, as their numbers mean other calls.

This is a deny list: what a later kernel adds is allowed until it is named here. A call whose arguments are inspected is judged
by the low 32 bits of each: the kernel reads no more, or (of prctl's value) accepts no more. Numbers: the kernel's
arch/x86/entry/syscalls/syscall_64.tbl and scripts/syscall.tbl.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import socket
import stat
import struct
from collections.abc import Iterable

from integrity.errors import PrivilegeError

LEVELS = ("standard", "strict")

# Name, number on x86_64, number on aarch64 (- where it does not exist there).
_STANDARD = """
    ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, process_madvise 440 440, pidfd_getfd 438 438,
    kcmp 312 272, bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, io_uring_setup 425 425, io_uring_enter 426 426,
    io_uring_register 427 427, add_key 248 217, request_key 249 218, keyctl 250 219, unshare 272 97, setns 308 268,
    chroot 161 51, pivot_root 155 41, mount 165 40, umount2 166 39, open_tree 428 428, move_mount 429 429, fsopen 430 430,
    fsconfig 431 431, fsmount 432 432, fspick 433 433, mount_setattr 442 442, open_tree_attr 467 467, kexec_load 246 104,
    kexec_file_load 320 294, init_module 175 105, finit_module 313 273, delete_module 176 106, reboot 169 142, swapon 167 224,
    swapoff 168 225, open_by_handle_at 304 265, acct 163 89, quotactl 179 60, quotactl_fd 443 443, syslog 103 116,
    settimeofday 164 170, clock_settime 227 112, clock_adjtime 305 266, adjtimex 159 171, sethostname 170 161,
    setdomainname 171 162, fanotify_init 300 262, lookup_dcookie 212 18, vhangup 153 58, iopl 172 -, ioperm 173 -,
    modify_ldt 154 -, uselib 134 -
"""
_STRICT = """
    mbind 237 235, set_mempolicy 238 237, migrate_pages 256 238, move_pages 279 239, set_mempolicy_home_node 450 450
"""
_INSPECTED = """
    clone 56 220, clone3 435 435, ioctl 16 29, personality 135 92, prctl 157 167, socket 41 198, socketpair 53 199,
    sendto 44 206, sendmsg 46 211, sendmmsg 307 269, mknod 133 -, mknodat 259 33
"""
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_UNSHARE = {"x86_64": 272, "aarch64": 97}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# From here on x86_64 has no call of its own: the rest of x32's numbers, then x32's bit.
_X32_FROM = 512

_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET; NEWTIME is clone3's
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_PERSONALITIES = (0, 0xFFFFFFFF)  # Linux's own, and the question which it is
_PR_SET_DUMPABLE = 4
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)  # getaddrinfo needs the last
# The default, ICMP, TCP, UDP, ICMPv6: Landlock's rules for TCP do not hold for MPTCP, SCTP and others.
_PROTOCOLS = (0, socket.IPPROTO_ICMP, socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMPV6)
_MSG_FASTOPEN = 0x20000000  # connects without connect(2), past Landlock

_SET_MODE_FILTER, _FLAG_TSYNC = 1, 1
_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_MOST_JUMPS = 250  # an instruction skips at most 255

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install(level: str) -> int:
    """Deny for this process, for good; returns how many calls are denied, whole or in part. Needs no_new_privs.
    Raises `PrivilegeError`; the caller must then exit."""
    machine = os.uname().machine
    code, denied = program(level, machine)
    buffer = ctypes.create_string_buffer(code, len(code))
    filtered = _Program(len(code) // 8, ctypes.addressof(buffer))
    answer = _libc.syscall(_SECCOMP[machine], _SET_MODE_FILTER, _FLAG_TSYNC, ctypes.byref(filtered))
    if answer != 0:  # above 0: the thread that has another filter and cannot take this one
        reason = os.strerror(ctypes.get_errno()) if answer < 0 else f"thread {answer} has a filter of its own"
        raise PrivilegeError(f"the seccomp filter cannot be installed: {reason}; run dagseal doctor")
    # The proof: to unshare nothing is always granted, but by this filter.
    if _libc.syscall(_UNSHARE[machine], ctypes.c_ulong(0)) != -1 or ctypes.get_errno() != errno.EPERM:
        raise PrivilegeError("the seccomp filter is installed and does not deny: this process must end")
    return denied


@functools.cache
def program(level: str, machine: str) -> tuple[bytes, int]:
    """The filter as classic BPF, and how many calls it denies. Built once: call it before the fork that installs it."""
    if level not in LEVELS:
        raise PrivilegeError(f"no seccomp level is named {level!r}: {', '.join(LEVELS)}")
    if machine not in _AUDIT_ARCH:
        raise PrivilegeError(
            f"no seccomp filter is known for {machine}: only for {', '.join(_AUDIT_ARCH)}; choose a lesser profile"
        )
    whole = _numbers(_STANDARD, machine) | (_numbers(_STRICT, machine) if level == "strict" else {})
    inspected = _numbers(_INSPECTED, machine)
    bodies = {inspected[name]: body for name, body in _bodies(level).items() if name in inspected}
    code = [_load(_ARCHITECTURE_AT), _jump(_EQUAL, _AUDIT_ARCH[machine], 1, 0), _KILL, _load(_NUMBER_AT)]
    if machine == "x86_64":
        code += [_jump(_AT_LEAST, _X32_FROM, 0, 1), _KILL]
    for number, body in bodies.items():
        code += [_jump(_EQUAL, number, 0, len(body)), *body]
    code += [*_deny(whole.values()), _ALLOW]
    return b"".join(code), len(whole) + len(bodies)


def _bodies(level: str) -> dict[str, list[bytes]]:
    """What is done with a call whose arguments decide; every way through ends with a return."""
    a_socket = [_argument(0), *_permit(_FAMILIES), _argument(2), *_permit(_PROTOCOLS), _ALLOW]
    dumpable = [_argument(1), *_deny([1]), _ALLOW]
    bodies = {
        "clone": [_argument(0), *_deny_bits(_NAMESPACES), _ALLOW],
        "clone3": [_NO_SUCH_CALL],
        "ioctl": [_argument(1), *_deny([_TIOCSTI, _TIOCLINUX]), _ALLOW],
        "personality": [_argument(0), *_permit(_PERSONALITIES), _ALLOW],
        "prctl": [_argument(0), _jump(_EQUAL, _PR_SET_DUMPABLE, 0, len(dumpable) - 1), *dumpable],
        "socket": a_socket,
        "socketpair": a_socket,
        "sendto": [_argument(3), *_deny_bits(_MSG_FASTOPEN), _ALLOW],
        "sendmsg": [_argument(2), *_deny_bits(_MSG_FASTOPEN), _ALLOW],
        "sendmmsg": [_argument(3), *_deny_bits(_MSG_FASTOPEN), _ALLOW],
    }
    if level == "strict":
        devices = [_jump(_AND, 0o170000, 0, 0), *_deny([stat.S_IFCHR, stat.S_IFBLK]), _ALLOW]
        bodies |= {"mknod": [_argument(1), *devices], "mknodat": [_argument(2), *devices]}
    return bodies


def _numbers(table: str, machine: str) -> dict[str, int]:
    rows = (row.split() for row in table.split(","))
    column = 1 if machine == "x86_64" else 2
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def _jump(code: int, value: int, if_so: int, if_not: int) -> bytes:
    return struct.pack("=HBBI", code, if_so, if_not, value)


def _load(offset: int) -> bytes:
    return _jump(_LOAD, offset, 0, 0)


def _argument(position: int) -> bytes:
    return _load(_ARGUMENTS_AT + 8 * position)  # little-endian: the low half comes first


_ALLOW = _jump(_RETURN, 0x7FFF0000, 0, 0)
_DENY = _jump(_RETURN, 0x00050000 | errno.EPERM, 0, 0)
_NO_SUCH_CALL = _jump(_RETURN, 0x00050000 | errno.ENOSYS, 0, 0)
_KILL = _jump(_RETURN, 0x80000000, 0, 0)


def _deny(values: Iterable[int]) -> list[bytes]:
    """EPERM for any of these; else go on behind. In pieces, so that no jump is too long."""
    values, code = sorted(values), list[bytes]()
    for at in range(0, len(values), _MOST_JUMPS):
        piece = values[at : at + _MOST_JUMPS]
        code += [
            _jump(_EQUAL, value, left, 0) for value, left in zip(piece[:-1], range(len(piece) - 1, 0, -1), strict=True)
        ]
        code += [_jump(_EQUAL, piece[-1], 0, 1), _DENY]
    return code


def _permit(values: Iterable[int]) -> list[bytes]:
    """EPERM for all but these; then go on behind."""
    values = sorted(values)
    return [*(_jump(_EQUAL, value, len(values) - at, 0) for at, value in enumerate(values)), _DENY]


def _deny_bits(bits: int) -> list[bytes]:
    return [_jump(_ANY_BIT, bits, 0, 1), _DENY]

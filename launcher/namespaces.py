"""Namespaces of a warm process and of each task, made with no privilege but that over a user namespace of their own.

A warm process enters a user namespace that maps one unix user and its groups, to the same numbers, and nothing else: root does
not exist in it. It keeps that namespace's capabilities, which are good for what the namespace owns and for nothing outside,
and from it every task gets a pid, mount, ipc and uts namespace of its own with one fork (user_namespaces(7),
pid_namespaces(7), mount_namespaces(7)). A task is process 1 of its pid namespace: when it dies, the kernel kills what it left.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable

from integrity.errors import PrivilegeError
from launcher.privileges import Identity

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """unshare(2). Raises `PrivilegeError`."""
    if _libc.unshare(flags) != 0:
        raise PrivilegeError(f"unshare({flags:#x}) failed: {_reason()}; run dagseal doctor, or choose a lesser profile")


def unshare_mapped(flags: int, write_maps: Callable[[], object]) -> bool:
    """unshare(2), with a user namespace whose maps a fork writes that stays outside, where its privileges mean something;
    whether it could. Raises `PrivilegeError`."""
    go_read, go_write = os.pipe()
    mapper = os.fork()
    if mapper == 0:
        code = 1
        try:
            os.close(go_write)
            if os.read(go_read, 1):
                write_maps()
                code = 0
        finally:
            os._exit(code)
    os.close(go_read)
    try:
        unshare(flags)
        os.write(go_write, b"g")
    finally:
        os.close(go_write)
        _, status = os.waitpid(mapper, 0)
    return status == 0


def enter_user_namespace(identity: Identity | None) -> None:
    """Into a user namespace that maps this identity, and one for the pids of what is forked next.

    With CAP_SETUID and CAP_SETGID (user_namespaces(7)) a fork that stays outside writes the maps; the caller is not that user
    yet, so nobody of that user can touch it. Without (`identity` is None) the process maps itself and its own group.
    """
    if identity is None:
        uid, gid = os.geteuid(), os.getegid()
        unshare(CLONE_NEWUSER | CLONE_NEWPID)
        _write("/proc/self/setgroups", "deny")
        _write_maps("self", uid, [gid])
        return
    process = os.getpid()
    groups = sorted({identity.gid, *identity.groups})
    if not unshare_mapped(CLONE_NEWUSER | CLONE_NEWPID, lambda: _write_maps(str(process), identity.uid, groups)):
        raise PrivilegeError(
            "the user namespace could not be given its ids: the launcher needs CAP_SETUID and CAP_SETGID, or to be root"
        )


def next_pid_namespace(own: int) -> None:
    """What is forked next gets a pid namespace of its own, below ours, whose descriptor is `own`."""
    if _libc.setns(own, CLONE_NEWPID) != 0:
        raise PrivilegeError(f"setns to the own pid namespace failed: {_reason()}")
    unshare(CLONE_NEWPID)


def _write_maps(process: str, uid: int, gids: Iterable[int]) -> None:
    _write(f"/proc/{process}/uid_map", f"{uid} {uid} 1\n")
    _write(f"/proc/{process}/gid_map", "".join(f"{gid} {gid} 1\n" for gid in gids))


def _write(path: str, text: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode("ascii"))  # the kernel takes a map in one write, once
        finally:
            os.close(fd)
    except OSError as error:
        raise PrivilegeError(f"{path} cannot be written: {error.strerror}; run dagseal doctor") from None


def _reason() -> str:
    return os.strerror(ctypes.get_errno())

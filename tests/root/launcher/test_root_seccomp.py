"""The filter stands before every capability: root, with all it holds, is denied the same calls."""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import time
from pathlib import Path

import pytest

from launcher import namespaces, privileges
from launcher.privileges import Identity, status_of
from launcher.task.seccomp import LEVELS, install
from tests.forked import InChild, called, refusal

pytestmark = pytest.mark.root

NOBODY = Identity(65534, 65534, (65534,))
ALL_NAMESPACES = 0x7E020000


# By libc's own names, so that no number of ours is trusted. Each would be granted to root, or fail otherwise than by EPERM.
ROOTS_CALLS: dict[str, tuple[object, ...]] = {
    "unshare": (ALL_NAMESPACES & ~0x20000000,),
    "setns": (-1, 0),
    "chroot": (b"/",),
    "mount": (b"none", b"/proc/1", b"tmpfs", ctypes.c_ulong(0), None),
    "umount2": (b"/", 0),
    "pivot_root": (b"/", b"/"),
    "ptrace": (0, 0, None, None),
    "process_vm_readv": (os.getpid(), None, 0, None, 0, 0),
    "process_vm_writev": (os.getpid(), None, 0, None, 0, 0),
    "acct": (b"/proc/1/mem",),
    "swapon": (b"/dev/null", 0),
    "swapoff": (b"/dev/null",),
    "sethostname": (b"", -1),
    "setdomainname": (b"", -1),
    "clock_settime": (99, bytes(16)),
    "clock_adjtime": (0, bytes(256)),
    "adjtimex": (bytes(256),),
    "klogctl": (10, None, 0),
    "quotactl": (0, None, 0, None),
    "fanotify_init": (-1, 0),
    "init_module": (None, 0, None),
    "delete_module": (None, 0),
    "open_by_handle_at": (-1, None, 0),
    "personality": (ctypes.c_ulong(0x40000),),
    "vhangup": (),
    "reboot": (0,),
}


@pytest.mark.parametrize("level", LEVELS)
def test_what_root_may_do_is_denied_by_libcs_own_names(in_child: InChild, level: str) -> None:
    def body() -> dict[str, str]:
        install(level)
        libc = ctypes.CDLL(None)
        return {name: called(name, *values) for name, values in ROOTS_CALLS.items() if hasattr(libc, name)}

    answer = in_child(body)
    found = eval(answer) if answer.startswith("{") else pytest.fail(answer)
    assert len(found) >= 20 and found == dict.fromkeys(found, "EPERM")


@pytest.mark.parametrize("level", LEVELS)
def test_no_way_into_a_user_namespace_that_is_there_already(in_child: InChild, level: str) -> None:
    """In a user namespace a task may hold every capability over it; the filter leaves nothing to use them for."""

    def body() -> list[str]:
        privileges.prctl(privileges.PR_SET_NO_NEW_PRIVS, 1)
        namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS)
        held = status_of(os.getpid())["CapEff"] != "0" * 16
        before = called("unshare", namespaces.CLONE_NEWNS)
        install(level)
        return [
            str(held),
            before,
            called("unshare", namespaces.CLONE_NEWNS),
            called("mount", b"tmpfs", b"/tmp", b"tmpfs", ctypes.c_ulong(0), None),
            called("setns", os.open("/proc/self/ns/mnt", os.O_RDONLY), 0),
            called("sethostname", b"x", 1),
        ]

    assert in_child(body) == str(["True", "", "EPERM", "EPERM", "EPERM", "EPERM"])


def test_root_makes_no_device_and_no_packet_socket(in_child: InChild, tmp_path: Path) -> None:
    def body() -> list[str]:
        made = refusal(lambda: os.mknod(tmp_path / "before", stat.S_IFCHR | 0o600, os.makedev(1, 3)))
        opened = refusal(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close())
        install("strict")
        return [
            made,
            opened,
            refusal(lambda: os.mknod(tmp_path / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))),
            refusal(lambda: os.mknod(tmp_path / "disk", stat.S_IFBLK | 0o600, os.makedev(8, 0))),
            refusal(lambda: os.mkfifo(tmp_path / "fifo")),
            refusal(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()),
        ]

    assert in_child(body) == str(["", "", "EPERM", "EPERM", "", "EPERM"])


@pytest.mark.parametrize("level", LEVELS)
def test_the_drop_works_under_the_filter(in_child: InChild, level: str) -> None:
    def body() -> str:
        install(level)
        privileges.drop(NOBODY)
        privileges.harden(parent=os.getppid())
        return status_of(os.getpid())["Seccomp"]

    assert in_child(body) == "2"


@pytest.mark.parametrize("level", LEVELS)
def test_a_dropped_process_that_is_not_dumpable_stays_so(in_child: InChild, level: str) -> None:
    """So /proc/<pid> stays root's, and a neighbour of the same user reads nothing there."""

    def body() -> list[object]:
        privileges.drop(NOBODY)
        privileges.harden(parent=os.getppid())
        install(level)
        made = called("prctl", privileges.PR_SET_DUMPABLE, 1, 0, 0, 0)
        return [made, os.stat(f"/proc/{os.getpid()}/environ").st_uid]

    assert in_child(body) == "['EPERM', 0]"


@pytest.mark.parametrize("level", LEVELS)
def test_installing_takes_a_fraction_of_a_launch(in_child: InChild, level: str) -> None:
    def body() -> float:
        begin = time.perf_counter()
        install(level)
        return time.perf_counter() - begin

    assert min(float(in_child(body)) for _ in range(20)) < 0.005

"""The filter's program, run by a small interpreter of classic BPF over every call that Linux has, for both architectures.

Which number is which call comes from the kernel's own tables (tests/vectors/launcher/syscalls.txt), not from the module.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from pathlib import Path

import pytest

from integrity.errors import PrivilegeError
from launcher.task import seccomp
from launcher.task.seccomp import LEVELS, program

MACHINES = ("x86_64", "aarch64")
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003, "arm": 0x40000028}
KILL, ALLOW = 0x80000000, 0x7FFF0000
EPERM, ENOSYS = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
VERDICTS = {KILL: "kill", ALLOW: "allow", EPERM: "EPERM", ENOSYS: "ENOSYS"}
VECTORS = Path(__file__).parents[2] / "vectors" / "launcher" / "syscalls.txt"

_NAMES = """
    ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp bpf perf_event_open userfaultfd
    io_uring_setup io_uring_enter io_uring_register keyctl add_key request_key unshare setns chroot pivot_root mount umount2
    move_mount fsopen fsconfig fsmount fspick open_tree open_tree_attr mount_setattr kexec_load kexec_file_load init_module
    finit_module delete_module reboot swapon swapoff open_by_handle_at acct quotactl quotactl_fd syslog iopl ioperm modify_ldt
    settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname fanotify_init lookup_dcookie vhangup uselib
"""
STANDARD = set(_NAMES.split())
STRICT = STANDARD | {"mbind", "move_pages", "migrate_pages", "set_mempolicy", "set_mempolicy_home_node"}
INSPECTED = {"clone", "ioctl", "personality", "prctl", "socket", "socketpair", "sendto", "sendmsg", "sendmmsg"}
DEVICES = {"mknod", "mknodat"}
CLONE_NEW = {
    "NS": 0x20000,
    "CGROUP": 0x2000000,
    "UTS": 0x4000000,
    "IPC": 0x8000000,
    "USER": 0x10000000,
    "PID": 0x20000000,
    "NET": 0x40000000,
}
HIGH = 0xDEADBEEF << 32  # what may stand in the half that the kernel does not read

# call, arguments, verdict at standard, verdict at strict
ARGUMENTS: list[tuple[str, tuple[int, ...], str, str]] = [
    ("clone", (0x01200011,), "allow", "allow"),  # fork of glibc
    ("clone", (0x4111,), "allow", "allow"),  # vfork, posix_spawn
    ("clone", (0x3D0F00,), "allow", "allow"),  # a thread of glibc
    *(("clone", (flag | 17,), "EPERM", "EPERM") for flag in CLONE_NEW.values()),
    *(("clone", (HIGH | flag,), "EPERM", "EPERM") for flag in CLONE_NEW.values()),
    ("clone", (HIGH | 17,), "allow", "allow"),
    ("clone3", (0, 88), "ENOSYS", "ENOSYS"),
    ("ioctl", (0, 0x5401), "allow", "allow"),
    ("ioctl", (0, 0x5413), "allow", "allow"),
    ("ioctl", (0, 0x5412), "EPERM", "EPERM"),
    ("ioctl", (0, 0x541C), "EPERM", "EPERM"),
    ("ioctl", (0, HIGH | 0x5412), "EPERM", "EPERM"),  # the CVE-2019-10063 of flatpak
    ("ioctl", (0, HIGH | 0x541C), "EPERM", "EPERM"),
    ("ioctl", (0x5412, 0x5401), "allow", "allow"),
    ("personality", (0,), "allow", "allow"),
    ("personality", (0xFFFFFFFF,), "allow", "allow"),
    ("personality", (0xFFFFFFFFFFFFFFFF,), "allow", "allow"),
    ("personality", (0x40000,), "EPERM", "EPERM"),  # ADDR_NO_RANDOMIZE
    ("personality", (8,), "EPERM", "EPERM"),
    ("personality", (0xFFFFFFFE,), "EPERM", "EPERM"),
    ("prctl", (4, 0), "allow", "allow"),
    ("prctl", (4, 1), "EPERM", "EPERM"),
    ("prctl", (HIGH | 4, 1), "EPERM", "EPERM"),
    ("prctl", (3, 1), "allow", "allow"),
    ("prctl", (38, 1), "allow", "allow"),
    ("prctl", (1, 4), "allow", "allow"),
    *(
        (call, (family, 1, protocol), "allow", "allow")
        for call in ("socket", "socketpair")
        for family, protocol in ((1, 0), (2, 0), (2, 6), (2, 17), (2, 1), (10, 6), (10, 58), (16, 0))
    ),
    *(
        (call, (family, 1, 0), "EPERM", "EPERM")
        for call in ("socket", "socketpair")
        for family in range(64)
        if family not in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
    ),
    ("socket", (HIGH | 40, 1, 0), "EPERM", "EPERM"),  # AF_VSOCK
    ("socket", (2, 1, 262), "EPERM", "EPERM"),  # MPTCP
    ("socket", (10, 1, HIGH | 262), "EPERM", "EPERM"),
    ("socket", (2, 1, 132), "EPERM", "EPERM"),  # SCTP
    ("socket", (2, 1, 256), "EPERM", "EPERM"),  # SMC
    ("sendto", (3, 0, 0, 0x4000), "allow", "allow"),
    ("sendto", (3, 0, 0, 0x20000000), "EPERM", "EPERM"),
    ("sendto", (3, 0, 0, HIGH | 0x20004000), "EPERM", "EPERM"),
    ("sendto", (3, 0x20000000, 0x20000000, 0), "allow", "allow"),
    ("sendmsg", (3, 0, 0x4000), "allow", "allow"),
    ("sendmsg", (3, 0, 0x20000000), "EPERM", "EPERM"),
    ("sendmmsg", (3, 0, 2, 0x4000), "allow", "allow"),
    ("sendmmsg", (3, 0, 2, 0x20000000), "EPERM", "EPERM"),
    *(("mknod", (0, kind | 0o644), "allow", "allow") for kind in (0, 0o010000, 0o100000, 0o140000)),
    *(("mknod", (0, kind | 0o644), "allow", "EPERM") for kind in (0o020000, 0o060000, HIGH | 0o060000)),
    *(("mknodat", (0, 0, kind | 0o644), "allow", "allow") for kind in (0, 0o010000, 0o100000, 0o140000)),
    *(("mknodat", (0, 0, kind | 0o644), "allow", "EPERM") for kind in (0o020000, 0o060000, HIGH | 0o060000)),
]


def numbers(machine: str) -> dict[str, int]:
    column = MACHINES.index(machine) + 1
    rows = (line.split() for line in VECTORS.read_text().splitlines() if not line.startswith("#"))
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


class Filter:
    """A program, and what of a call it looked at. Refuses what the kernel would refuse to load."""

    def __init__(self, code: bytes) -> None:
        assert len(code) % 8 == 0 and 0 < len(code) // 8 <= 4096
        self.instructions = list(struct.iter_unpack("=HBBI", code))
        for at, (operation, if_so, if_not, _) in enumerate(self.instructions):
            if operation in (0x15, 0x35, 0x45):
                assert at + 1 + max(if_so, if_not) < len(self.instructions)
        assert self.instructions[-1][0] == 0x06
        self.seen: set[int] = set()

    def run(self, architecture: int, number: int, arguments: tuple[int, ...] = ()) -> str:
        padded = [argument & 0xFFFFFFFFFFFFFFFF for argument in (*arguments, *(0,) * 6)[:6]]
        call = struct.pack("<iIQ6Q", number, architecture, 0, *padded)
        self.seen, accumulator, at = set(), 0, 0
        while True:
            operation, if_so, if_not, value = self.instructions[at]
            at += 1
            if operation == 0x20:
                assert value % 4 == 0
                self.seen.add(value)
                (accumulator,) = struct.unpack_from("<I", call, value)
            elif operation == 0x54:
                accumulator &= value
            elif operation == 0x06:
                return VERDICTS[value]
            else:
                tests = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}
                at += if_so if tests[operation] else if_not


@pytest.fixture(params=[(level, machine) for level in LEVELS for machine in MACHINES], ids="-".join)
def built(request: pytest.FixtureRequest) -> tuple[str, str, Filter]:
    level, machine = request.param
    return level, machine, Filter(program(level, machine)[0])


def test_every_call_of_linux_has_the_verdict_it_is_to_have(built: tuple[str, str, Filter]) -> None:
    level, machine, code = built
    whole = STRICT if level == "strict" else STANDARD
    everything = numbers(machine)
    assert len(everything) > 300
    for name, number in everything.items():
        verdict = code.run(ARCHITECTURES[machine], number, (2, 1, 0))  # arguments that are harmless to any call
        wanted = "ENOSYS" if name == "clone3" else "EPERM" if name in whole | {"personality"} else "allow"
        assert (name, verdict) == (name, wanted)


def test_a_call_that_is_denied_is_denied_whatever_its_arguments(built: tuple[str, str, Filter]) -> None:
    level, machine, code = built
    for name, number in numbers(machine).items():
        if name in (STRICT if level == "strict" else STANDARD):
            for argument in (0, 1, 4, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF):
                assert (name, code.run(ARCHITECTURES[machine], number, (argument,) * 6)) == (name, "EPERM")


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments_decide_where_they_are_to(machine: str) -> None:
    known = numbers(machine)
    for name, arguments, *verdicts in ARGUMENTS:
        for level, verdict in zip(LEVELS, verdicts, strict=True):
            if name in known:
                code = Filter(program(level, machine)[0])
                found = code.run(ARCHITECTURES[machine], known[name], arguments)
                assert (name, arguments, level, found) == (name, arguments, level, verdict)


def test_no_argument_is_looked_at_of_other_calls(built: tuple[str, str, Filter]) -> None:
    """What is allowed by its number alone the kernel remembers, and does not run the filter for it again."""
    level, machine, code = built
    inspected = INSPECTED | (DEVICES if level == "strict" else set())
    for name, number in numbers(machine).items():
        code.run(ARCHITECTURES[machine], number)
        assert (name, code.seen <= {0, 4}) == (name, name not in inspected)


def test_another_architectures_calls_kill(built: tuple[str, str, Filter]) -> None:
    _, machine, code = built
    for name, architecture in ARCHITECTURES.items():
        for number in (0, 20, 39, 101, 172, 500):
            if name != machine:
                assert code.run(architecture, number) == "kill"


@pytest.mark.parametrize("level", LEVELS)
def test_x32_kills_under_both_its_kinds_of_number(level: str) -> None:
    code = Filter(program(level, "x86_64")[0])
    for number in (0x40000000, 0x40000000 | 39, 0x40000000 | 521, 0x7FFFFFFF, -1, *range(512, 548)):
        assert code.run(ARCHITECTURES["x86_64"], number) == "kill"
    assert code.run(ARCHITECTURES["x86_64"], 511) == "allow"


def test_the_count_is_of_the_calls_that_are_denied_in_whole_or_in_part() -> None:
    for level, machine in ((level, machine) for level in LEVELS for machine in MACHINES):
        expected = (STRICT if level == "strict" else STANDARD) | INSPECTED | {"clone3"}
        expected |= DEVICES if level == "strict" else set()
        assert program(level, machine)[1] == len(expected & numbers(machine).keys())


def test_strict_denies_all_that_standard_denies() -> None:
    assert STANDARD < STRICT and program("standard", "x86_64")[1] < program("strict", "x86_64")[1]


def test_a_list_longer_than_a_jump_is_searched_whole() -> None:
    values = range(1000, 1000 + 3 * 255)
    code = [seccomp._load(0), *seccomp._deny(values), seccomp._ALLOW]
    built = Filter(b"".join(code))
    assert [built.run(0, number) for number in values] == ["EPERM"] * len(values)
    assert built.run(0, 999) == built.run(0, values[-1] + 1) == "allow"


def test_the_program_is_built_once() -> None:
    assert program("strict", "x86_64")[0] is program("strict", "x86_64")[0]


@pytest.mark.parametrize("machine", ["riscv64", "i686", "aarch64_be", ""])
def test_a_machine_without_numbers_is_refused(machine: str) -> None:
    with pytest.raises(PrivilegeError, match="no seccomp filter is known"):
        program("standard", machine)


@pytest.mark.parametrize("level", ["", "minimal", "Strict"])
def test_a_level_that_is_none_is_refused(level: str) -> None:
    with pytest.raises(PrivilegeError, match="no seccomp level"):
        program(level, "x86_64")


def test_the_kernel_takes_the_structure_that_is_handed_to_it() -> None:
    """struct sock_fprog of linux/filter.h: a length, padding, a pointer."""
    assert (ctypes.sizeof(seccomp._Program), seccomp._Program.filter.offset) == (16, 8)

"""A drop is proved by the kernel, and each way to do it wrong is found out."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from launcher import namespaces, privileges
from launcher.privileges import (
    Identity,
    drop,
    empty_bounding_set,
    harden,
    prove_dropped,
    shed_capabilities,
    status_of,
)
from tests.forked import InChild

pytestmark = pytest.mark.root

NOBODY = Identity(65534, 65534, (65534,))
TWO_GROUPS = Identity(65534, 65534, (100, 65534))
NO_GROUPS = Identity(65534, 65534, ())
PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, PR_SET_KEEPCAPS = 28, 4, 8
PR_GET_DUMPABLE, PR_GET_NO_NEW_PRIVS, PR_GET_CHILD_SUBREAPER, PR_GET_PDEATHSIG = 3, 39, 37, 2
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


@pytest.mark.parametrize("identity", [NOBODY, TWO_GROUPS, NO_GROUPS])
def test_a_drop_is_whole(in_child: InChild, identity: Identity) -> None:
    def body() -> str:
        empty_bounding_set()
        drop(identity)
        status = status_of(os.getpid())
        assert status["Uid"].split() == ["65534"] * 4 and status["Gid"].split() == ["65534"] * 4
        assert tuple(int(group) for group in status["Groups"].split()) == identity.groups
        assert {int(status[name], 16) for name in CAPABILITIES} == {0}
        for path, flags in (("/etc/shadow", os.O_RDONLY), ("/etc/passwd", os.O_WRONLY)):
            with pytest.raises(PermissionError):
                os.open(path, flags)
        with pytest.raises(PermissionError):
            os.kill(os.getppid(), 0)
        return "dropped"

    assert in_child(body) == "dropped"


@pytest.mark.parametrize("identity", [Identity(0, 65534, ()), Identity(65534, 0, ()), Identity(0, 0, ())])
def test_root_is_nobody_to_become(in_child: InChild, identity: Identity) -> None:
    assert in_child(lambda: drop(identity)).startswith("PrivilegeError: nothing is dropped")


def test_a_second_drop_has_nothing_to_drop_with(in_child: InChild) -> None:
    def body() -> None:
        drop(NOBODY)
        drop(Identity(1, 1, ()))

    assert in_child(body) == "PermissionError: [Errno 1] Operation not permitted"


def groups_left() -> None:
    os.setgroups([0, 65534])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


def group_missing() -> None:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


def uid_before_gid() -> None:
    os.setgroups(list(NOBODY.groups))
    os.setresuid(65534, 65534, 65534)
    os.setresgid(65534, 65534, 65534)


def gid_forgotten() -> None:
    os.setgroups(list(NOBODY.groups))
    os.setresuid(65534, 65534, 65534)


def only_effective() -> None:
    os.setgroups(list(NOBODY.groups))
    os.setegid(65534)
    os.seteuid(65534)


def saved_uid_left() -> None:
    os.setgroups(list(NOBODY.groups))
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 0)


def saved_gid_left() -> None:
    os.setgroups(list(NOBODY.groups))
    os.setresgid(65534, 65534, 0)
    os.setresuid(65534, 65534, 65534)


def nothing() -> None:
    pass


BAD_DROPS: dict[str, tuple[Callable[[], None], str]] = {
    "nothing was done": (nothing, "PrivilegeError: the drop left ids"),
    "a group left": (groups_left, "PrivilegeError: the drop left groups"),
    "a group missing": (group_missing, "PrivilegeError: the drop left groups"),
    "uid before gid": (uid_before_gid, "PermissionError"),
    "gid forgotten": (gid_forgotten, "PrivilegeError: the drop left ids"),
    "only the effective ids": (only_effective, "PrivilegeError: the drop left ids"),
    "the saved uid left": (saved_uid_left, "PrivilegeError: the drop left ids"),
    "the saved gid left": (saved_gid_left, "PrivilegeError: the drop left ids"),
}


@pytest.mark.parametrize("case", BAD_DROPS)
def test_a_drop_done_wrong_is_found_out(in_child: InChild, case: str) -> None:
    wrong, found = BAD_DROPS[case]

    def body() -> str:
        wrong()
        prove_dropped(NOBODY)
        return "not found out"

    assert in_child(body).startswith(found)


@pytest.mark.parametrize("way", ["setresuid", "seteuid", "setresgid", "setegid", "setgroups"])
def test_a_way_back_that_works_is_found_out(in_child: InChild, way: str) -> None:
    """The kernel offers none after a good drop; here one call is made to work, to see that it is tried."""

    def body() -> str:
        drop(NOBODY)
        setattr(os, way, lambda *_: None)
        prove_dropped(NOBODY)
        return "not found out"

    assert in_child(body) == "PrivilegeError: a dropped privilege could be regained: this process must end"


def as_nobody() -> None:
    os.setgroups(list(NOBODY.groups))
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


def keep_capabilities() -> None:
    privileges.prctl(PR_SET_KEEPCAPS, 1)
    as_nobody()


def no_fixup() -> None:
    privileges.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    as_nobody()


def become_a_service() -> None:
    """One with ambient capabilities, as a systemd unit gives them to an account that is not root."""
    privileges.prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(1, 1, 1)
    os.setresuid(1, 1, 1)
    raise_ambient(privileges.CAP_SETUID, privileges.CAP_SETGID, privileges.CAP_KILL)


def from_a_service() -> None:
    """The kernel takes none away when such an account becomes another."""
    become_a_service()
    as_nobody()


def raise_ambient(*capabilities: int) -> None:
    bits = sum(1 << capability for capability in capabilities)
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    assert libc.capset(header, (ctypes.c_uint32 * 6)(bits, bits, bits, 0, 0, 0)) == 0
    for capability in capabilities:
        privileges.prctl(privileges.PR_CAP_AMBIENT, 2, capability)


KEPT = {
    "by keepcaps": (keep_capabilities, {"CapPrm"}),
    "by securebits": (no_fixup, {"CapPrm", "CapEff"}),
    "by a service with ambient ones": (from_a_service, {"CapInh", "CapPrm", "CapEff", "CapAmb"}),
}


@pytest.mark.parametrize("case", KEPT)
def test_capabilities_that_outlive_a_drop_are_shed(in_child: InChild, case: str) -> None:
    keep, sets = KEPT[case]

    def body() -> str:
        keep()
        status = status_of("self")
        assert {name for name in CAPABILITIES if int(status[name], 16)} - {"CapBnd"} == sets
        shed_capabilities()
        status = status_of("self")
        assert {name for name in CAPABILITIES if int(status[name], 16)} == {"CapBnd"}
        prove_dropped(NOBODY)
        return "shed"

    assert in_child(body) == "shed"


@pytest.mark.parametrize("prepare", [lambda: None, become_a_service], ids=["root", "a service"])
def test_a_drop_sheds_what_would_lead_back(in_child: InChild, prepare: Callable[[], None]) -> None:
    def body() -> str:
        prepare()
        drop(NOBODY)
        status = status_of("self")
        return "".join(status[name] for name in CAPABILITIES if name != "CapBnd")

    assert in_child(body) == "0" * 64


@pytest.mark.parametrize("keep", [no_fixup, from_a_service])
def test_capabilities_kept_are_a_way_back_that_is_found_out(in_child: InChild, keep: Callable[[], None]) -> None:
    def body() -> str:
        keep()
        prove_dropped(NOBODY)
        return "not found out"

    assert in_child(body) == "PrivilegeError: a dropped privilege could be regained: this process must end"


@pytest.mark.parametrize("name", ["CapInh", "CapPrm", "CapEff", "CapAmb"])
def test_a_capability_that_is_left_is_found_out(in_child: InChild, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """capset takes all or fails; here the kernel's answer is made to show one that is left."""
    status = status_of("self") | dict.fromkeys(CAPABILITIES, "0" * 16) | {name: f"{1 << 7:016x}"}
    monkeypatch.setattr(privileges, "status_of", lambda _: status)
    assert in_child(shed_capabilities).startswith(f"PrivilegeError: the drop left capabilities {{'{name}'")


def test_a_capset_that_fails_is_found_out(in_child: InChild, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "_CAPABILITY_VERSION", 1)
    assert in_child(shed_capabilities) == "PrivilegeError: capset failed: Invalid argument"


def test_the_bounding_set_is_emptied(in_child: InChild) -> None:
    def body() -> str:
        empty_bounding_set()
        assert int(status_of("self")["CapBnd"], 16) == 0
        os.execv("/bin/grep", ["grep", "-E", "Cap(Prm|Eff)", "/proc/self/status"])

    read, write = os.pipe()

    def to_the_pipe() -> None:
        os.dup2(write, 1)
        body()

    in_child(to_the_pipe)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert [line.split()[1] for line in pipe] == ["0" * 16] * 2  # root that has no capability, even by exec


def test_without_setpcap_the_bounding_set_stays_and_is_no_error(in_child: InChild) -> None:
    def body() -> str:
        drop(NOBODY)
        assert not privileges.holds(privileges.CAP_SETPCAP)
        before = status_of("self")["CapBnd"]
        empty_bounding_set()
        assert status_of("self")["CapBnd"] == before and int(before, 16)
        return "stays"

    assert in_child(body) == "stays"


def test_a_setuid_program_gives_nothing_after_hardening(in_child: InChild) -> None:
    def body() -> str:
        empty_bounding_set()
        drop(NOBODY)
        shed_capabilities()
        harden(parent=os.getppid())
        show = "import os; print(os.geteuid(), open('/proc/self/status').read().count('CapEff:\\t0000000000000000'))"
        return subprocess.run([sys.executable, "-S", "-c", show], capture_output=True, text=True).stdout

    assert in_child(body) == "65534 1\n"


def test_what_holds_after_hardening(in_child: InChild) -> None:
    def body() -> str:
        drop(NOBODY)
        harden(parent=os.getppid())
        libc = ctypes.CDLL(None)
        death = ctypes.c_int()
        libc.prctl(PR_GET_PDEATHSIG, ctypes.byref(death), 0, 0, 0)
        assert libc.prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1
        assert libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 0
        subreaper = ctypes.c_int()
        libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(subreaper), 0, 0, 0)
        assert (death.value, subreaper.value) == (signal.SIGKILL, 1)
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
        assert os.umask(0) == 0o077
        with pytest.raises(PermissionError):
            open("/proc/self/environ", "rb").close()
        return "hardened"

    assert in_child(body) == "hardened"


def test_a_parent_that_is_gone_is_noticed(in_child: InChild) -> None:
    assert in_child(lambda: harden(parent=os.getppid() + 1)) == "PrivilegeError: the parent is gone already"


def test_death_with_the_parent(in_child: InChild) -> None:
    """The middle process dies; the kernel kills the hardened one, which is seen by the end of its pipe."""
    read, write = os.pipe()
    ready, say = os.pipe()

    def body() -> str:
        if os.fork() == 0:
            drop(NOBODY)
            harden(parent=os.getppid())
            os.write(say, b"r")
            while True:
                signal.pause()
        os.read(ready, 1)
        return "middle ends"

    assert in_child(body) == "middle ends"
    os.close(write)
    assert os.read(read, 1) == b""  # its last holder is dead
    for fd in (read, ready, say):
        os.close(fd)


def test_leaving_the_network_leaves_no_interface_that_is_up(in_child: InChild) -> None:
    def body() -> str:
        namespaces.unshare(namespaces.CLONE_NEWNET)
        drop(NOBODY)
        with open("/proc/self/net/dev", encoding="ascii") as interfaces:
            assert [line.split(":")[0].strip() for line in interfaces if ":" in line] == ["lo"]
        with open("/proc/self/net/route", encoding="ascii") as routes:
            assert len(routes.readlines()) <= 1
        return "alone"

    assert in_child(body) == "alone"


def test_the_network_cannot_be_left_without_privilege(in_child: InChild) -> None:
    def body() -> None:
        drop(NOBODY)
        namespaces.unshare(namespaces.CLONE_NEWNET)

    assert in_child(body).startswith("PrivilegeError: unshare(0x40000000) failed: Operation not permitted")

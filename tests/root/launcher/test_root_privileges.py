"""A drop is proved by the kernel, and each way to do it wrong is found out."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Callable, Iterator

import pytest

from integrity.errors import PrivilegeError
from launcher import privileges
from launcher.privileges import Identity, attest, drop, harden, prove_dropped, status_of

pytestmark = pytest.mark.root

NOBODY = Identity(65534, 65534, (65534,))
TWO_GROUPS = Identity(65534, 65534, (100, 65534))
NO_GROUPS = Identity(65534, 65534, ())
PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, PR_SET_KEEPCAPS = 28, 4, 8
PR_GET_DUMPABLE, PR_GET_NO_NEW_PRIVS, PR_GET_CHILD_SUBREAPER, PR_GET_PDEATHSIG = 3, 39, 37, 2

InChild = Callable[[Callable[[], object]], str]


@pytest.mark.parametrize("identity", [NOBODY, TWO_GROUPS, NO_GROUPS])
def test_a_drop_is_whole(in_child: InChild, identity: Identity) -> None:
    def body() -> str:
        drop(identity)
        status = status_of(os.getpid())
        assert status["Uid"].split() == ["65534"] * 4 and status["Gid"].split() == ["65534"] * 4
        assert tuple(int(group) for group in status["Groups"].split()) == identity.groups
        assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
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

    assert in_child(body).startswith("PrivilegeError")


def keep_capabilities() -> None:
    privileges.prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups(list(NOBODY.groups))
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


def no_fixup() -> None:
    privileges.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    os.setgroups(list(NOBODY.groups))
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


def bounding_set_left() -> None:
    os.setgroups(list(NOBODY.groups))
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


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
    "capabilities kept": (keep_capabilities, "PrivilegeError: the drop left capabilities"),
    "capabilities kept by securebits": (no_fixup, "PrivilegeError: the drop left capabilities"),
    "the bounding set left": (bounding_set_left, "PrivilegeError: the drop left capabilities"),
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
        privileges.leave_network()
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
        privileges.leave_network()

    assert in_child(body).startswith("PrivilegeError: unshare")


class Waiting:
    """A child that prepared itself and waits to be looked at."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                for step in steps:
                    step()
                os.write(write, b"r")
                while True:
                    signal.pause()
            finally:
                os._exit(1)
        os.close(write)
        assert os.read(read, 1) == b"r"
        os.close(read)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def waiting() -> Iterator[Callable[..., int]]:
    started: list[Waiting] = []

    def start(*steps: Callable[[], object]) -> int:
        started.append(Waiting(*steps))
        return started[-1].pid

    yield start
    for child in started:
        child.end()


def dropped() -> None:
    drop(NOBODY)


def hardened() -> None:
    harden(parent=os.getppid())


def test_a_good_task_is_attested(waiting: Callable[..., int]) -> None:
    found = attest(waiting(dropped, hardened), NOBODY, privileged=True)
    assert found["uid"] == [65534] * 4 and found["groups"] == [65534]
    assert found["no_new_privs"] is True and found["dumpable"] is False and found["capeff"] == "0" * 16


def no_new_privs() -> None:
    privileges.prctl(privileges.PR_SET_NO_NEW_PRIVS, 1)


def not_dumpable() -> None:
    privileges.prctl(privileges.PR_SET_DUMPABLE, 0)


def dumpable() -> None:
    privileges.prctl(privileges.PR_SET_DUMPABLE, 1)


UNATTESTED: dict[str, tuple[tuple[Callable[[], None], ...], Identity, str]] = {
    "root": ((no_new_privs, not_dumpable), NOBODY, "uid"),
    "root as root": ((no_new_privs, not_dumpable), Identity(0, 0, tuple(os.getgroups())), "cap"),
    "another user": ((dropped, hardened), Identity(1, 65534, (65534,)), "uid"),
    "another group": ((dropped, hardened), Identity(65534, 1, (65534,)), "gid"),
    "other groups": ((dropped, hardened), Identity(65534, 65534, ()), "groups"),
    "new privileges": ((dropped, not_dumpable), NOBODY, "no_new_privs"),
    "dumpable": ((dropped, hardened, dumpable), NOBODY, "dumpable"),
    "saved uid left": ((no_new_privs, saved_uid_left, not_dumpable), NOBODY, "uid"),
    "bounding set left": ((no_new_privs, bounding_set_left, not_dumpable), NOBODY, "capbnd"),
    "capabilities kept": ((no_new_privs, keep_capabilities, not_dumpable), NOBODY, "cap"),
}


@pytest.mark.parametrize("case", UNATTESTED)
def test_a_task_with_one_mitigation_missing_gets_no_secret(waiting: Callable[..., int], case: str) -> None:
    steps, identity, named = UNATTESTED[case]
    with pytest.raises(PrivilegeError, match=rf"the task's {named}.* no secret is given"):
        attest(waiting(*steps), identity, privileged=True)


def test_a_task_that_is_gone_is_no_task(waiting: Callable[..., int]) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(EOFError, match="gone"):
        attest(pid, NOBODY, privileged=True)


def test_a_neighbour_of_the_same_user_cannot_read_a_hardened_process(
    in_child: InChild, waiting: Callable[..., int]
) -> None:
    victim = waiting(dropped, hardened)

    def body() -> str:
        drop(NOBODY)
        for name in ("environ", "mem", "maps", "auxv", "stack"):
            with pytest.raises(PermissionError):
                os.open(f"/proc/{victim}/{name}", os.O_RDONLY)
        for name in ("cwd", "root", "exe"):
            with pytest.raises(PermissionError):
                os.readlink(f"/proc/{victim}/{name}")
        with pytest.raises(PermissionError):
            os.listdir(f"/proc/{victim}/fd")
        assert ctypes.CDLL(None, use_errno=True).ptrace(16, victim, 0, 0) == -1
        return "denied"

    assert in_child(body) == "denied"

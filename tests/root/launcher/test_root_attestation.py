"""Before a secret is given the kernel is asked what is in force: each mitigation that is missing ends the task."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from integrity.errors import PrivilegeError
from launcher import namespaces, privileges
from launcher import powers as granted
from launcher.accounts import Account
from launcher.channel import Channel
from launcher.isolation import PROFILES, Confinement
from launcher.kinds import Kind
from launcher.powers import LocalPowers, Started
from launcher.privileges import Identity, drop, empty_bounding_set, harden, shed_capabilities
from launcher.task import seccomp
from launcher.task.confining import confine
from launcher.trees import InitTree, WalkTrees
from notary.attestation import attest
from notary.tasklog import SOURCES, TaskLog
from notary.taskprocess import TaskProcess
from notary.warmprocess import WarmProcess

pytestmark = pytest.mark.root

NOBODY = Identity(65534, 65534, (65534,))
CAPABILITIES = ("capinh", "capprm", "capeff", "capbnd", "capamb")
PACKAGES = ("/usr", "/lib")
Attested = Callable[..., Any]


def confinement(profile: str, **changes: Any) -> Confinement:
    usual: dict[str, Any] = {"network": True, "readable": (), "writable": (), "tcp_ports": (), "tmp_bytes": 1 << 20}
    return Confinement(profile=PROFILES[profile], **usual | changes)


class Waiting:
    """A process that takes some steps, each in the process itself, and waits to be looked at. A step that returns True is done
    and goes on in a fork."""

    def __init__(self, steps: tuple[Callable[[], object], ...]) -> None:
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.first = os.fork()
        if self.first == 0:
            try:
                ours.close()
                for step in steps:
                    if step() and (pid := os.fork()):
                        os.waitpid(pid, 0)
                        os._exit(0)
                theirs.send(b"r")
                while True:
                    signal.pause()
            except BaseException as error:
                theirs.send(repr(error).encode())
            finally:
                os._exit(1)
        theirs.close()
        said, ancillary, _, _ = ours.recvmsg(1000, socket.CMSG_SPACE(12))
        assert said == b"r", said
        self.pid = int.from_bytes(ancillary[0][2][:4], "little")
        ours.close()

    def end(self) -> None:
        """Its last process is dead."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.first, 0)


@pytest.fixture
async def attested() -> AsyncIterator[Attested]:
    """Attest a process made by some steps as a task of that confinement and identity."""
    started: list[Waiting] = []
    tasks: list[TaskProcess] = []
    idle = subprocess.Popen(["cat"], stdin=subprocess.PIPE)

    async def run(
        *steps: Callable[[], object],
        profile: str = "minimal",
        identity: Identity = NOBODY,
        said: dict[str, int] | None = None,
        before: Callable[[int], None] = lambda _: None,
        **changes: Any,
    ) -> dict[str, object]:
        started.append(Waiting(steps))
        pid = started[-1].pid
        account = Account(
            name="nobody", uid=identity.uid, gid=identity.gid, groups=identity.groups, home="/nonexistent"
        )
        kind = Kind(account=account, purpose="run", confinement=confinement(profile, **changes))
        control, other = socket.socketpair()
        pipes = [os.pipe() for _ in SOURCES]
        other.close()
        for _, write in pipes:
            os.close(write)
        powers = LocalPowers(privileged=True, trees=WalkTrees(), environment=lambda kind: {})
        powers._tasks[pid] = InitTree(pidfd := os.pidfd_open(pid), None), pidfd
        warm = Started(pid=idle.pid, control_fd=-1, pidfd=os.pidfd_open(idle.pid))
        landlock = 1 if PROFILES[profile].landlock else 0
        tasks.append(
            TaskProcess(
                pid,
                WarmProcess(kind, warm, Channel(control), "3", powers),
                Channel(control.dup()),
                TaskLog([read for read, _ in pipes], max_bytes=1000, bytes_per_second=1000, now_us=lambda: 0),
                granted.apart(pid),
                said or {"landlock_abi": landlock, "seccomp_denied": 60 * landlock},
                powers,
                pid,
                os.pidfd_open(pid),
                -1,
            )
        )
        before(pid)
        return attest(tasks[-1], limits="v2:kill", empties_bounding_set=True)

    yield run
    for task in tasks:
        await task.end()
        task.warm._channel.close()
        os.close(task.warm._pidfd)
    for child in started:
        child.end()
    assert idle.stdin is not None
    idle.stdin.close()
    idle.wait()


def dropped() -> None:
    empty_bounding_set()
    drop(NOBODY)


def hardened() -> None:
    harden(parent=os.getppid())


def mapped() -> bool:
    """What a warm process does: a user namespace of its own, and its first pid namespace."""
    namespaces.enter_user_namespace(NOBODY)
    drop(NOBODY, keep_capabilities=True)
    privileges.prctl(privileges.PR_SET_NO_NEW_PRIVS, 1)
    privileges.prctl(privileges.PR_SET_DUMPABLE, 0)
    return True


def next_pids() -> bool:
    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    namespaces.next_pid_namespace(own)
    os.close(own)
    return True


def confined(profile: str, **changes: Any) -> Callable[[], None]:
    return lambda: confine(confinement(profile, **changes), NOBODY, packages=PACKAGES) and None


@pytest.mark.parametrize("profile", ["standard", "strict"])
async def test_a_good_task_is_attested_with_what_is_in_force(attested: Attested, profile: str) -> None:
    own = len(privileges.status_of("self")["NSpid"].split())
    found = await attested(
        mapped, next_pids, confined(profile), profile=profile, said={"landlock_abi": 7, "seccomp_denied": 65}
    )
    assert found == {
        "profile": profile,
        "uid": [65534] * 4,
        "gid": [65534] * 4,
        "groups": [65534],
        "no_new_privs": True,
        "dumpable": False,
        "seccomp": True,
        "pid_namespaces": own + 2,
        "limits": "v2:kill",
        **dict.fromkeys(CAPABILITIES, "0" * 16),
        "landlock_abi": 7,
        "seccomp_denied": 65,
        "namespaces": ["ipc", "mnt", "pid", "user", "uts"],
    }


async def test_a_good_task_without_namespaces_is_attested(attested: Attested) -> None:
    found = await attested(dropped, hardened)
    assert found["namespaces"] == [] and found["profile"] == "minimal" and found["seccomp"] is False
    assert [found[name] for name in CAPABILITIES] == ["0" * 16] * 5


async def test_one_without_the_network_is_in_a_namespace_more(attested: Attested) -> None:
    found = await attested(mapped, next_pids, confined("standard", network=False), profile="standard", network=False)
    assert found["namespaces"] == ["ipc", "mnt", "net", "pid", "user", "uts"]
    alone = await attested(no_network, dropped, hardened, network=False)
    assert alone["namespaces"] == ["net"]


def no_network() -> None:
    namespaces.unshare(namespaces.CLONE_NEWNET)


def no_new_privs() -> None:
    privileges.prctl(privileges.PR_SET_NO_NEW_PRIVS, 1)


def not_dumpable() -> None:
    privileges.prctl(privileges.PR_SET_DUMPABLE, 0)


def dumpable() -> None:
    privileges.prctl(privileges.PR_SET_DUMPABLE, 1)


def saved_uid_left() -> None:
    os.setgroups(list(NOBODY.groups))
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 0)


def bounding_set_left() -> None:
    drop(NOBODY)


def capabilities_kept() -> None:
    empty_bounding_set()
    privileges.prctl(8, 1)  # PR_SET_KEEPCAPS
    os.setgroups(list(NOBODY.groups))
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


WEAKER: dict[str, tuple[tuple[Callable[[], object], ...], Identity, str]] = {
    "root": ((no_new_privs, not_dumpable), NOBODY, "uid"),
    "root as root": ((no_new_privs, not_dumpable), Identity(0, 0, tuple(os.getgroups())), "dumpable"),
    "another user": ((dropped, hardened), Identity(1, 65534, (65534,)), "uid"),
    "another group": ((dropped, hardened), Identity(65534, 1, (65534,)), "gid"),
    "other groups": ((dropped, hardened), Identity(65534, 65534, ()), "groups"),
    "new privileges": ((dropped, not_dumpable), NOBODY, "no_new_privs"),
    "dumpable": ((dropped, hardened, dumpable), NOBODY, "dumpable"),
    "saved uid left": ((no_new_privs, saved_uid_left, not_dumpable), NOBODY, "uid"),
    "bounding set left": ((no_new_privs, bounding_set_left, not_dumpable), NOBODY, "capbnd"),
    "capabilities kept": ((no_new_privs, capabilities_kept, not_dumpable), NOBODY, "capprm"),
}


@pytest.mark.parametrize("case", WEAKER)
async def test_a_task_with_one_mitigation_missing_gets_no_secret(attested: Attested, case: str) -> None:
    steps, identity, named = WEAKER[case]
    with pytest.raises(PrivilegeError, match=rf"the task's {named}.* no secret is given"):
        await attested(*steps, identity=identity)


def apart(flags: int) -> Callable[[], None]:
    """`confine` without one of its namespaces, and without mounts."""

    def step() -> None:
        namespaces.unshare(flags)
        empty_bounding_set()
        shed_capabilities()
        seccomp.install("standard")

    return step


NEWNS, NEWIPC, NEWUTS = namespaces.CLONE_NEWNS, namespaces.CLONE_NEWIPC, namespaces.CLONE_NEWUTS


def unfiltered() -> None:
    namespaces.unshare(NEWNS | NEWIPC | NEWUTS)
    empty_bounding_set()
    shed_capabilities()


def unbounded() -> None:
    namespaces.unshare(NEWNS | NEWIPC | NEWUTS)
    shed_capabilities()
    seccomp.install("standard")


def all_powerful() -> None:
    namespaces.unshare(NEWNS | NEWIPC | NEWUTS)
    empty_bounding_set()
    seccomp.install("standard")


def outside() -> None:
    """All but the user and pid namespaces."""
    namespaces.unshare(NEWNS | NEWIPC | NEWUTS)
    dropped()
    hardened()
    seccomp.install("standard")


WEAKER_INSIDE: dict[str, tuple[tuple[Callable[[], object], ...], str]] = {
    "minimal": ((dropped, hardened), "seccomp"),
    "no filter": ((mapped, next_pids, unfiltered), "seccomp"),
    "in the warm process's pids": ((mapped, apart(NEWNS | NEWIPC | NEWUTS)), "pid_namespaces"),
    "no user namespace": ((outside,), "pid_namespaces"),
    "no mounts of its own": ((mapped, next_pids, apart(NEWIPC | NEWUTS)), "namespaces"),
    "no ipc of its own": ((mapped, next_pids, apart(NEWNS | NEWUTS)), "namespaces"),
    "no name of its own": ((mapped, next_pids, apart(NEWNS | NEWIPC)), "namespaces"),
    "a network of its own": (
        (mapped, next_pids, apart(NEWNS | NEWIPC | NEWUTS | namespaces.CLONE_NEWNET)),
        "namespaces",
    ),
    "a bounding set": ((mapped, next_pids, unbounded), "capbnd"),
    "power over its namespaces": ((mapped, next_pids, all_powerful), "capprm"),
}


@pytest.mark.parametrize("case", WEAKER_INSIDE)
async def test_a_namespaced_task_with_one_mitigation_missing_gets_no_secret(attested: Attested, case: str) -> None:
    steps, named = WEAKER_INSIDE[case]
    with pytest.raises(PrivilegeError, match=rf"the task's {named} is .* no secret is given"):
        await attested(*steps, profile="standard")


async def test_a_task_that_says_nothing_of_landlock_gets_no_secret(attested: Attested) -> None:
    silent = {"landlock_abi": 0, "seccomp_denied": 65}
    with pytest.raises(PrivilegeError, match="the task says Landlock ABI 0: no secret is given"):
        await attested(mapped, next_pids, confined("standard"), profile="standard", said=silent)


async def test_a_task_of_a_lesser_profile_than_it_is_attested_as_is_found_out(attested: Attested) -> None:
    with pytest.raises(PrivilegeError, match="seccomp is False, not True"):
        await attested(mapped, next_pids, unfiltered, profile="strict")


async def test_a_task_that_is_gone_is_no_task(attested: Attested) -> None:
    def gone(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    with pytest.raises(EOFError, match="gone"):
        await attested(dropped, hardened, before=gone)

"""Inside a task's namespaces: what is there, what is not, what cannot be done any more, and that nothing of it stays."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher import namespaces, privileges
from launcher.isolation import PROFILES, Confinement
from launcher.namespaces import enter_user_namespace, next_pid_namespace, unshare
from launcher.privileges import Identity, die_with, drop, harden, status_of
from launcher.task import mounts
from launcher.task.confining import confine
from launcher.trees import has_ended
from tests.forked import InChild

pytestmark = pytest.mark.root

Inside = Callable[..., str]

NOBODY = Identity(65534, 65534, (65534,))
GROUPS = Identity(65534, 65534, (4, 100, 65534))
PACKAGES = ("/usr", "/lib")
MIB = 1 << 20
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
CONFINEMENT = Confinement(
    profile=PROFILES["standard"], network=True, readable=(), writable=(), tcp_ports=(), tmp_bytes=MIB
)

libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def as_warm(in_child: InChild) -> Inside:
    """Run a function as process 1 of a pid namespace, in a user namespace of nobody, with the power that it gives."""

    def run(body: Callable[[], object], *, identity: Identity | None = NOBODY) -> str:
        def first() -> str:
            if identity is None:
                drop(NOBODY)
                privileges.prctl(privileges.PR_SET_DUMPABLE, 1)  # as after an exec
            enter_user_namespace(identity)
            if identity is not None:
                drop(identity, keep_capabilities=True)
            harden(parent=os.getppid())
            return in_child(second)

        def second() -> object:
            die_with(0)
            return body()

        return in_child(first)

    return run


@pytest.fixture
def inside(in_child: InChild, as_warm: Inside) -> Inside:
    """Run a function as a task: process 1 of a further pid namespace, confined."""

    def run(
        body: Callable[[], object],
        profile: str = "standard",
        *,
        identity: Identity | None = NOBODY,
        packages: tuple[str, ...] = PACKAGES,
        **changes: Any,
    ) -> str:
        asked = replace(CONFINEMENT, profile=PROFILES[profile], **changes)

        def warm() -> str:
            next_pid_namespace(os.open("/proc/self/ns/pid", os.O_RDONLY))
            return in_child(task)

        def task() -> object:
            die_with(0)
            confine(asked, identity or Identity(os.getuid(), os.getgid(), tuple(os.getgroups())), packages=packages)
            return body()

        return as_warm(warm, identity=identity)

    return run


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of nobody's own below /tmp, with a file that is open to all."""
    folder = Path(tempfile.mkdtemp(prefix="dagseal-place-", dir="/tmp"))
    (folder / "file").write_text("outside")
    (folder / "file").chmod(0o644)
    os.chown(folder, 65534, 65534)
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def failing(way: Callable[[], object]) -> str:
    """The name of the error that this must raise."""
    with pytest.raises(OSError) as raised:
        way()
    return errno.errorcode[raised.value.errno or 0]


def call(name: str, *arguments: object) -> str:
    """A function of the C library; the name of its error, or empty."""
    return "" if getattr(libc, name)(*arguments) != -1 else errno.errorcode[ctypes.get_errno()]


# --- ids


def test_a_warm_process_has_power_over_its_namespaces_and_only_one_user_to_be(as_warm: Inside) -> None:
    def body() -> str:
        assert privileges.holds(privileges.CAP_SETUID) and privileges.holds(21)  # CAP_SYS_ADMIN
        for number in (0, 1, 1000, 65533):
            assert failing(lambda number=number: os.setresuid(number, number, number)) == "EINVAL"
            assert failing(lambda number=number: os.setresgid(number, number, number)) == "EINVAL"
            assert failing(lambda number=number: os.setgroups([number])) == "EINVAL"
        assert failing(lambda: os.open("/etc/shadow", os.O_RDONLY)) == "EACCES"
        assert failing(lambda: os.chown("/tmp", 65534, 65534)) == "EPERM"  # root's, and root has no number here
        return "one"

    assert as_warm(body) == "one"


def test_only_the_mapped_ids_exist(inside: Inside) -> None:
    def body() -> str:
        assert os.getresuid() == (65534,) * 3 and os.getresgid() == (65534,) * 3
        for number in (0, 1, 1000):
            assert failing(lambda number=number: os.setresuid(number, number, number)) == "EINVAL"
            assert failing(lambda number=number: os.setresgid(number, number, number)) == "EINVAL"
        assert failing(lambda: os.setgroups([0])) == "EPERM"
        return Path("/proc/self/uid_map").read_text() + Path("/proc/self/gid_map").read_text()

    assert inside(body).split() == ["65534", "65534", "1"] * 2


def test_supplementary_groups_come_along_and_open_what_is_theirs(inside: Inside, place: Path) -> None:
    (place / "file").chmod(0o040)
    os.chown(place / "file", 0, 4)

    def body() -> str:
        assert sorted(os.getgroups()) == [4, 100, 65534]
        assert Path("/proc/self/gid_map").read_text().split() == [
            "4",
            "4",
            "1",
            "100",
            "100",
            "1",
            "65534",
            "65534",
            "1",
        ]
        return (place / "file").read_text()

    assert inside(body, identity=GROUPS, readable=(str(place),)) == "outside"
    without = inside(lambda: (place / "file").read_text(), readable=(str(place),))
    assert without.startswith("PermissionError")


def test_an_account_without_privileges_maps_itself(inside: Inside) -> None:
    def body() -> str:
        assert os.getresuid() == (65534,) * 3 and os.getpid() == 1
        assert Path("/proc/self/setgroups").read_text() == "deny\n"
        assert failing(lambda: os.setgroups([])) == "EPERM"
        assert os.listdir("/tmp") == []
        status = status_of("self")
        assert [status[name] for name in CAPABILITIES] == ["0" * 16] * 5
        return Path("/proc/self/uid_map").read_text() + Path("/proc/self/gid_map").read_text()

    assert inside(body, identity=None).split() == ["65534", "65534", "1"] * 2


# --- mounts


@pytest.mark.parametrize("profile", ["standard", "strict"])
def test_the_folders_for_temporary_files_are_empty_and_its_own(inside: Inside, place: Path, profile: str) -> None:
    def body() -> str:
        assert not place.exists()
        for folder in ("/tmp", "/var/tmp", "/dev/shm"):
            assert os.listdir(folder) == []
            found = Path(folder).stat()
            assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (65534, 0o700)
            Path(folder, "mine").write_text("x")
        return "private"

    assert inside(body, profile) == "private"
    assert inside(body, profile) == "private"  # nothing of the first is there for the second
    assert not [name for name in ("/tmp/mine", "/var/tmp/mine", "/dev/shm/mine") if os.path.exists(name)]


def test_no_program_of_another_user_gains_by_being_in_there(inside: Inside) -> None:
    def body() -> str:
        flags = {folder: os.statvfs(folder).f_flag for folder in ("/tmp", "/var/tmp", "/dev/shm", "/proc")}
        return str({bool(flag & os.ST_NOSUID and flag & os.ST_NODEV) for flag in flags.values()})

    assert inside(body) == "{True}"


@pytest.mark.parametrize("folder", ["/tmp", "/var/tmp", "/dev/shm"])
def test_a_folder_for_temporary_files_has_an_end(inside: Inside, folder: str) -> None:
    def body() -> str:
        with pytest.raises(OSError) as raised, open(f"{folder}/big", "wb", buffering=0) as file:
            for _ in range(100):
                file.write(b"x" * 65536)
        return f"{errno.errorcode[raised.value.errno]} {os.stat(f'{folder}/big').st_size}"

    assert inside(body) == f"ENOSPC {MIB}"


def test_only_own_processes_are_in_proc(inside: Inside) -> None:
    def body() -> str:
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as child:
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write(b"x")
            child.stdout.read(1)  # it is past its exec
            pids = sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())
        return f"{pids} {child.pid} {os.path.exists('/proc/sys')} {os.getppid()}"

    assert inside(body) == "[1, 2] 2 True 0"
    assert inside(body, "strict") == "[1, 2] 2 False 0"


def test_what_is_kept_can_be_read_and_what_is_writable_written(inside: Inside, place: Path) -> None:
    """Below the private /tmp, where both are in the same place as outside."""
    for name in ("read", "write"):
        (place / name).mkdir()
        (place / name / "file").write_text(name)
        for path in (place / name, place / name / "file"):
            os.chown(path, 65534, 65534)

    def body() -> str:
        assert os.listdir("/tmp") == [place.name] and sorted(os.listdir(place)) == ["read", "write"]
        assert (place / "read" / "file").read_text() == "read"
        for way in (
            lambda: (place / "read" / "file").write_text("x"),
            lambda: (place / "read" / "new").write_text("x"),
            lambda: (place / "read" / "file").unlink(),
            lambda: (place / "read" / "file").chmod(0o777),
            lambda: os.utime(place / "read" / "file"),
        ):
            assert failing(way) in ("EROFS", "EACCES")
        (place / "write" / "file").write_text("changed")
        (place / "write" / "new").write_text("new")
        return "kept"

    for profile in ("standard", "strict"):
        paths = {"readable": (str(place / "read"),), "writable": (str(place / "write"),)}
        assert inside(body, profile, **paths) == "kept"
        assert (place / "write" / "file").read_text() == "changed"
        (place / "write" / "new").unlink()
        assert os.listdir(place / "read") == ["file"]


def test_a_writable_folder_in_a_kept_one_and_the_other_way_round(inside: Inside, place: Path) -> None:
    for name in ("a/b", "c/d"):
        (place / name).mkdir(parents=True)
    for name in ("a", "a/b", "c", "c/d"):
        os.chown(place / name, 65534, 65534)

    def body() -> str:
        (place / "a" / "b" / "x").write_text("")
        (place / "c" / "x").write_text("")
        return failing((place / "a" / "x").touch) + failing((place / "c" / "d" / "x").touch)

    kept, written = (str(place / "a"), str(place / "c" / "d")), (str(place / "a" / "b"), str(place / "c"))
    assert inside(body, readable=kept, writable=written) == "EROFSEROFS"


def test_a_writable_folder_for_temporary_files_stays_the_hosts(inside: Inside, place: Path) -> None:
    assert inside((place / "file").read_text, writable=("/tmp",)) == "outside"


def test_packages_below_tmp_are_kept(inside: Inside, place: Path) -> None:
    assert inside((place / "file").read_text, packages=(*PACKAGES, str(place))) == "outside"


def test_a_mount_that_forbids_to_execute_can_be_kept(in_child: InChild, inside: Inside, place: Path) -> None:
    """Flags of a mount that came from a more privileged namespace are locked (mount_namespaces(7))."""

    def body() -> str:
        unshare(namespaces.CLONE_NEWNS)
        mounts._mount(None, "/", None, mounts._MS_REC | mounts._MS_PRIVATE)
        mounts._mount("tmpfs", str(place), "tmpfs", mounts._MS_NOEXEC | mounts._MS_NOSUID, "mode=0755")
        (place / "file").write_text("on noexec")
        (place / "file").chmod(0o644)
        return inside((place / "file").read_text, readable=(str(place),))

    assert in_child(body) == "on noexec"


def test_reading_and_writing_outside_is_by_profile(inside: Inside) -> None:
    folder = Path(tempfile.mkdtemp(prefix="dagseal-place-", dir="/var"))
    try:
        os.chown(folder, 65534, 65534)
        (folder / "file").write_text("outside")
        (folder / "file").chmod(0o666)

        def body() -> str:
            words = []
            for way in ((folder / "file").read_text, lambda: (folder / "file").write_text("outside")):
                try:
                    way()
                    words.append("yes")
                except OSError as error:
                    words.append(errno.errorcode[error.errno])
            return " ".join(words)

        assert inside(body, "standard") == "yes EACCES"
        assert inside(body, "strict") == "EACCES EACCES"
        for profile in ("standard", "strict"):
            assert inside(body, profile, readable=(str(folder),)) == "yes EACCES"
            assert inside(body, profile, writable=(str(folder),)) == "yes yes"
    finally:
        shutil.rmtree(folder)


# --- what is gone


@pytest.mark.parametrize("identity", [NOBODY, None], ids=["mapped", "self-mapped"])
@pytest.mark.parametrize("profile", ["standard", "strict"])
def test_no_capability_is_left_and_no_namespace_can_be_made_or_entered(
    inside: Inside, profile: str, identity: Identity | None
) -> None:
    def body() -> str:
        status = status_of("self")
        assert [status[name] for name in CAPABILITIES] == ["0" * 16] * 5
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        own = os.open("/proc/self/ns/pid", os.O_RDONLY)
        denied = {
            "setns": call("setns", own, 0),
            "mount": call("mount", b"tmpfs", b"/tmp", b"tmpfs", 0, None),
            "remount": call("mount", None, b"/", None, ctypes.c_ulong(0x1000 | 0x20), None),
            "umount": call("umount2", b"/tmp", 0),
            "chroot": call("chroot", b"/tmp"),
            "sethostname": call("sethostname", b"x", 1),
        }
        for flag in (0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x02000000):
            denied[hex(flag)] = call("unshare", flag)
        return str(set(denied.values()))

    assert inside(body, profile, identity=identity) == "{'EPERM'}"


def test_without_the_filter_the_capabilities_are_gone_all_the_same(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step holds by itself."""
    monkeypatch.setitem(PROFILES, "bare", replace(PROFILES["standard"], name="bare", landlock="", seccomp=""))

    def body() -> str:
        assert status_of("self")["Seccomp"] == "0"
        flags = (0x00020000, 0x04000000, 0x08000000, 0x20000000, 0x40000000)
        denied = [call("unshare", flag) for flag in flags]
        denied += [call("mount", b"tmpfs", b"/tmp", b"tmpfs", 0, None), call("umount2", b"/tmp", 0)]
        return str(set(denied))

    assert inside(body, "bare") == "{'EPERM'}"


def test_shared_memory_is_its_own(inside: Inside) -> None:
    key, create = 0xDA65EA1, 0o1000 | 0o600
    made = libc.shmget(key, 4096, create)
    assert made != -1
    try:
        assert inside(lambda: call("shmget", key, 4096, 0o600)) == "ENOENT"
    finally:
        libc.shmctl(made, 0, None)


def test_the_network_is_the_hosts_or_none(inside: Inside) -> None:
    def body() -> str:
        with socket.socket() as sock:
            sock.settimeout(5)
            return f"{[name for _, name in socket.if_nameindex()]} {sock.connect_ex(('127.0.0.1', port))}"

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        here = [name for _, name in socket.if_nameindex()]
        assert inside(body) == f"{here} 0"
        assert inside(body, network=False) == f"['lo'] {errno.ENETUNREACH}"
        assert inside(body, "strict") == f"{here} {errno.EACCES}"
        assert inside(body, "strict", tcp_ports=(port,)) == f"{here} 0"


def test_rlimits_are_final(inside: Inside) -> None:
    def body() -> str:
        with pytest.raises(ValueError, match="maximum limit"):
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 65))
        return str((resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CORE)))

    assert inside(body, rlimits=((resource.RLIMIT_NOFILE, 64),)) == "((64, 64), (0, 0))"


# --- death


class Family:
    """A warm process with some tasks, each of which left a daemon in its own session that is deaf, all seen from outside."""

    def __init__(self, tasks: int) -> None:
        words, word = socket.socketpair()
        words.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.outer = os.fork()
        if self.outer == 0:
            try:
                words.close()
                enter_user_namespace(NOBODY)
                drop(NOBODY, keep_capabilities=True)
                harden(parent=os.getppid())
                if os.fork():
                    os.wait()
                else:
                    self._warm(word, tasks)
            finally:
                os._exit(1)
        word.close()
        self.pids, self._pidfds = {}, {}
        for _ in range(1 + 2 * tasks):
            said, ancillary, _, _ = words.recvmsg(16, socket.CMSG_SPACE(12))
            name, pid = said.decode().strip(), struct.unpack("3i", ancillary[0][2])[0]
            self.pids[name], self._pidfds[name] = pid, os.pidfd_open(pid)
        words.close()

    def _warm(self, word: socket.socket, tasks: int) -> None:
        die_with(0)
        word.send(b"warm".ljust(16))
        own = os.open("/proc/self/ns/pid", os.O_RDONLY)
        for number in range(tasks):
            next_pid_namespace(own)
            if os.fork() == 0:
                die_with(0)
                confine(CONFINEMENT, NOBODY, packages=PACKAGES)
                if os.fork() == 0:
                    os.setsid()
                    if os.fork():
                        os._exit(0)
                    for deaf_to in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                        signal.signal(deaf_to, signal.SIG_IGN)
                    word.send(b"daemon %d".ljust(16) % number)
                else:
                    word.send(b"task %d".ljust(16) % number)
                break
        while True:
            signal.pause()

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        signal.pidfd_send_signal(self._pidfds[name], number)

    def wait(self, name: str) -> None:
        """Return when it is dead; the test's timeout says when it is not."""
        select.select([self._pidfds[name]], [], [])

    def alive(self) -> set[str]:
        return {name for name, pidfd in self._pidfds.items() if not has_ended(pidfd)}

    def close(self) -> None:
        os.kill(self.outer, signal.SIGKILL)
        os.waitpid(self.outer, 0)
        self.wait("warm")
        assert self.alive() == set()
        for pidfd in self._pidfds.values():
            os.close(pidfd)


@pytest.fixture
def family() -> Iterator[Family]:
    def here() -> tuple[int, list[str]]:
        return Path("/proc/self/mountinfo").read_text().count("\n"), sorted(os.listdir("/proc/self/fd"))

    before = here()
    started = Family(3)
    yield started
    started.close()
    assert here() == before


@pytest.mark.timeout(30)
def test_a_daemon_that_a_task_left_is_dead_when_the_task_is_and_nobody_else(family: Family) -> None:
    family.kill("daemon 1", signal.SIGTERM)
    assert os.getsid(family.pids["daemon 1"]) != os.getsid(family.pids["task 1"])
    assert len(family.alive()) == 7
    family.kill("task 1")
    family.wait("task 1")
    assert family.alive() == {"warm", "task 0", "daemon 0", "task 2", "daemon 2"}


@pytest.mark.timeout(30)
def test_a_stopped_task_dies_too(family: Family) -> None:
    family.kill("task 0", signal.SIGSTOP)
    family.kill("daemon 0", signal.SIGSTOP)
    family.kill("task 0")
    family.wait("task 0")
    assert family.alive() == {"warm", "task 1", "daemon 1", "task 2", "daemon 2"}


@pytest.mark.timeout(30)
def test_all_tasks_are_dead_when_their_warm_process_is(family: Family) -> None:
    family.kill("warm")
    family.wait("warm")
    assert family.alive() == set()


@pytest.mark.timeout(30)
def test_the_warm_process_dies_with_the_one_that_the_launcher_started(family: Family) -> None:
    os.kill(family.outer, signal.SIGKILL)
    family.wait("warm")
    assert family.alive() == set()


def test_tasks_do_not_see_each_other(in_child: InChild, as_warm: Inside) -> None:
    def warm() -> str:
        own = os.open("/proc/self/ns/pid", os.O_RDONLY)
        answers = []
        for _ in range(3):
            next_pid_namespace(own)
            answers.append(in_child(task))
        return " ".join(answers)

    def task() -> str:
        confine(CONFINEMENT, NOBODY, packages=PACKAGES)
        return (
            f"{os.getpid()}:{failing(lambda: os.kill(2, 0))}:{len([n for n in os.listdir('/proc') if n.isdecimal()])}"
        )

    assert as_warm(warm) == "1:ESRCH:1 1:ESRCH:1 1:ESRCH:1"


# --- a step that fails


def test_what_cannot_be_mounted_is_refused(inside: Inside, place: Path) -> None:
    assert inside(lambda: "ran", tmp_bytes=-1).startswith("PrivilegeError: mount on /tmp failed: Invalid argument")
    absent = str(place / "absent")
    for paths in ({"readable": (absent,)}, {"writable": (absent,)}, {"packages": (absent,)}):
        assert inside(lambda: "ran", **paths).startswith(f"PrivilegeError: {absent} ")
    said = inside(lambda: "ran", readable=(str(place / "file"),))
    assert said.startswith(f"PrivilegeError: mount on {place / 'file'} failed: Not a directory")


def test_without_power_over_the_namespace_nothing_is_mounted(in_child: InChild) -> None:
    def body() -> None:
        drop(NOBODY)
        mounts.private(keep=(), writable=(), tmp_bytes=MIB, only_own_pids=False)

    assert in_child(body).startswith("PrivilegeError: mount on / failed: Operation not permitted")


def test_without_power_no_pid_namespace_is_made(in_child: InChild) -> None:
    def body() -> None:
        own = os.open("/proc/self/ns/pid", os.O_RDONLY)
        drop(NOBODY)
        next_pid_namespace(own)

    assert in_child(body) == "PrivilegeError: setns to the own pid namespace failed: Operation not permitted"


def test_a_user_namespace_that_nobody_may_fill_is_refused(in_child: InChild) -> None:
    def body() -> None:
        drop(NOBODY)
        enter_user_namespace(Identity(1, 1, ()))  # as if it could

    assert in_child(body).startswith("PrivilegeError: the user namespace could not be given its ids")


@pytest.mark.parametrize("identity", [NOBODY, None], ids=["mapped", "self-mapped"])
def test_a_host_that_permits_no_user_namespaces_is_refused(in_child: InChild, identity: Identity | None) -> None:
    """The setting is each user namespace's own for what is below it (namespaces(7)): so it is tried in one."""

    def body() -> None:
        unshare(namespaces.CLONE_NEWUSER)
        Path("/proc/self/uid_map").write_text("0 0 1\n")
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
        enter_user_namespace(identity)

    said = in_child(body)
    assert said.startswith("PrivilegeError: unshare(0x30000000) failed: No space left on device; run dagseal doctor")


def test_a_confinement_for_another_user_is_refused(in_child: InChild, as_warm: Inside) -> None:
    def warm() -> str:
        next_pid_namespace(os.open("/proc/self/ns/pid", os.O_RDONLY))
        return in_child(lambda: confine(CONFINEMENT, Identity(1, 1, ()), packages=PACKAGES))

    assert as_warm(warm).startswith("PrivilegeError: the drop left ids")


def test_an_rlimit_that_cannot_be_set_is_refused(inside: Inside) -> None:
    assert inside(lambda: "ran", rlimits=((resource.RLIMIT_NOFILE, 1 << 40),)).partition(":")[0] in (
        "PrivilegeError",
        "ValueError",
    )

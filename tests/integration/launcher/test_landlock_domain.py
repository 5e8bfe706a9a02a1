"""Landlock by what a confined process can and cannot do. What is refused here is open to it by mode and owner."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confining import DEVICES, NOBODY, SYSTEM, confined, give, owned_folder

from integrity.errors import PrivilegeError
from launcher import privileges
from launcher.task import landlock
from launcher.task.landlock import Access, restrict
from tests.forked import refusal

NEWEST = 7


def access(*, read: tuple[str, ...] = (), write: tuple[str, ...] = (), **others: object) -> Access:
    return Access(**{"read": read, "write": write, "connect_ports": None, "scope": False} | others)


@pytest.fixture
def tree() -> Iterator[Path]:
    """`read`, `write`, `write2` and `outside`, each with a file, a link, a folder and a program; all of it the user's own."""
    with owned_folder() as folder:
        for name in ("read", "write", "write2", "outside"):
            (folder / name / "folder").mkdir(parents=True)
            (folder / name / "file").write_text("0123456789")
            (folder / name / "link").symlink_to("file")
            shutil.copy("/bin/true", folder / name / "program")
            for path in (folder / name, *(folder / name).iterdir()):
                if not path.is_symlink():
                    give(path)
        yield folder


def in_tree(tree: Path, **others: object) -> int:
    places = {"read": (*SYSTEM, str(tree / "read")), "write": (str(tree / "write"), str(tree / "write2"))}
    return restrict(access(**places | others), least_abi=NEWEST)


READS: dict[str, Callable[[Path], object]] = {
    "a file": lambda folder: (folder / "file").read_text(),
    "by a link": lambda folder: (folder / "link").read_text(),
    "a folder": lambda folder: os.listdir(folder),
    "execute": lambda folder: subprocess.run([folder / "program"], check=True),
}
WRITES: dict[str, Callable[[Path], object]] = {
    "open to write": lambda folder: os.close(os.open(folder / "file", os.O_WRONLY)),
    "open to append": lambda folder: os.close(os.open(folder / "file", os.O_WRONLY | os.O_APPEND)),
    "open and truncate": lambda folder: os.close(os.open(folder / "file", os.O_RDONLY | os.O_TRUNC)),
    "truncate": lambda folder: os.truncate(folder / "file", 5),
    "create": lambda folder: os.close(os.open(folder / "new", os.O_WRONLY | os.O_CREAT, 0o600)),
    "create without a name": lambda folder: os.close(os.open(folder, os.O_WRONLY | os.O_TMPFILE, 0o600)),
    "make a folder": lambda folder: os.mkdir(folder / "new"),
    "make a link": lambda folder: os.symlink("file", folder / "new"),
    "make a hard link": lambda folder: os.link(folder / "file", folder / "new"),
    "make a fifo": lambda folder: os.mkfifo(folder / "new"),
    "make a socket": lambda folder: socket.socket(socket.AF_UNIX).bind(str(folder / "new")),
    "rename": lambda folder: os.rename(folder / "file", folder / "new"),
    "remove a file": lambda folder: os.unlink(folder / "file"),
    "remove a folder": lambda folder: os.rmdir(folder / "folder"),
}


@pytest.mark.parametrize("what", READS)
def test_reading_inside_and_not_outside(tree: Path, what: str) -> None:
    def body() -> list[str]:
        in_tree(tree)
        return [refusal(lambda name=name: READS[what](tree / name)) for name in ("read", "write", "outside")]

    assert confined(lambda: [refusal(lambda: READS[what](tree / "outside"))]) == "['']"
    assert confined(body) == "['', '', 'EACCES']"


@pytest.mark.parametrize("what", WRITES)
def test_writing_inside_and_nowhere_else(tree: Path, what: str) -> None:
    def body() -> list[str]:
        in_tree(tree)
        return [refusal(lambda name=name: WRITES[what](tree / name)) for name in ("write", "read", "outside")]

    assert confined(body) == "['', 'EACCES', 'EACCES']"
    for name in ("read", "outside"):
        assert sorted(os.listdir(tree / name)) == ["file", "folder", "link", "program"]
        assert (tree / name / "file").read_text() == "0123456789"
    assert confined(lambda: [refusal(lambda: WRITES[what](tree / "outside"))]) == "['']"  # the file modes allow it


def test_nothing_is_moved_or_linked_to_where_more_may_be_done_with_it(tree: Path) -> None:
    def body() -> list[str]:
        in_tree(tree)
        write, write2, read, outside = (tree / name for name in ("write", "write2", "read", "outside"))
        return [
            refusal(lambda: os.rename(write / "file", write2 / "moved")),
            refusal(lambda: os.link(write2 / "moved", write / "linked")),
            refusal(lambda: os.rename(write2 / "moved", read / "moved")),
            refusal(lambda: os.rename(read / "file", write / "moved")),
            refusal(lambda: os.link(read / "file", write / "moved")),
            refusal(lambda: os.rename(outside / "file", write / "moved")),
            refusal(lambda: os.link(outside / "file", write / "moved")),
        ]

    assert confined(body) == str(["", "", "EACCES", "EACCES", "EXDEV", "EACCES", "EXDEV"])


def test_a_link_made_inside_leads_nowhere(tree: Path) -> None:
    def body() -> str:
        in_tree(tree)
        os.symlink(tree / "outside" / "file", tree / "write" / "way-out")
        return refusal(lambda: open(tree / "write" / "way-out").close())

    assert confined(body) == "EACCES"


def test_what_it_starts_is_confined_too(tree: Path) -> None:
    def body() -> list[int]:
        in_tree(tree, write=("/dev/null",))
        commands = (
            f"cat {tree}/read/file",
            f"cat {tree}/outside/file",
            f"echo x >> {tree}/read/file",
            "true > /dev/null",
        )
        return [
            subprocess.run(["/bin/sh", "-c", command], capture_output=True, check=False).returncode != 0
            for command in commands
        ]

    assert confined(body) == "[False, True, True, False]"


def test_a_single_file_and_a_device(tree: Path) -> None:
    def body() -> list[str]:
        restrict(access(read=SYSTEM, write=(str(tree / "outside" / "file"), *DEVICES)), least_abi=NEWEST)
        outside = tree / "outside"
        return [
            refusal(lambda: os.close(os.open(outside / "file", os.O_RDWR | os.O_TRUNC))),
            refusal(lambda: os.truncate(outside / "file", 3)),
            refusal(lambda: (outside / "program").read_bytes()),
            refusal(lambda: os.unlink(outside / "file")),
            refusal(lambda: os.close(os.open("/dev/null", os.O_WRONLY))),
            refusal(lambda: fcntl.ioctl(os.open("/dev/urandom", os.O_RDONLY), 0x5404, b"\0" * 8)),  # no such request
            refusal(lambda: os.close(os.open("/dev/zero", os.O_RDONLY))),
        ]

    assert confined(body) == str(["", "", "EACCES", "EACCES", "", "EINVAL", "EACCES"])


def test_a_devices_requests_are_denied_where_it_can_only_be_read(tree: Path) -> None:
    def body() -> str:
        restrict(access(read=(*SYSTEM, "/dev/urandom")), least_abi=NEWEST)
        return refusal(lambda: fcntl.ioctl(os.open("/dev/urandom", os.O_RDONLY), 0x5404, b"\0" * 8))

    assert confined(body) == "EACCES"


def test_what_is_open_stays_open_and_a_memfd_is_no_path(tree: Path) -> None:
    """The sealed archive is opened anew by its descriptor's name."""
    fd = os.memfd_create("archive", os.MFD_CLOEXEC)
    os.write(fd, b"code")

    def body() -> list[object]:
        already = os.open(tree / "outside" / "file", os.O_RDONLY)
        in_tree(tree)
        with open(f"/proc/self/fd/{fd}", "rb") as again:
            return [os.read(already, 4), again.read()]

    assert confined(body) == "[b'0123', b'code']"
    os.close(fd)


@contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server


def connect(port: int) -> None:
    with socket.socket() as client:
        client.connect(("127.0.0.1", port))


def bind(port: int = 0) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))


@pytest.mark.parametrize(
    ("ports", "found"),
    [("none", ["EACCES"] * 4), ("one", ["", *["EACCES"] * 3]), ("all", ["", "", "", "EADDRINUSE"])],
)
def test_tcp_reaches_the_listed_ports_and_binds_none(ports: str, found: list[str]) -> None:
    with listening() as first, listening() as second:
        numbers = [server.getsockname()[1] for server in (first, second)]
        allowed: dict[str, tuple[int, ...] | None] = {"none": (), "one": (numbers[0],), "all": None}

        def body() -> list[str]:
            restrict(access(read=SYSTEM, connect_ports=allowed[ports]), least_abi=NEWEST)
            return [
                *(refusal(lambda port=port: connect(port)) for port in numbers),
                refusal(bind),
                refusal(lambda: bind(numbers[0])),
            ]

        assert confined(body) == str(found)


@contextmanager
def neighbour(name: bytes) -> Iterator[int]:
    """Another process of the same user, dumpable, that listens on an abstract unix socket."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                privileges.drop(NOBODY)
            privileges.prctl(privileges.PR_SET_DUMPABLE, 1)
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(name)
                server.listen()
                os.write(write, b"r")
                while True:
                    signal.pause()
        finally:
            os._exit(1)
    os.close(write)
    assert os.read(read, 1) == b"r"
    os.close(read)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def call(address: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)


@pytest.mark.parametrize(("scope", "found"), [(True, "EPERM"), (False, "")])
def test_an_abstract_socket_and_a_signal_of_another_process(scope: bool, found: str) -> None:
    name = b"\0dagseal-test-%d" % os.getpid()
    with neighbour(name) as pid:

        def body() -> list[str]:
            restrict(access(read=SYSTEM, scope=scope), least_abi=NEWEST)
            own = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
            own.terminate()
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(name + b"-own")
                server.listen()
                return [
                    refusal(lambda: call(name)),
                    refusal(lambda: os.kill(pid, 0)),
                    refusal(lambda: signal.pidfd_send_signal(os.pidfd_open(pid), 0)),
                    refusal(lambda: call(name + b"-own")),
                    str(own.wait() == -signal.SIGTERM),
                ]

        assert confined(body) == str([found, found, found, "", "True"])


def test_a_neighbour_of_the_same_user_cannot_be_read_or_traced() -> None:
    with neighbour(b"\0dagseal-test-trace-%d" % os.getpid()) as pid:

        def tries() -> list[str]:
            libc = ctypes.CDLL(None, use_errno=True)
            traced = libc.ptrace(16, pid, None, None)
            return [
                refusal(lambda: open(f"/proc/{pid}/environ", "rb").close()),
                refusal(lambda: open(f"/proc/{pid}/mem", "rb").close()),
                refusal(lambda: os.readlink(f"/proc/{pid}/fd/0")),
                errno.errorcode[ctypes.get_errno()] if traced else "",
            ]

        def body() -> list[str]:
            restrict(access(read=SYSTEM), least_abi=NEWEST)
            return tries()

        assert confined(body) == str(["EACCES", "EACCES", "EACCES", "EPERM"])
        assert confined(tries) == str([""] * 4)


def test_the_abi_in_force_is_returned_and_is_the_kernels() -> None:
    assert landlock.abi() >= NEWEST
    for scope, ports in ((True, ()), (False, None)):
        asked = access(read=SYSTEM, scope=scope, connect_ports=ports)
        assert confined(lambda asked=asked: restrict(asked, least_abi=1)) == str(NEWEST)


@pytest.mark.parametrize("here", range(1, NEWEST + 1))
def test_an_older_kernels_rights_are_all_used(monkeypatch: pytest.MonkeyPatch, tree: Path, here: int) -> None:
    """The structure and the rights of each ABI are taken by a kernel that has it; only what it lacks is not handled."""
    monkeypatch.setattr(landlock, "abi", lambda: here)
    ports, scope = () if here >= 4 else None, here >= 6

    def body() -> list[object]:
        asked = access(read=SYSTEM, write=(str(tree / "write"),), connect_ports=ports, scope=scope)
        found = restrict(asked, least_abi=here)
        return [
            found,
            refusal(lambda: (tree / "outside" / "file").read_text()),
            refusal(lambda: os.rename(tree / "write" / "file", tree / "write" / "folder" / "moved")),
            refusal(lambda: os.truncate(tree / "outside" / "file", 5)),
            refusal(bind),
            refusal(lambda: os.kill(os.getppid(), 0)) if os.getuid() == os.stat(f"/proc/{os.getppid()}").st_uid else "",
        ]

    expected = [
        here,
        "EACCES",
        "" if here >= 2 else "EXDEV",
        "EACCES" if here >= 3 else "",
        "EACCES" if here >= 4 else "",
    ]
    same_user = os.geteuid() != 0
    assert confined(body) == str([*expected, "EPERM" if here >= 6 and same_user else ""])


@pytest.mark.parametrize(
    ("here", "least", "others", "needed", "linux"),
    [
        (0, 1, {}, 1, "Linux 5.13"),
        (2, 3, {}, 3, "Linux 6.2"),
        (6, 7, {}, 7, "Linux 6.15"),
        (7, 8, {}, 8, "Linux later"),
        (9, 8, {}, 8, "Linux later"),
        (3, 1, {"connect_ports": ()}, 4, "Linux 6.7"),
        (5, 1, {"scope": True}, 6, "Linux 6.12"),
    ],
)
def test_a_kernel_that_cannot_is_refused_and_nothing_is_confined(
    monkeypatch: pytest.MonkeyPatch, here: int, least: int, others: dict[str, object], needed: int, linux: str
) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: here)

    def body() -> str:
        with pytest.raises(PrivilegeError, match=f"ABI {needed} is needed and ABI {min(here, 7)} is here.*{linux}"):
            restrict(access(read=SYSTEM, **others), least_abi=least)
        return str(os.listdir("/") != [])

    assert confined(body) == "True"


def test_a_path_that_does_not_exist_is_refused(tree: Path) -> None:
    for places in ({"read": (str(tree / "absent"),)}, {"write": (str(tree / "absent"),)}):
        found = confined(lambda places=places: restrict(access(**places), least_abi=1))
        assert found.startswith(f"PrivilegeError: {tree}/absent is to stay in reach but cannot be opened: No such file")


def test_what_is_no_access_is_refused() -> None:
    for wrong in ({"read": ("usr",)}, {"write": ("",)}, {"connect_ports": (0,)}, {"connect_ports": (65536,)}):
        with pytest.raises(PrivilegeError, match=r"absolute paths only|no TCP port"):
            access(**wrong)


def test_without_no_new_privs_the_kernel_refuses() -> None:
    """The child is an ordinary user's, and `confined` set it: so this forks before that."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                privileges.drop(NOBODY)
            with pytest.raises(PrivilegeError, match="confining itself: Operation not permitted"):
                restrict(access(read=SYSTEM), least_abi=1)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_process_with_threads_is_refused() -> None:
    def body() -> int:
        stop = threading.Event()
        threading.Thread(target=stop.wait, daemon=True).start()
        return restrict(access(read=SYSTEM), least_abi=1)

    assert confined(body).startswith("PrivilegeError: a process with several threads")


def test_a_domain_that_confines_nothing_is_found_out() -> None:
    """By another name of the root folder everything is in reach."""
    found = confined(lambda: restrict(access(read=("/proc/self/root",)), least_abi=1))
    assert found == "PrivilegeError: Landlock is in force and / can still be read: this process must end"


def test_a_second_domain_takes_away_and_gives_nothing_back(tree: Path) -> None:
    def body() -> list[str]:
        in_tree(tree)
        wide = access(read=("/proc", "/usr", "/etc"), write=(str(tree / "read"),))
        restrict(wide, least_abi=NEWEST)
        return [
            refusal(lambda: os.truncate(tree / "read" / "file", 5)),
            refusal(lambda: os.truncate(tree / "write" / "file", 5)),
            refusal(lambda: open(f"{sys.prefix}/pyvenv.cfg").close()),
        ]

    assert confined(body) == str(["EACCES"] * 3)

"""The filter by what the kernel answers, and that ordinary programs do not notice it, alone or together with Landlock."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import pty
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confining import DEVICES, NOBODY, SYSTEM, confined, owned_folder

from integrity.errors import PrivilegeError
from launcher import privileges
from launcher.task import landlock, seccomp
from launcher.task.seccomp import LEVELS, install, program
from tests.forked import refusal

VECTORS = Path(__file__).parents[2] / "vectors" / "launcher" / "syscalls.txt"
MACHINE = os.uname().machine
on_x86 = pytest.mark.skipif(MACHINE != "x86_64", reason="only x86_64 has a second and a third set of numbers")
MPTCP, MSG_FASTOPEN = 262, 0x20000000


def numbers() -> dict[str, int]:
    column = 1 if MACHINE == "x86_64" else 2
    rows = (line.split() for line in VECTORS.read_text().splitlines() if not line.startswith("#"))
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


NUMBERS = numbers()


def syscall(name: str, *arguments: int) -> str:
    """The errno's name; empty when it was done."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    answer = libc.syscall(ctypes.c_long(NUMBERS[name]), *(ctypes.c_ulong(argument) for argument in arguments))
    return errno.errorcode[ctypes.get_errno()] if answer == -1 else ""


def denied_whole(level: str) -> list[str]:
    tables = (seccomp._STANDARD, seccomp._STRICT if level == "strict" else "")
    return [row.split()[0] for table in tables for row in table.split(",") if row.split() and row.split()[0] in NUMBERS]


@pytest.fixture
def folder() -> Iterator[Path]:
    with owned_folder() as path:
        yield path


@pytest.mark.parametrize("level", LEVELS)
def test_every_denied_call_answers_eperm(level: str) -> None:
    """With arguments that the kernel itself would answer otherwise, or do nothing for."""

    def body() -> dict[str, str]:
        install(level)
        return {name: syscall(name, *(2**64 - 1,) * 6) for name in denied_whole(level)}

    found = eval(confined(body))
    assert len(found) >= 50
    assert found == dict.fromkeys(found, "EPERM")


# What an ordinary user is granted, or refused for another reason than EPERM; arguments that do no harm.
GRANTED: dict[str, tuple[int, ...]] = {
    "unshare": (0,),
    "kcmp": (0, 0, 0, 0, 0),
    "ptrace": (0,),
    "io_uring_setup": (0, 0),
    "io_uring_enter": (2**32 - 1, 0, 0, 0, 0, 0),
    "io_uring_register": (2**32 - 1, 99, 0, 0),
    "add_key": (0, 0, 0, 0, 0),
    "request_key": (0, 0, 0, 0),
    "keyctl": (0, 2**32 - 1, 0),
    "process_vm_readv": (0, 0, 0, 0, 0, 1),
    "process_vm_writev": (0, 0, 0, 0, 0, 1),
    "process_madvise": (2**32 - 1, 0, 0, 0, 0),
    "pidfd_getfd": (2**32 - 1, 0, 0),
    "perf_event_open": (0, 0, 0, 0, 0),
    "setns": (2**32 - 1, 0),
    "adjtimex": (0,),
    "clock_adjtime": (0, 0),
    "mbind": (0, 0, 0, 0, 0, 0),
    "migrate_pages": (0, 0, 0, 0),
    "move_pages": (0, 0, 0, 0, 0, 0),
    "set_mempolicy": (0, 0, 0),
}


@pytest.mark.parametrize("call", GRANTED)
def test_it_is_the_filter_that_denies(call: str) -> None:
    def body() -> list[str]:
        before = syscall(call, *GRANTED[call])
        install("strict")
        return [before, syscall(call, *GRANTED[call])]

    before, after = eval(confined(body))
    assert before != "EPERM" and after == "EPERM"


def test_strict_denies_more_than_standard() -> None:
    def body() -> list[str]:
        return [
            str(install("standard")),
            syscall("mbind", *(0,) * 6),
            str(install("strict")),
            syscall("mbind", *(0,) * 6),
        ]

    counts = [str(program(level, MACHINE)[1]) for level in LEVELS]
    assert confined(body) == str([counts[0], "", counts[1], "EPERM"])


@pytest.mark.parametrize("level", LEVELS)
def test_clone_makes_processes_and_no_namespaces(level: str) -> None:
    flags = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)

    def body() -> list[str]:
        install(level)
        found = [syscall("clone", flag | signal.SIGCHLD, 0, 0, 0, 0) for flag in flags]
        return [*sorted(set(found)), syscall("clone3", 0, 0)]

    assert confined(body) == "['EPERM', 'ENOSYS']"


@pytest.mark.parametrize("level", LEVELS)
def test_no_input_is_pushed_into_a_terminal(level: str) -> None:
    def body() -> list[str]:
        os.setsid()
        _, terminal = pty.openpty()
        libc = ctypes.CDLL(None, use_errno=True)
        libc.ioctl(terminal, 0x540E, 0)  # TIOCSCTTY: now it is the controlling terminal

        def push(request: int) -> str:
            letter = ctypes.c_char(b"x")
            return syscall("ioctl", terminal, request, ctypes.addressof(letter))

        before = push(0x5412)
        install(level)
        return [before, push(0x5412), push(0xDEADBEEF << 32 | 0x5412), push(0x541C), str(os.isatty(terminal))]

    before, *after = eval(confined(body))
    assert before in ("", "EIO")  # EIO: the host does without (dev.tty.legacy_tiocsti = 0)
    assert after == ["EPERM", "EPERM", "EPERM", "True"]


@pytest.mark.parametrize("level", LEVELS)
def test_personality_is_asked_and_not_changed(level: str) -> None:
    def body() -> list[str]:
        install(level)
        return [syscall("personality", value) for value in (0xFFFFFFFF, 0, 0x40000, 8)]

    assert confined(body) == "['', '', 'EPERM', 'EPERM']"


@pytest.mark.parametrize("level", LEVELS)
def test_only_families_and_protocols_that_programs_need(level: str) -> None:
    wanted = [
        (socket.AF_UNIX, socket.SOCK_STREAM, 0),
        (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP),
        (socket.AF_INET, socket.SOCK_DGRAM, 0),
        (socket.AF_NETLINK, socket.SOCK_RAW, 0),
    ]
    unwanted = [(family, socket.SOCK_DGRAM, 0) for family in range(64) if family not in (1, 2, 10, 16)]
    unwanted += [(socket.AF_INET, socket.SOCK_STREAM, protocol) for protocol in (132, 256, MPTCP)]

    def body() -> list[list[str]]:
        install(level)
        return [
            [refusal(lambda one=one: socket.socket(*one).close()) for one in wanted],
            sorted({refusal(lambda one=one: socket.socket(*one).close()) for one in unwanted}),
            [refusal(socket.socketpair), syscall("socketpair", socket.AF_TIPC, socket.SOCK_STREAM, 0, 0)],
        ]

    assert confined(body) == str([[""] * len(wanted), ["EPERM"], ["", "EPERM"]])


def test_no_tcp_gets_past_landlock() -> None:
    """Landlock judges connect(2) of IPPROTO_TCP alone; the filter denies the ways around."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = server.getsockname()

        def plain() -> None:
            with socket.socket() as client:
                client.connect(address)

        def multipath() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP) as client:
                client.connect(address)

        def fast_open(send: Callable[[socket.socket], object]) -> str:
            with socket.socket() as client:
                return refusal(lambda: send(client))

        def body() -> list[str]:
            nothing = landlock.Access(read=SYSTEM, write=(), connect_ports=(), scope=True)
            landlock.restrict(nothing, least_abi=4)
            install("standard")
            return [
                refusal(plain),
                refusal(multipath),
                fast_open(lambda client: client.sendto(b"x", MSG_FASTOPEN, address)),
                fast_open(lambda client: client.sendmsg([b"x"], [], MSG_FASTOPEN, address)),
            ]

        assert confined(body) == str(["EACCES", "EPERM", "EPERM", "EPERM"])


@pytest.mark.parametrize("level", LEVELS)
def test_a_process_cannot_make_itself_readable(level: str) -> None:
    def body() -> list[object]:
        privileges.prctl(privileges.PR_SET_DUMPABLE, 0)
        install(level)
        libc = ctypes.CDLL(None, use_errno=True)
        made = libc.prctl(privileges.PR_SET_DUMPABLE, 1, 0, 0, 0)
        privileges.prctl(privileges.PR_SET_DUMPABLE, 0)
        return [made, libc.prctl(3, 0, 0, 0, 0)]

    assert confined(body) == "[-1, 0]"


def test_strict_makes_fifos_and_no_devices(folder: Path) -> None:
    def body() -> list[str]:
        install("strict")
        kinds = (stat.S_IFIFO, stat.S_IFREG, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
        # 0:0 is a whiteout, the one character device that anybody may make
        return [refusal(lambda kind=kind: os.mknod(folder / str(kind), kind | 0o600, 0)) for kind in kinds]

    assert confined(body) == str(["", "", "", "EPERM", "EPERM"])
    assert confined(lambda: refusal(lambda: os.mknod(folder / "whiteout", stat.S_IFCHR, 0))) == ""


def machine_code(code: bytes) -> int:
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(address)())


@on_x86
@pytest.mark.parametrize("level", LEVELS)
def test_the_numbers_of_another_architecture_kill(level: str) -> None:
    killed = f"killed by {signal.SIGSYS.value}"
    libc = ctypes.CDLL(None)

    def int80() -> int:
        return machine_code(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # getpid of i386

    assert confined(lambda: [install(level), int80()]) == killed
    for number in (0x40000000 | 39, 512, 521, 547):
        assert confined(lambda number=number: [install(level), libc.syscall(ctypes.c_long(number))]) == killed


def test_it_cannot_be_taken_away_and_is_inherited() -> None:
    def body() -> list[object]:
        install("standard")
        mode = ctypes.CDLL(None).prctl(21, 0, 0, 0, 0)  # PR_GET_SECCOMP
        started = subprocess.run(
            ["/usr/bin/env", "grep", "^Seccomp:", "/proc/self/status"], capture_output=True, check=True
        )
        tried = subprocess.run(
            [sys.executable, "-c", "import ctypes; print(ctypes.CDLL(None).unshare(0))"],
            capture_output=True,
            check=True,
        )
        return [mode, started.stdout.split()[1], tried.stdout.strip()]

    assert confined(body) == "[2, b'2', b'-1']"


def test_without_no_new_privs_the_kernel_refuses() -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                privileges.drop(NOBODY)
            with pytest.raises(PrivilegeError, match="cannot be installed: Permission denied"):
                install("standard")
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("answer", [seccomp._ALLOW, seccomp._NO_SUCH_CALL])
def test_a_filter_that_does_not_deny_is_found_out(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    code = [seccomp._load(0), seccomp._jump(0x15, NUMBERS["unshare"], 0, 1), answer, seccomp._ALLOW]
    monkeypatch.setattr(seccomp, "program", lambda *_: (b"".join(code), 1))
    found = confined(lambda: install("standard"))
    assert found == "PrivilegeError: the seccomp filter is installed and does not deny: this process must end"


def test_every_thread_is_filtered() -> None:
    """Denied in a thread that was there before."""
    code = """
import ctypes, sys, threading
from launcher import privileges
from launcher.task import seccomp
privileges.prctl(38, 1)
go, found = threading.Event(), []
def wait():
    go.wait()
    found.append(ctypes.CDLL(None).unshare(0))
thread = threading.Thread(target=wait)
thread.start()
seccomp.install("standard")
go.set()
thread.join()
print(found)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[-1]\n", "")


ORDINARY = {
    "subprocess": "import subprocess; assert subprocess.check_output('echo hi | cat', shell=True) == b'hi\\n'",
    "pipes and sessions": "import subprocess; subprocess.run(['true'], start_new_session=True, check=True)",
    "posix_spawn": "import os; assert os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)[1] == 0",
    "vfork": "import subprocess; assert subprocess._USE_VFORK; subprocess.run(['true'], close_fds=True, check=True)",
    "fork": "import os; pid = os.fork(); pid or os._exit(0); assert os.waitpid(pid, 0)[1] == 0",
    "threads": """
import concurrent.futures
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert sum(pool.map(abs, range(100))) == 4950
""",
    "processes": """
import concurrent.futures, multiprocessing
for method in ("fork", "spawn"):
    context = multiprocessing.get_context(method)
    if __name__ == "__main__":
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            assert list(pool.map(abs, (-1, -2))) == [1, 2]
""",
    "unix sockets": "import socket; a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'",
    "udp": """
import socket
a, b = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in "ab")
a.bind(("127.0.0.1", 0)); b.sendto(b"x", a.getsockname()); assert a.recv(1) == b"x"
""",
    "getaddrinfo": "import socket; assert socket.getaddrinfo('localhost', 80)",
    "interfaces": "import socket; assert socket.if_nameindex()",
    "sqlite": """
import sqlite3, tempfile
with tempfile.TemporaryDirectory() as folder:
    with sqlite3.connect(f"{folder}/db") as db:
        db.execute("pragma journal_mode=wal"); db.execute("create table t(a)"); db.execute("insert into t values (1)")
""",
    "asyncio": """
import asyncio
async def main():
    process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    assert await process.communicate(b"x") == (b"x", None)
    await asyncio.to_thread(print, end="")
asyncio.run(main())
""",
    "files": """
import fcntl, mmap, os, shutil, tempfile
with tempfile.TemporaryDirectory() as folder:
    with open(f"{folder}/a", "w+b") as file:
        file.write(b"x" * 4096); file.flush(); fcntl.flock(file, fcntl.LOCK_EX); mmap.mmap(file.fileno(), 4096).close()
    shutil.copy2(f"{folder}/a", f"{folder}/b"); shutil.copytree(folder, f"{folder}/c"); os.mkfifo(f"{folder}/fifo")
    os.replace(f"{folder}/b", f"{folder}/c/b"); os.truncate(f"{folder}/a", 1)
""",
    "memory": "import os; fd = os.memfd_create('x'); os.write(fd, b'x'); assert os.pread(fd, 1, 0) == b'x'",
    "tls, uuid, clock": "import ssl, uuid, time, locale; ssl.create_default_context(); uuid.uuid1(); time.tzset()",
    "priorities and limits": """
import os, resource, signal
os.nice(1); resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); os.sched_setaffinity(0, os.sched_getaffinity(0))
signal.setitimer(signal.ITIMER_REAL, 100)
""",
}
TCP_OF_ITS_OWN = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
    client.sendall(b"x"); taken = server.accept()[0]; assert taken.recv(1) == b"x"
"""


def run_confined(folder: Path, level: str, *, tcp: bool, code: str) -> str:
    def body() -> list[object]:
        access = landlock.Access(
            read=SYSTEM, write=(str(folder), "/dev/shm", *DEVICES), connect_ports=None if tcp else (), scope=True
        )
        os.chdir(folder)
        landlock.restrict(access, least_abi=1)
        install(level)
        script = folder / "script.py"
        script.write_text(code)
        done = subprocess.run(
            [sys.executable, str(script)],
            capture_output=True,
            text=True,
            check=False,
            env={"TMPDIR": str(folder), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        )
        return [done.returncode, done.stderr]

    return confined(body)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("what", ORDINARY)
def test_ordinary_python_notices_nothing(folder: Path, level: str, what: str) -> None:
    assert run_confined(folder, level, tcp=False, code=ORDINARY[what]) == "[0, '']"


@pytest.mark.parametrize("level", LEVELS)
def test_tcp_of_its_own_where_it_is_not_restricted(folder: Path, level: str) -> None:
    assert run_confined(folder, level, tcp=True, code=TCP_OF_ITS_OWN) == "[0, '']"
    assert "PermissionError" in run_confined(folder, level, tcp=False, code=TCP_OF_ITS_OWN)

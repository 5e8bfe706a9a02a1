"""Landlock holds for root too, whatever its capabilities: so nothing that is regained by mistake lifts it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from pathlib import Path

import pytest

from launcher import privileges
from launcher.privileges import Identity
from launcher.task.landlock import Access, restrict
from tests.forked import InChild, called, refusal

pytestmark = pytest.mark.root

NOBODY = Identity(65534, 65534, (65534,))
READ = ("/usr", "/bin", "/lib", "/lib64", "/proc")
MS_BIND = 0x1000


def access(*, read: tuple[str, ...] = READ, write: tuple[str, ...] = (), scope: bool = True) -> Access:
    present = tuple(path for path in read if os.path.exists(path))
    return Access(read=present, write=write, connect_ports=(), scope=scope)


def test_root_reads_and_writes_no_more_than_the_listed(in_child: InChild, tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("0123456789")

    def body() -> list[str]:
        restrict(access(write=(str(tmp_path / "in"),)), least_abi=6)
        return [
            refusal(lambda: open("/etc/shadow").close()),
            refusal(lambda: os.truncate(tmp_path / "out" / "file", 0)),
            refusal(lambda: os.unlink(tmp_path / "out" / "file")),
            refusal(lambda: os.mknod(tmp_path / "out" / "null", 0o020600, os.makedev(1, 3))),
            refusal(lambda: os.mknod(tmp_path / "in" / "null", 0o020600, os.makedev(1, 3))),
            refusal(lambda: os.truncate(tmp_path / "in" / "file", 0)),
        ]

    assert in_child(body) == str([*["EACCES"] * 4, "", ""])
    assert (tmp_path / "out" / "file").read_text() == "0123456789" and os.listdir(tmp_path / "out") == ["file"]


def test_root_mounts_nothing_over_what_is_listed(in_child: InChild, tmp_path: Path) -> None:
    """Also in a mount namespace of its own: what was listed could else be replaced by what was not."""

    def body() -> list[str]:
        inside = str(tmp_path).encode()
        before = called("unshare", 0x20000)
        restrict(access(write=(str(tmp_path),)), least_abi=6)
        return [
            before,
            called("mount", b"/etc", inside, None, ctypes.c_ulong(MS_BIND), None),
            called("mount", b"tmpfs", inside, b"tmpfs", ctypes.c_ulong(0), None),
            called("umount2", b"/proc", 2),
            called("chroot", inside),
        ]

    assert in_child(body) == str(["", "EPERM", "EPERM", "EPERM", ""])


def test_root_signals_and_traces_nothing_outside(in_child: InChild) -> None:
    outside = subprocess.Popen(["sleep", "600"])
    try:

        def body() -> list[str]:
            restrict(access(), least_abi=6)
            own = subprocess.Popen(["/bin/sleep", "600"])
            own.kill()
            return [
                refusal(lambda: os.kill(outside.pid, signal.SIGTERM)),
                refusal(lambda: os.kill(os.getppid(), 0)),
                called("ptrace", 16, outside.pid, None, None),
                refusal(lambda: open(f"/proc/{outside.pid}/mem", "rb").close()),
                str(own.wait()),
            ]

        assert in_child(body) == str(["EPERM", "EPERM", "EPERM", "EACCES", "-9"])
        assert outside.poll() is None
    finally:
        outside.kill()
        outside.wait()


def test_the_drop_and_its_proof_work_in_a_domain_and_before_one(in_child: InChild) -> None:
    def before() -> str:
        privileges.drop(NOBODY)
        privileges.harden(parent=os.getppid())
        return str(restrict(access(), least_abi=6) >= 6)

    def after() -> str:
        restrict(access(), least_abi=6)
        privileges.drop(NOBODY)
        return refusal(lambda: open("/etc/passwd").close())

    assert in_child(before) == "True"
    assert in_child(after) == "EACCES"


def test_the_launcher_can_still_end_what_is_confined() -> None:
    """The scope is one-way: from outside, signals arrive."""
    ready, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            privileges.drop(NOBODY)
            privileges.harden(parent=os.getppid())
            restrict(access(), least_abi=6)
            os.write(say, b"r")
            while True:
                signal.pause()
        finally:
            os._exit(1)
    assert os.read(ready, 1) == b"r"
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    os.close(ready)
    os.close(say)


def test_a_confined_process_dies_with_its_parent(in_child: InChild) -> None:
    held, hold = os.pipe()
    ready, say = os.pipe()

    def middle() -> str:
        if os.fork() == 0:
            privileges.drop(NOBODY)
            privileges.harden(parent=os.getppid())
            restrict(access(), least_abi=6)
            os.write(say, b"r")
            while True:
                signal.pause()
        os.read(ready, 1)
        return "middle ends"

    assert in_child(middle) == "middle ends"
    os.close(hold)
    assert os.read(held, 1) == b""  # its last holder is dead
    for fd in (held, ready, say):
        os.close(fd)

"""What was hashed is what is sealed, whatever happens to the file meanwhile or afterwards."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from integrity.digests import Digest
from integrity.errors import DigestMismatchError, FetchError, MalformedError
from notary import sealed
from notary.sealed import verify_and_seal

BYTES = b"import datetime\n" * 1000
LIMIT = 1 << 20


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "etl.py"
    path.write_bytes(BYTES)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert len(set(os.listdir("/proc/self/fd")) - before) == 0


def read(fd: int) -> bytes:
    return os.pread(fd, LIMIT, 0)


def test_the_copy_has_the_bytes_and_all_seals(archive: int) -> None:
    with verify_and_seal(archive, Digest.of(BYTES), max_bytes=LIMIT) as code:
        assert read(code.fd) == BYTES
        assert (code.digest, code.size) == (Digest.of(BYTES), len(BYTES))
        assert fcntl.fcntl(code.fd, fcntl.F_GET_SEALS) & sealed.SEALS == sealed.SEALS
        assert not os.get_inheritable(code.fd)


def test_the_descriptors_own_offset_does_not_matter(archive: int) -> None:
    os.lseek(archive, 17, os.SEEK_SET)
    with verify_and_seal(archive, Digest.of(BYTES), max_bytes=LIMIT) as code:
        assert read(code.fd) == BYTES


def test_several_chunks_are_one_file(tmp_path: Path) -> None:
    data = os.urandom(sealed._CHUNK_BYTES * 2 + 1)
    path = tmp_path / "big.zip"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        with verify_and_seal(fd, Digest.of(data), max_bytes=len(data)) as code:
            assert os.pread(code.fd, len(data) + 1, 0) == data
    finally:
        os.close(fd)


WAYS_TO_CHANGE = {
    "write": lambda fd: os.pwrite(fd, b"X", 0),
    "append": lambda fd: os.pwrite(fd, b"X", len(BYTES)),
    "shrink": lambda fd: os.ftruncate(fd, 1),
    "grow": lambda fd: os.ftruncate(fd, len(BYTES) + 1),
    "map": lambda fd: mmap.mmap(fd, 1, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
    "punch": lambda fd: os.posix_fallocate(fd, 0, len(BYTES) + 4096),
    "more seals": lambda fd: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
}


@pytest.mark.parametrize("way", WAYS_TO_CHANGE)
def test_nobody_can_change_it_root_included(archive: int, way: str) -> None:
    with verify_and_seal(archive, Digest.of(BYTES), max_bytes=LIMIT) as code:
        again = os.open(f"/proc/self/fd/{code.fd}", os.O_RDWR)
        try:
            for fd in (code.fd, again):
                with pytest.raises(PermissionError) as raised:
                    WAYS_TO_CHANGE[way](fd)
                assert raised.value.errno == errno.EPERM
        finally:
            os.close(again)
        assert read(code.fd) == BYTES


def test_changing_the_file_afterwards_changes_nothing(archive: int) -> None:
    with verify_and_seal(archive, Digest.of(BYTES), max_bytes=LIMIT) as code:
        os.pwrite(archive, b"evil", 0)
        os.ftruncate(archive, 4)
        assert read(code.fd) == BYTES


def test_other_bytes_are_a_mismatch(archive: int) -> None:
    os.pwrite(archive, b"J", 0)
    with pytest.raises(DigestMismatchError, match="the archive is sha512:"):
        verify_and_seal(archive, Digest.of(BYTES), max_bytes=LIMIT)


def test_every_flipped_bit_is_a_mismatch(tmp_path: Path) -> None:
    small = b"import x\n"
    path = tmp_path / "small.py"
    path.write_bytes(small)
    fd = os.open(path, os.O_RDWR)
    try:
        for bit in range(len(small) * 8):
            os.pwrite(fd, bytes([small[bit // 8] ^ (1 << bit % 8)]), bit // 8)
            with pytest.raises(DigestMismatchError):
                verify_and_seal(fd, Digest.of(small), max_bytes=LIMIT)
            os.pwrite(fd, small, 0)
        verify_and_seal(fd, Digest.of(small), max_bytes=LIMIT).__exit__()
    finally:
        os.close(fd)


class During:
    """`os.pread` as the module calls it, with something done after the first chunk."""

    def __init__(self, act: object) -> None:
        self.real, self.act, self.calls = os.pread, act, 0

    def __call__(self, fd: int, size: int, offset: int) -> bytes:
        found = self.real(fd, size, offset)
        self.calls += 1
        if self.calls == 1:
            self.act()  # type: ignore[operator]
        return found


def test_a_swap_during_the_read_is_refused(archive: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first half is good, then the file becomes another: the hash is of what was copied."""
    evil = b"E" * len(BYTES)
    monkeypatch.setattr(sealed, "_CHUNK_BYTES", len(BYTES) // 2)
    monkeypatch.setattr(os, "pread", During(lambda: os.pwrite(archive, evil, 0)))
    with pytest.raises(DigestMismatchError):
        verify_and_seal(archive, Digest.of(BYTES), max_bytes=LIMIT)


def test_a_swap_behind_the_reader_is_harmless(archive: int, monkeypatch: pytest.MonkeyPatch) -> None:
    half = len(BYTES) // 2
    monkeypatch.setattr(sealed, "_CHUNK_BYTES", half)
    monkeypatch.setattr(os, "pread", During(lambda: os.pwrite(archive, b"E" * half, 0)))
    with verify_and_seal(archive, Digest.of(BYTES), max_bytes=LIMIT) as code:
        monkeypatch.undo()
        assert read(code.fd) == BYTES


def test_a_file_that_grows_over_the_limit_while_read_is_refused(archive: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pread", During(lambda: os.pwrite(archive, b"G" * LIMIT, len(BYTES))))
    with pytest.raises(MalformedError, match="over the limit"):
        verify_and_seal(archive, Digest.of(BYTES), max_bytes=len(BYTES))


def test_a_file_that_grows_within_the_limit_is_a_mismatch(archive: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pread", During(lambda: os.pwrite(archive, b"G", len(BYTES))))
    with pytest.raises(DigestMismatchError):
        verify_and_seal(archive, Digest.of(BYTES), max_bytes=LIMIT)


def test_a_file_that_shrinks_is_a_mismatch(archive: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "_CHUNK_BYTES", 100)
    monkeypatch.setattr(os, "pread", During(lambda: os.ftruncate(archive, 100)))
    with pytest.raises(DigestMismatchError):
        verify_and_seal(archive, Digest.of(BYTES), max_bytes=LIMIT)


def test_one_byte_over_the_limit_is_refused(archive: int) -> None:
    verify_and_seal(archive, Digest.of(BYTES), max_bytes=len(BYTES)).__exit__()
    with pytest.raises(MalformedError, match="limit"):
        verify_and_seal(archive, Digest.of(BYTES), max_bytes=len(BYTES) - 1)


def test_an_empty_file_is_refused(archive: int) -> None:
    os.ftruncate(archive, 0)
    with pytest.raises(MalformedError):
        verify_and_seal(archive, Digest.of(b""), max_bytes=LIMIT)


def test_what_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    pipe = os.pipe()
    fds = [
        os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY),
        os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK),
        os.open("/dev/zero", os.O_RDONLY),
        *pipe,
    ]
    try:
        for fd in fds:
            with pytest.raises(MalformedError, match="regular file"):
                verify_and_seal(fd, Digest.of(BYTES), max_bytes=LIMIT)
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_PATH])
def test_a_descriptor_that_cannot_be_read_is_refused(tmp_path: Path, flags: int) -> None:
    path = tmp_path / "etl.py"
    path.write_bytes(BYTES)
    fd = os.open(path, flags)
    try:
        with pytest.raises(FetchError, match="cannot be read"):
            verify_and_seal(fd, Digest.of(BYTES), max_bytes=LIMIT)
    finally:
        os.close(fd)

"""Kept code is used for the very sources, archive, user and interpreter that it was made for, and for nothing else."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import marshal
import os
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

import pytest

from integrity.digests import Digest
from launcher.task import compiling, loader
from notary.sealed import SEALS
from vocabulary.archives import ArchiveMember

ARCHIVE = Digest.of(b"the archive")
SOURCE = b"def outer():\n    def inner():\n        return 1 / 0\n    return inner\nVALUE = 'compiled'\n"
BROKEN = b"def f(:\n"
MEMBERS = [
    ArchiveMember(name="a.py", data=SOURCE),
    ArchiveMember(name="pkg/broken.py", data=BROKEN),
    ArchiveMember(name="pkg/__init__.py", data=b""),
    ArchiveMember(name="pkg/a.txt", data=b"x = 1"),
]
PATH = "/root-of-it/a.py"


def key(source: bytes) -> bytes:
    return hashlib.sha512(source).digest()


@pytest.fixture
def memfd() -> Iterator[Callable[..., int]]:
    opened = []

    def make(data: bytes, seals: int = SEALS) -> int:
        fd = os.memfd_create("code", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        opened.append(fd)
        os.write(fd, data)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return fd

    yield make
    for fd in opened:
        os.close(fd)


@pytest.fixture(autouse=True)
def nothing_is_expected_afterwards() -> Iterator[None]:
    yield
    loader._marshalled.clear()
    loader._compiled.clear()


def names_of(code: CodeType) -> set[str]:
    within = (names_of(one) for one in code.co_consts if isinstance(one, CodeType))
    return {code.co_filename}.union(*within)


def test_what_was_written_is_read_back_without_what_does_not_compile(memfd: Callable[..., int]) -> None:
    codes = compiling.read(memfd(compiling.compiled(MEMBERS, ARCHIVE)), ARCHIVE)
    assert set(codes) == {key(SOURCE), key(b"")}
    found: dict[str, Any] = {}
    exec(marshal.loads(codes[key(SOURCE)]), found)
    assert found["VALUE"] == "compiled"


def test_it_is_the_same_code_under_the_members_own_path(memfd: Callable[..., int]) -> None:
    loader.expect(compiling.read(memfd(compiling.compiled(MEMBERS, ARCHIVE)), ARCHIVE))
    code = loader.MemberLoader("a", PATH, SOURCE, package=False).get_code("a")
    assert code == compile(SOURCE, PATH, "exec", dont_inherit=True)
    assert names_of(code) == {PATH}
    assert loader.spent_ns["compile"] == 0 and loader.spent_ns["unmarshal"] > 0


def test_two_members_of_one_content_have_each_its_path(memfd: Callable[..., int]) -> None:
    loader.expect(compiling.read(memfd(compiling.compiled(MEMBERS, ARCHIVE)), ARCHIVE))
    for path in (PATH, "/root-of-it/pkg/again.py"):
        assert names_of(loader.MemberLoader("a", path, SOURCE, package=False).get_code("a")) == {path}


def test_a_source_that_differs_by_a_byte_is_compiled(memfd: Callable[..., int]) -> None:
    loader.expect(compiling.read(memfd(compiling.compiled(MEMBERS, ARCHIVE)), ARCHIVE))
    loader.compile_ahead(PATH, SOURCE.replace(b"'compiled'", b"'Compiled'"))
    assert "Compiled" in loader._compiled[PATH].co_consts
    assert loader.spent_ns["compile"] > 0 and loader.spent_ns["unmarshal"] == 0


def test_a_source_that_does_not_compile_raises_as_without(memfd: Callable[..., int]) -> None:
    loader.expect(compiling.read(memfd(compiling.compiled(MEMBERS, ARCHIVE)), ARCHIVE))
    with pytest.raises(SyntaxError) as raised:
        loader.compile_ahead("/root-of-it/pkg/broken.py", BROKEN)
    assert (raised.value.filename, raised.value.lineno) == ("/root-of-it/pkg/broken.py", 1)


def test_what_was_made_for_another_archive_user_or_interpreter_is_not_read(
    memfd: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = memfd(compiling.compiled(MEMBERS, ARCHIVE))
    assert compiling.read(fd, ARCHIVE)
    assert compiling.read(fd, Digest.of(b"another archive")) == {}
    with monkeypatch.context() as other:
        other.setattr(os, "getuid", lambda: 4242)
        assert compiling.read(fd, ARCHIVE) == {}
    with monkeypatch.context() as other:
        other.setattr(importlib.util, "MAGIC_NUMBER", b"\x00\x0d\r\n")
        assert compiling.read(fd, ARCHIVE) == {}


def test_no_flipped_bit_and_no_piece_is_read(memfd: Callable[..., int]) -> None:
    good = compiling.compiled(MEMBERS[2:], ARCHIVE)
    for position in range(len(good)):
        changed = bytearray(good)
        changed[position] ^= 1 << position % 8
        assert compiling.read(memfd(bytes(changed)), ARCHIVE) == {}
        assert compiling.read(memfd(good[:position]), ARCHIVE) == {}
    assert compiling.read(memfd(good + b"\0"), ARCHIVE) == {}
    assert compiling.read(memfd(good), ARCHIVE)


@pytest.mark.parametrize("missing", [fcntl.F_SEAL_SEAL, fcntl.F_SEAL_WRITE, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SHRINK])
def test_what_could_still_be_written_is_not_read(memfd: Callable[..., int], missing: int) -> None:
    assert compiling.read(memfd(compiling.compiled(MEMBERS, ARCHIVE), SEALS & ~missing), ARCHIVE) == {}

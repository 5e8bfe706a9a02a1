"""Code is lent for reading, one descriptor each; what was used least goes first; what was tried in vain is not tried again."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import pytest

from integrity.digests import Digest
from notary import codecache
from notary.codecache import LEAST_SOURCE_BYTES, CodeCache
from notary.sealed import SEALS
from vocabulary.manifest import Manifest, Member


@pytest.fixture
def cache() -> Iterator[CodeCache]:
    before = set(os.listdir("/proc/self/fd"))
    cache = CodeCache()
    yield cache
    cache.close()
    assert set(os.listdir("/proc/self/fd")) == before


def digest(number: int) -> Digest:
    return Digest.of(bytes([number]))


def keep(cache: CodeCache, number: int, size: int = 10) -> None:
    fd = os.memfd_create("code", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, bytes([number]) * size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    cache._keep(digest(number), fd, size)


def kept(cache: CodeCache) -> list[int]:
    return [number for number in range(10) if digest(number) in cache._kept]


def manifest(number: int, *members: tuple[str, int]) -> Manifest:
    return Manifest(
        archive="a.zip",
        number=1,
        digest=digest(number),
        size=1000,
        members=tuple(Member(name=name, size=size, digest=digest(0)) for name, size in sorted(members)),
        owner="o",
        group="o",
        submitted_by="o",
        created_at=1,
        task_check="archive",
        airflow_version="3",
        dags=(),
    )


def test_each_borrower_has_a_descriptor_of_its_own_for_reading(cache: CodeCache) -> None:
    keep(cache, 1)
    with cache.lend(digest(1)) as (one,), cache.lend(digest(1)) as (other,):
        os.lseek(one, 5, os.SEEK_SET)
        assert (os.read(one, 100), os.read(other, 100)) == (b"\1" * 5, b"\1" * 10)
        assert fcntl.fcntl(one, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        assert not os.get_inheritable(one)
        with pytest.raises(OSError):
            os.write(one, b"x")


def test_of_another_digest_there_is_none(cache: CodeCache) -> None:
    keep(cache, 1)
    with cache.lend(digest(2)) as none:
        assert none == []


def test_what_is_lent_outlives_its_entry(cache: CodeCache) -> None:
    keep(cache, 1)
    with cache.lend(digest(1)) as (fd,):
        cache.close()
        assert os.pread(fd, 100, 0) == b"\1" * 10


def test_the_least_recently_used_goes_when_there_are_too_many(
    cache: CodeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codecache, "MAX_ENTRIES", 3)
    for number in (1, 2, 3):
        keep(cache, number)
    with cache.lend(digest(1)):
        pass
    keep(cache, 4)
    assert kept(cache) == [1, 3, 4]


def test_and_when_they_are_too_large_together(cache: CodeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecache, "MAX_BYTES", 100)
    for number in (1, 2, 3):
        keep(cache, number, size=40)
    assert kept(cache) == [2, 3]
    keep(cache, 4, size=90)
    assert kept(cache) == [4]


def test_only_what_takes_a_while_to_compile_is_wanted(cache: CodeCache) -> None:
    half = LEAST_SOURCE_BYTES // 2
    assert cache.wants(manifest(1, ("a.py", half), ("b.py", half)))
    assert not cache.wants(manifest(1, ("a.py", half), ("b.py", half - 1)))
    assert not cache.wants(manifest(1, ("a.py", half), ("b.txt", half)))


def test_once_is_enough_also_in_vain(cache: CodeCache) -> None:
    large = ("a.py", LEAST_SOURCE_BYTES)
    keep(cache, 1)
    cache._keep(digest(2), -1, 0)
    assert not cache.wants(manifest(1, large)) and not cache.wants(manifest(2, large))
    assert cache.wants(manifest(3, large))
    with cache.lend(digest(2)) as none:
        assert none == []

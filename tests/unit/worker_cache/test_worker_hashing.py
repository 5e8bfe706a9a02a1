"""Many files hashed by several processes: the same answers, in order, as one by one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from integrity.digests import Digest
from worker_cache.hashing import BATCH, Hashed, hash_files


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("processes", [1, 2, None])
def test_every_file_has_its_digest_in_order(tmp_path: Path, folder: int, processes: int | None) -> None:
    names = [f"{number:04}" for number in range(2 * BATCH + 7)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode() * (1 + int(name) % 9))
    found = list(hash_files(folder, names, processes=processes))
    assert [one.path for one in found] == names
    for one in found:
        data = (tmp_path / one.path).read_bytes()
        assert one == Hashed(one.path, Digest.of(data), len(data))


def test_what_is_no_file_is_said_and_no_link_is_followed(tmp_path: Path, folder: int) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    found = {one.path: one for one in hash_files(folder, ["file", "folder", "gone", "link", "pipe"])}
    assert found["file"].digest == Digest.of(b"x")
    assert found["gone"] == Hashed("gone", None, 0)
    assert found["link"].digest is None and found["link"].trouble
    for name in ("folder", "pipe"):
        assert found[name].digest is None and not found[name].is_file


def test_no_file_is_no_process(folder: int) -> None:
    assert list(hash_files(folder, [])) == []

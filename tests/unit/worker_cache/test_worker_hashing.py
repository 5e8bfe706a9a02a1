"""Many files hashed by several processes: the same answers, in order, as one by one."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from integrity.digests import Digest
from worker_cache.hashing import BATCH, FEWEST, Hashed, hash_files


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("processes", [1, 2, None])
def test_every_file_has_its_digest_in_order(tmp_path: Path, folder: int, processes: int | None) -> None:
    names = [f"{number:04}" for number in range(2 * FEWEST * BATCH + 7)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode() * (1 + int(name) * 20 % 9000))
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


def many(tmp_path: Path, batches: int) -> list[str]:
    names = [f"{number:05}" for number in range(batches * BATCH)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    return names


def test_few_files_are_worth_no_process(tmp_path: Path, folder: int) -> None:
    found = hash_files(folder, many(tmp_path, FEWEST), processes=2)
    next(found)
    assert multiprocessing.active_children() == []
    assert len(list(found)) == FEWEST * BATCH - 1


def test_the_work_is_shared_and_whoever_stops_early_leaves_no_process(tmp_path: Path, folder: int) -> None:
    names = many(tmp_path, 2 * FEWEST)
    found = hash_files(folder, names, processes=2)
    next(found)
    (other,) = multiprocessing.active_children()
    found.close()  # type: ignore[attr-defined]
    assert not other.is_alive() and multiprocessing.active_children() == []


def test_a_process_that_died_is_no_answer(tmp_path: Path, folder: int) -> None:
    """Also when there are more of them, none of which keeps the other's end open."""
    names = many(tmp_path, 4 * FEWEST)
    found = hash_files(folder, names, processes=4)
    next(found)
    for other in multiprocessing.active_children():
        other.kill()
        other.join()
    with pytest.raises(RuntimeError, match="was killed"):
        for _ in found:
            pass
    assert multiprocessing.active_children() == []

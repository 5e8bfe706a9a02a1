"""Releases as folders: made from verified bytes, looked through each time, nobody's to write, another one for other owners."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from integrity.digests import Digest
from integrity.errors import DigestMismatchError, FetchError, SettingsError
from vocabulary import zipwriter
from vocabulary.logview import LoggedArchive, LoggedRelease
from worker_cache.trees import Trees

MIB = 1024 * 1024
Cached = Callable[[bytes], int]
FILES = {
    "dag.py": b"import etl.steps\n",
    "etl/__init__.py": b"",
    "etl/steps.py": b"x = 1\n",
    "etl/q.sql": b"select 1\n",
}
PACKED = zipwriter.pack(FILES)
OWNED = LoggedArchive(owner="ann", group="etl", mode=0o750)


def release(name: str, data: bytes, number: int = 1) -> LoggedRelease:
    digest = Digest.of(data)
    return LoggedRelease(
        archive=name, number=number, digest=digest, size=len(data), manifest=digest, index=1, waits=False
    )


@pytest.fixture
def cached(tmp_path: Path) -> Iterator[Cached]:
    def make(data: bytes) -> int:
        path = tmp_path / Digest.of(data).hex[:16]
        path.write_bytes(data)
        opened.append(os.open(path, os.O_RDONLY))
        return opened[-1]

    opened: list[int] = []
    yield make
    for fd in opened:
        os.close(fd)


def there(folder: str) -> dict[str, bytes]:
    found = {}
    for top, _, files in os.walk(folder):
        for name in files:
            path = os.path.join(top, name)
            found[os.path.relpath(path, folder)] = Path(path).read_bytes()
    return found


def test_a_folder_has_exactly_the_files_and_nobody_can_write_them(tmp_path: Path, cached: Cached) -> None:
    trees = Trees(str(tmp_path / "trees"), max_bytes=MIB)
    folder = trees.folder(release("etl.zip", PACKED), OWNED, cached(PACKED))
    assert there(folder) == FILES
    assert stat.S_IMODE(os.stat(trees.path).st_mode) == 0o711
    modes = {
        stat.S_IMODE(os.lstat(os.path.join(top, name)).st_mode) for top, _, files in os.walk(folder) for name in files
    }
    assert modes == {0o444}
    assert {stat.S_IMODE(os.stat(top).st_mode) for top, _, _ in os.walk(folder)} == {0o555}


def test_a_single_source_is_a_folder_of_one(tmp_path: Path, cached: Cached) -> None:
    data = b"x = 1\n"
    folder = Trees(str(tmp_path / "trees"), max_bytes=MIB).folder(release("etl.py", data), OWNED, cached(data))
    assert there(folder) == {"etl.py": data}


def test_the_same_release_has_the_same_folder_until_it_changes_hands(tmp_path: Path, cached: Cached) -> None:
    trees = Trees(str(tmp_path / "trees"), max_bytes=MIB)
    wanted, fd = release("etl.zip", PACKED), cached(PACKED)
    first = trees.folder(wanted, OWNED, fd)
    assert trees.folder(wanted, OWNED, fd) == first
    other = trees.folder(wanted, replace(OWNED, mode=0o700), fd)
    assert other != first
    assert not os.path.exists(first)


@pytest.mark.parametrize("how", ["changed", "added", "removed", "linked", "emptied"])
def test_a_folder_that_was_changed_is_made_anew(tmp_path: Path, cached: Cached, how: str) -> None:
    trees = Trees(str(tmp_path / "trees"), max_bytes=MIB)
    wanted, fd = release("etl.zip", PACKED), cached(PACKED)
    first = Path(trees.folder(wanted, OWNED, fd))
    first.chmod(0o755)
    dag = first / "dag.py"
    dag.chmod(0o644)
    if how == "changed":
        dag.write_bytes(b"import evil.steps\n")
    elif how == "added":
        (first / "sitecustomize.py").write_bytes(b"")
    elif how == "emptied":
        dag.write_bytes(b"")
    else:
        dag.unlink()
        if how == "linked":
            (tmp_path / "dag.py").write_bytes(FILES["dag.py"])
            dag.symlink_to(tmp_path / "dag.py")
    second = trees.folder(wanted, OWNED, fd)
    assert second != str(first)
    assert there(second) == FILES
    assert not first.exists()


@pytest.mark.parametrize("whose", ["one", "all"])
def test_a_folder_that_was_removed_is_made_anew(tmp_path: Path, cached: Cached, whose: str) -> None:
    trees = Trees(str(tmp_path / "trees"), max_bytes=MIB)
    wanted, fd = release("etl.zip", PACKED), cached(PACKED)
    first = trees.folder(wanted, OWNED, fd)
    for top, _, _ in os.walk(first):
        os.chmod(top, 0o755)
    shutil.rmtree(first if whose == "one" else trees.path)
    second = trees.folder(wanted, OWNED, fd)
    assert second != first
    assert there(second) == FILES
    assert stat.S_IMODE(os.stat(trees.path).st_mode) == 0o711


def test_a_link_in_place_of_all_folders_is_not_followed(tmp_path: Path, cached: Cached) -> None:
    trees = Trees(str(tmp_path / "trees"), max_bytes=MIB)
    (tmp_path / "elsewhere").mkdir()
    os.rmdir(trees.path)
    os.symlink(tmp_path / "elsewhere", trees.path)
    with pytest.raises(SettingsError, match="is to belong to the agent's account alone"):
        trees.folder(release("etl.zip", PACKED), OWNED, cached(PACKED))
    assert os.listdir(tmp_path / "elsewhere") == []


def test_wrong_bytes_make_no_folder(tmp_path: Path, cached: Cached) -> None:
    trees = Trees(str(tmp_path / "trees"), max_bytes=MIB)
    with pytest.raises(DigestMismatchError):
        trees.folder(release("etl.zip", PACKED), OWNED, cached(zipwriter.pack({"dag.py": b"import evil\n"})))
    assert os.listdir(trees.path) == []


def test_what_an_earlier_agent_left_is_removed_and_nothing_through_a_link(tmp_path: Path, cached: Cached) -> None:
    trees = Trees(str(tmp_path / "trees"), max_bytes=MIB)
    trees.folder(release("etl.zip", PACKED), OWNED, cached(PACKED))
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_bytes(b"x")
    os.symlink(kept, tmp_path / "trees" / "link")
    assert os.listdir(Trees(str(tmp_path / "trees"), max_bytes=MIB).path) == []
    assert (kept / "file").read_bytes() == b"x"


def test_the_least_recently_asked_makes_room(tmp_path: Path, cached: Cached) -> None:
    sources = [b"x = %d\n" % n + b"#" * 400 for n in range(3)]
    trees = Trees(str(tmp_path / "trees"), max_bytes=1000)
    asked = [(release(f"d{n}.py", data), cached(data)) for n, data in enumerate(sources)]
    first, second = (trees.folder(one, OWNED, fd) for one, fd in asked[:2])
    trees.folder(asked[0][0], OWNED, asked[0][1])
    third = trees.folder(asked[2][0], OWNED, asked[2][1])
    assert [os.path.exists(path) for path in (first, second, third)] == [True, False, True]


def test_more_than_there_may_be_is_refused_whole(tmp_path: Path, cached: Cached) -> None:
    trees = Trees(str(tmp_path / "trees"), max_bytes=10)
    with pytest.raises(FetchError, match="max_trees_mib"):
        trees.folder(release("etl.zip", PACKED), OWNED, cached(PACKED))
    assert os.listdir(trees.path) == []

"""Modules come from the members and from nowhere else; the private copy is read-only and goes away."""

from __future__ import annotations

import importlib.machinery
import os
import stat
from pathlib import Path

import pytest

from integrity.errors import UnsafeArchiveError
from launcher.task import loader
from launcher.task.files import PrivateCopy, fresh_path
from launcher.task.loader import MemberFinder, module_name
from vocabulary.archives import Archive, ArchiveMember

FILES = {
    "top.py": b"x = 1",
    "pkg/__init__.py": b"",
    "pkg/mod.py": b"y = 2",
    "space/deep/z.py": b"z = 3",
    "pkg/data.txt": b"d",
}
FOLDERS = frozenset({"pkg", "space", "space/deep"})


def finder(folder: str = "") -> MemberFinder:
    return MemberFinder(FILES, FOLDERS, "/root-of-it", folder)


@pytest.mark.parametrize(
    ("folder", "name", "origin", "package"),
    [
        ("", "top", "/root-of-it/top.py", False),
        ("", "pkg", "/root-of-it/pkg/__init__.py", True),
        ("pkg", "pkg.mod", "/root-of-it/pkg/mod.py", False),
        ("space/deep", "space.deep.z", "/root-of-it/space/deep/z.py", False),
    ],
)
def test_a_member_is_found(folder: str, name: str, origin: str, package: bool) -> None:
    spec = finder(folder).find_spec(name)
    assert spec is not None and spec.origin == origin
    assert (spec.submodule_search_locations is not None) is package


def test_a_folder_without_init_is_a_namespace_package() -> None:
    spec = finder().find_spec("space")
    assert spec is not None and spec.loader is None
    assert spec.submodule_search_locations == ["/root-of-it/space"]


@pytest.mark.parametrize(("folder", "name"), [("", "data"), ("", "nothing"), ("pkg", "pkg.data"), ("pkg", "pkg.top")])
def test_what_is_no_module_of_the_folder_is_not_found(folder: str, name: str) -> None:
    assert finder(folder).find_spec(name) is None


def test_modules_are_listed_for_pkgutil() -> None:
    assert list(finder().iter_modules()) == [("pkg", True), ("top", False)]
    assert list(finder("pkg").iter_modules("pkg.")) == [("pkg.mod", False)]


@pytest.mark.parametrize(("stem", "name"), [("etl", "etl"), ("my-dag.v2", "dag_my_dag_v2"), ("7days", "dag_7days")])
def test_a_lone_file_is_a_module_of_its_stem(stem: str, name: str) -> None:
    assert module_name(stem) == name


def test_a_module_of_an_installed_name_is_refused() -> None:
    assert importlib.machinery.PathFinder.find_spec("pytest") is not None
    with pytest.raises(UnsafeArchiveError, match="rename it"):
        loader.refuse_shadowing([("fine_name", "fine_name.py"), ("pytest", "pytest.py")])


def test_the_copy_is_private_read_only_and_removed(tmp_path: Path) -> None:
    members = tuple(ArchiveMember(name=name, data=data) for name, data in sorted(FILES.items()))
    copy = PrivateCopy(Archive(name="a.zip", kind="zip", members=members), str(tmp_path / "copy"))
    try:
        for name, data in FILES.items():
            path = os.path.join(copy.root, name)
            with open(path, "rb") as file:
                assert file.read() == data
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o400
        for folder in ("", "pkg", "space", "space/deep"):
            assert stat.S_IMODE(os.stat(os.path.join(copy.root, folder)).st_mode) == 0o500
    finally:
        copy.remove()
    assert not os.path.exists(copy.root)
    copy.remove()


def test_a_copy_is_not_made_where_something_is(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        PrivateCopy(Archive(name="a.zip", kind="zip", members=()), str(tmp_path))
    assert fresh_path() != fresh_path()

"""What "read alike" means: `zipfile` extracts, and `zipimport` imports, exactly what `vocabulary.archives` listed."""

from __future__ import annotations

import io
import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import zipfile
import zipimport

from tests.vectors.archives.read import short
from vocabulary import archives

READER = pathlib.Path(__file__).parents[2] / "vectors" / "archives" / "read.py"


def agree(archive: archives.Archive, data: bytes, folder: pathlib.Path) -> None:
    """`zipfile` lists and extracts exactly our members, `zipimport` returns the same bytes and finds the same modules."""
    ours = {member.name: member.data for member in archive.members}
    with zipfile.ZipFile(io.BytesIO(data)) as read:
        assert read.testzip() is None
        assert sorted(name for name in read.namelist() if not name.endswith("/")) == list(ours)
        read.extractall(folder / "out")
    found = [path for path in (folder / "out").rglob("*") if not path.is_dir()]
    assert {path.relative_to(folder / "out").as_posix(): path.read_bytes() for path in found} == ours
    assert all(stat.S_ISREG(path.lstat().st_mode) for path in found)
    (folder / "x.zip").write_bytes(data)
    importer = zipimport.zipimporter(str(folder / "x.zip"))
    importer.invalidate_caches()
    assert {name: importer.get_data(name) for name in ours} == ours
    listed = importer._get_files() if hasattr(importer, "_get_files") else importer._files
    assert {name for name in listed if not name.endswith("/")} == set(ours)
    tops = {
        name.removesuffix("/__init__.py") for name in ours if name.count("/") == 1 and name.endswith("/__init__.py")
    }
    modules = {name.removesuffix(".py") for name in ours if "/" not in name and name.endswith(".py")}
    for name in tops | modules:
        assert importer.is_package(name) is (name in tops)  # a package goes first; an error when it is not found
        source = ours[f"{name}/__init__.py" if name in tops else f"{name}.py"]
        assert importer.get_source(name) == source.decode().replace("\r\n", "\n")


def other_pythons() -> list[str]:
    """Interpreters of another version, by their usual names on PATH or listed in DAGSEAL_TEST_PYTHONS."""
    named = [shutil.which(f"python3.{minor}") for minor in range(9, 20) if minor != sys.version_info.minor]
    listed = [*named, *os.environ.get("DAGSEAL_TEST_PYTHONS", "").split(os.pathsep)]
    return [path for path in listed if path and works(path)]


def works(python: str) -> bool:
    return subprocess.run([python, "-c", "import zlib"], capture_output=True, check=False).returncode == 0


def readings(python: str, *paths: pathlib.Path) -> list[dict[str, object]]:
    """How that interpreter's `zipfile` and `zipimport` read each file."""
    made = subprocess.run(
        [python, str(READER), *map(str, paths)], capture_output=True, text=True, check=True, timeout=60
    )
    said = json.loads(made.stdout)
    return [said[str(path)] for path in paths]


def expected(archive: archives.Archive) -> dict[str, str]:
    """A reading of ours in the same words; folders' entries have no content."""
    return {member.name: short(member.data) for member in archive.members}

"""Who a local account is, and what it may read: the file of readers, and the rule."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from integrity.errors import SettingsError
from vocabulary.logview import LoggedArchive
from worker_cache import readers
from worker_cache.readers import NOBODY, Reader

ARCHIVE = LoggedArchive(owner="ann", group="etl", mode=0o640)


def written(folder: Path, text: str, mode: int = 0o644) -> str:
    path = folder / "readers.toml"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("reader", "mode", "may"),
    [
        (Reader(principal="ann"), 0o400, True),
        (Reader(principal="ann", groups=frozenset(["etl"])), 0o077, False),  # an owner whose own bits are off
        (Reader(principal="bob", groups=frozenset(["etl"])), 0o040, True),
        (Reader(principal="bob", groups=frozenset(["etl"])), 0o707, False),
        (Reader(principal="bob", groups=frozenset(["ml"])), 0o004, True),
        (Reader(principal="bob"), 0o770, False),
        (NOBODY, 0o770, False),
        (NOBODY, 0o774, True),
    ],
)
def test_the_first_that_fits_decides(reader: Reader, mode: int, may: bool) -> None:
    assert reader.may_read(LoggedArchive(owner="ann", group="etl", mode=mode)) is may


def test_an_archive_whose_mode_is_not_known_is_nobodys() -> None:
    assert not Reader(principal="ann").may_read(LoggedArchive(owner="ann"))
    assert not NOBODY.may_read(LoggedArchive())


def test_accounts_are_found_by_name(tmp_path: Path) -> None:
    found = readers.load(written(tmp_path, '[root]\nprincipal = "ops"\ngroups = ["etl"]\n[nobody]\nprincipal = "n"\n'))
    assert found[0] == Reader(principal="ops", groups=frozenset(["etl"]))
    assert len(found) == 2


@pytest.mark.parametrize(
    "text",
    [
        "[0]\nprincipal = 'x'",
        "['#0']\nprincipal = 'x'",
        "[no-such-account-here]\nprincipal = 'x'",
        "[root]\n",
        "[root]\nprincipal = ''",
        "[root]\nprincipal = 'X'",
        "[root]\nprincipal = 1",
        "[root]\nprincipal = 'x'\ngroups = 'etl'",
        "[root]\nprincipal = 'x'\ngroups = ['']",
        "[root]\nprincipal = 'x'\nadmin = true",
        "root = 'x'",
        "not toml",
    ],
)
def test_what_is_not_clear_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError):
        readers.load(written(tmp_path, text))


def test_a_file_that_others_could_write_is_refused(tmp_path: Path) -> None:
    good = '[root]\nprincipal = "ops"\n'
    for mode in (0o664, 0o646):
        with pytest.raises(SettingsError, match="chmod"):
            readers.load(written(tmp_path, good, mode))
    path = written(tmp_path, good)
    os.symlink(path, tmp_path / "link")
    with pytest.raises(SettingsError):
        readers.load(str(tmp_path / "link"))
    with pytest.raises(SettingsError):
        readers.load(str(tmp_path / "missing"))

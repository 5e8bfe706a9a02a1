"""The agent's own key on disk: private, whole, and replaced in one step.

Seen to fail when weakened: `load` that does not look at mode or owner, or follows a link; `prepare` that overwrites.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from integrity.errors import SettingsError
from worker_cache import requestkey


def test_it_is_prepared_once_and_then_adopted(tmp_path: Path) -> None:
    path = str(tmp_path / "request.key")
    with pytest.raises(SettingsError, match="worker join"):
        requestkey.load(path)
    first = requestkey.prepare(path)
    assert requestkey.prepare(path) == first
    assert os.listdir(tmp_path) == ["request.key.new"]
    assert (tmp_path / "request.key.new").stat().st_mode & 0o777 == 0o600
    requestkey.adopt(path)
    assert (os.listdir(tmp_path), requestkey.load(path)) == (["request.key"], first)
    second = requestkey.prepare(path)
    assert second != first and requestkey.load(path) == first
    requestkey.adopt(path)
    assert (os.listdir(tmp_path), requestkey.load(path)) == (["request.key"], second)


def test_nothing_is_adopted_where_nothing_was_prepared(tmp_path: Path) -> None:
    path = str(tmp_path / "request.key")
    requestkey.prepare(path)
    requestkey.adopt(path)
    key = requestkey.load(path)
    with pytest.raises(SettingsError, match="cannot be kept"):
        requestkey.adopt(path)
    assert requestkey.load(path) == key
    with pytest.raises(SettingsError, match="cannot be kept"):
        requestkey.prepare(str(tmp_path / "absent" / "request.key"))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660])
def test_it_is_this_accounts_alone(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "k"
    path.write_text("00" * 32 + "\n")
    path.chmod(0o600)
    assert requestkey.load(str(path)).seed == bytes(32)
    path.chmod(mode)
    with pytest.raises(SettingsError, match="alone"):
        requestkey.load(str(path))


@pytest.mark.root
def test_it_is_not_anothers(tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_text("00" * 32 + "\n")
    path.chmod(0o600)
    os.chown(path, 65534, 65534)
    with pytest.raises(SettingsError, match="alone"):
        requestkey.load(str(path))


@pytest.mark.parametrize("content", [b"", b"00" * 31, b"00" * 33, b"zz" * 32, b"\xff" * 64, b"00" * 32 + b"\n\n"])
def test_it_holds_one_key(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "k"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="64 hexadecimal"):
        requestkey.load(str(path))


def test_a_link_or_a_folder_is_none(tmp_path: Path) -> None:
    (tmp_path / "k").write_text("00" * 32 + "\n")
    (tmp_path / "k").chmod(0o600)
    (tmp_path / "link").symlink_to(tmp_path / "k")
    with pytest.raises(SettingsError, match="cannot be read"):
        requestkey.load(str(tmp_path / "link"))
    (tmp_path / "folder").mkdir(mode=0o700)
    with pytest.raises(SettingsError, match="alone"):
        requestkey.load(str(tmp_path / "folder"))

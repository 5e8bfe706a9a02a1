"""Where the launcher listens: never beside another, never where somebody else could put a socket."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from integrity.errors import SettingsError
from launcher.listening import bind


def test_it_listens_for_anyone_as_the_table_decides(tmp_path: Path) -> None:
    path = str(tmp_path / "launcher.sock")
    with bind(path) as listener, socket.socket(socket.AF_UNIX) as caller:
        with pytest.raises(ConnectionRefusedError):
            caller.connect(path)
        listener.listen()
        assert os.stat(path).st_mode & 0o777 == 0o666
        assert not listener.getblocking() and not listener.get_inheritable()
        caller.connect(path)


def test_a_second_launcher_is_refused_and_the_first_still_answers(tmp_path: Path) -> None:
    path = str(tmp_path / "launcher.sock")
    with bind(path) as listener:
        listener.listen()
        with pytest.raises(SettingsError, match="another launcher"):
            bind(path)
        listener.accept()[0].close()  # the second one knocked
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(path)


def test_the_socket_of_a_dead_launcher_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "launcher.sock")
    bind(path).close()
    assert os.path.exists(path)
    with bind(path) as listener, socket.socket(socket.AF_UNIX) as caller:
        listener.listen()
        caller.connect(path)


def test_what_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "launcher.sock"
    path.write_text("mine")
    with pytest.raises(SettingsError, match="cannot bind"):
        bind(str(path))
    assert path.read_text() == "mine"


def test_a_link_is_neither_followed_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "launcher.sock").symlink_to(tmp_path / "elsewhere.sock")
    with pytest.raises(SettingsError, match="cannot bind"):
        bind(str(tmp_path / "launcher.sock"))
    assert os.listdir(tmp_path) == ["launcher.sock"]


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_a_folder_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(SettingsError, match="others may not write it"):
        bind(str(folder / "launcher.sock"))
    assert os.listdir(folder) == []


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot bind"):
        bind(str(tmp_path / ("x" * 120)))


@pytest.mark.root
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o755)
    os.chown(folder, 65534, 65534)
    with pytest.raises(SettingsError, match="belong to the launcher's account"):
        bind(str(folder / "launcher.sock"))

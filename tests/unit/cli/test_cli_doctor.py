"""`dagseal doctor`: what a task's account may read and must not write, on real files with real modes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dagseal.cli import doctoring
from dagseal.cli.doctoring import Person

STRANGER = Person(name="etl", uid=54321, gids=frozenset({54321}))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder as Python's packages lie in one. The folders above it are opened for others to pass."""
    for folder in [tmp_path, *tmp_path.parents]:
        if folder.stat().st_uid == os.geteuid() and folder.stat().st_mode & 0o777 == 0o700:
            folder.chmod(0o755)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib").chmod(0o755)
    (tmp_path / "lib" / "module.py").write_text("x = 1\n")
    (tmp_path / "lib" / "module.py").chmod(0o644)
    return tmp_path


def states(tree: Path, person: Person = STRANGER) -> tuple[str, str]:
    readable, writable = doctoring.code_checks(person, [str(tree / "lib")])
    return readable.state, writable.state


def test_a_healthy_tree(tree: Path) -> None:
    assert states(tree) == ("ok", "ok")


def test_a_home_of_mode_0700_above_the_interpreter_is_named_with_its_fix(tree: Path) -> None:
    tree.chmod(0o700)
    readable, _ = doctoring.code_checks(STRANGER, [str(tree / "lib")])
    assert readable.state == "failed"
    assert str(tree) in readable.detail
    assert "chmod o+rx" in readable.detail
    tree.chmod(0o755)


def test_a_file_that_everybody_may_write(tree: Path) -> None:
    (tree / "lib" / "module.py").chmod(0o666)
    _, writable = doctoring.code_checks(STRANGER, [str(tree / "lib")])
    assert writable.state == "failed"
    assert "module.py" in writable.detail


def test_a_folder_above_that_everybody_may_write(tree: Path) -> None:
    tree.chmod(0o777)
    assert states(tree) == ("ok", "failed")


def test_a_sticky_folder_does_not_count(tree: Path) -> None:
    tree.chmod(0o1777)
    assert states(tree) == ("ok", "ok")


def test_the_owner_can_always_write(tree: Path) -> None:
    owner = Person(name="me", uid=(tree / "lib").stat().st_uid or 54322, gids=frozenset())
    if owner.uid == 54322:
        os.chown(tree / "lib", owner.uid, -1)
    assert states(tree, owner)[1] == "failed"


def test_a_group_that_may_write(tree: Path) -> None:
    (tree / "lib").chmod(0o775)
    group = (tree / "lib").stat().st_gid
    assert states(tree, Person(name="etl", uid=54321, gids=frozenset({group})))[1] == "failed"
    assert states(tree) == ("ok", "ok")


def test_an_account_that_does_not_exist_is_named() -> None:
    found = [check for check in doctoring.host_checks(["no-such-account"]) if check.state == "failed"]
    assert [check.name for check in found] == ["user no-such-account"]


def test_memory_files_can_be_sealed_here() -> None:
    assert {check.name: check.state for check in doctoring.host_checks([])}["memfd"] == "ok"

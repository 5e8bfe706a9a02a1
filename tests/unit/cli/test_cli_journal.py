"""audit verify --offline: the chain of a launcher's journal over all its files; what was touched is named, with exit code 1."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dagseal.cli.app import run
from integrity import canonical
from integrity.digests import Digest
from notary.journal import Journal

ONE, TWO, THREE = (f"journal.{seq:012}.jsonl" for seq in (1, 4, 8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files: lines 1 to 3, 4 to 7 and 8 to 9."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    journal = Journal(fd, now_us=lambda: 1_700_000_000_000_000, max_bytes=500)
    for _ in range(7):
        journal.write("event")
    journal.close()
    os.close(fd)
    assert sorted(path.name for path in tmp_path.iterdir()) == [ONE, TWO, THREE]
    return tmp_path


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1]


def last_hash(path: Path) -> str:
    return f"sha512:{Digest.of(lines_of(path)[-1]).hex}"


def verify(path: Path) -> int:
    return run(["audit", "verify", "--offline", "--journal", str(path)])


def test_a_folder_is_one_chain(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(folder) == 0
    said = capsys.readouterr()
    assert said.out == f"ok     9 lines in 3 files, one chain; the last is {last_hash(folder / THREE)}\n"
    assert said.err == ""


def test_one_file_is_verified_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(folder / ONE) == 0
    assert capsys.readouterr().out == f"ok     3 lines in 1 files, one chain; the last is {last_hash(folder / ONE)}\n"
    assert verify(folder / TWO) == 0
    said = capsys.readouterr().out
    beginning = f"from line 4 on, after {last_hash(folder / ONE)}"
    assert said == f"ok     4 lines in 1 files, one chain, {beginning}; the last is {last_hash(folder / TWO)}\n"


def test_where_older_files_were_taken_away_it_says_what_came_before(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = last_hash(folder / ONE)
    (folder / ONE).unlink()
    assert verify(folder) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"ok     6 lines in 2 files, one chain, from line 4 on, after {before}; the last is ")


def test_a_last_line_that_is_being_written_is_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (folder / THREE).open("ab") as file:
        file.write(b'{"at":17')
    assert verify(folder) == 0
    assert capsys.readouterr().out.startswith("ok     9 lines")


def without(at: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: lines[:at] + lines[at + 1 :]


def changed(at: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [
        *lines[:at],
        canonical.dump(canonical.load(lines[at], max_bytes=10_000) | {"event": "other"}),
        *lines[at + 1 :],
    ]


def swapped(at: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]]


def doubled(at: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [*lines[: at + 1], *lines[at:]]


# file, what happens to its lines, file and line at which it is found
TOUCHED = {
    "first line removed": (ONE, without(0), ONE, 1),
    "line removed": (ONE, without(1), ONE, 2),
    "last line of a file removed": (ONE, without(2), TWO, 3),
    "line changed": (TWO, changed(1), TWO, 6),
    "last line of a file changed": (TWO, changed(3), THREE, 8),
    "continuation removed": (TWO, without(0), TWO, 4),
    "continuation changed": (TWO, changed(0), TWO, 5),
    "lines swapped": (TWO, swapped(1), TWO, 5),
    "line doubled": (THREE, doubled(0), THREE, 9),
    "file emptied": (ONE, lambda lines: [], TWO, 1),
    "later file emptied": (TWO, lambda lines: [], TWO, None),
    "last file emptied": (THREE, lambda lines: [], THREE, None),
}


@pytest.mark.parametrize("name", TOUCHED)
def test_what_was_touched_is_named(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file, touch, found_in, line = TOUCHED[name]
    path = folder / file
    path.write_bytes(b"".join(one + b"\n" for one in touch(lines_of(path))))
    assert verify(folder) == 1
    said = capsys.readouterr()
    why = "no line is left in this file" if line is None else f"line {line} does not follow the line before it"
    assert said.out == ""
    assert said.err == f"dagseal: {folder / found_in}: verification FAILED: journal: {why}\n"


def test_a_file_that_is_missing_between_two(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / TWO).unlink()
    assert verify(folder) == 1
    assert capsys.readouterr().err.startswith(f"dagseal: {folder / THREE}: verification FAILED: journal: line 4 ")


def test_a_file_that_bears_anothers_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / TWO).rename(folder / THREE)
    assert verify(folder / THREE) == 1
    assert "line 8 does not follow" in capsys.readouterr().err


def test_every_flipped_bit_of_every_line_but_the_last(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (ONE, TWO):
        true = (folder / name).read_bytes()
        for at in range(0, len(true), 11):
            flipped = bytearray(true)
            flipped[at] ^= 1 << at % 8
            (folder / name).write_bytes(flipped)
            assert verify(folder) == 1, (name, at)
        (folder / name).write_bytes(true)
    assert verify(folder) == 0


def test_what_cannot_be_read_is_not_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(tmp_path / "none.jsonl") == 3
    assert "No such file" in capsys.readouterr().err
    assert verify(tmp_path) == 3
    assert "no journal is there" in capsys.readouterr().err

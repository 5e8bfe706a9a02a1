"""The journal's chain: it continues over restarts and breaks wherever somebody touched it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from integrity import canonical
from integrity.digests import Digest
from integrity.errors import MalformedError, SettingsError
from launcher.journal import MAX_LINE_BYTES, Journal, verify


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def open_journal(folder: int) -> Journal:
    return Journal(folder, "journal.jsonl", now_us=lambda: 1_700_000_000_000_000)


def write(folder: int, *events: str) -> None:
    journal = open_journal(folder)
    for event in events:
        journal.write(event, launch_id="0" * 32)
    journal.close()


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1]


def test_each_line_names_the_one_before(folder: int, path: Path) -> None:
    write(folder, "start", "launch", "stop")
    lines = lines_of(path)
    entries = [canonical.load(line, max_bytes=MAX_LINE_BYTES) for line in lines]
    assert [entry["seq"] for entry in entries] == [1, 2, 3]
    assert [entry["event"] for entry in entries] == ["start", "launch", "stop"]
    assert [entry["prev"] for entry in entries] == ["0" * 128, Digest.of(lines[0]).hex, Digest.of(lines[1]).hex]
    assert list(verify(lines)) == [(n, Digest.of(line).hex) for n, line in enumerate(lines, start=1)]


def test_a_restart_continues_the_chain(folder: int, path: Path) -> None:
    write(folder, "start", "stop")
    write(folder, "start")
    write(folder, "start", "stop")
    assert [seq for seq, _ in verify(lines_of(path))] == [1, 2, 3, 4, 5]


def test_what_an_event_says_cannot_replace_its_place(folder: int, path: Path) -> None:
    journal = open_journal(folder)
    journal.write("x", seq=99, prev="f" * 128, at=0)
    journal.close()
    assert next(iter(verify(lines_of(path))))[0] == 1


@pytest.mark.parametrize("removed", [0, 1, 2])
def test_a_removed_line_is_found(folder: int, path: Path, removed: int) -> None:
    write(folder, "a", "b", "c", "d")
    lines = lines_of(path)
    del lines[removed]
    with pytest.raises(MalformedError, match=f"line {removed + 1} "):
        list(verify(lines))


def test_the_last_line_is_missed_by_whoever_knew_its_hash(folder: int, path: Path) -> None:
    """Nothing in the file can tell: what the chain gives is a hash that no longer appears."""
    write(folder, "a", "b", "c")
    known = list(verify(lines_of(path)))[-1]
    assert known not in list(verify(lines_of(path)[:-1]))


@pytest.mark.parametrize("first", [0, 1, 2])
def test_swapped_lines_are_found(folder: int, path: Path, first: int) -> None:
    write(folder, "a", "b", "c", "d")
    lines = lines_of(path)
    lines[first], lines[first + 1] = lines[first + 1], lines[first]
    with pytest.raises(MalformedError, match=f"line {first + 1} "):
        list(verify(lines))


def test_an_added_line_is_found(folder: int, path: Path) -> None:
    write(folder, "a", "b")
    lines = lines_of(path)
    with pytest.raises(MalformedError):
        list(verify([*lines, lines[-1]]))


def test_every_edited_byte_but_in_the_last_line_is_found(folder: int, path: Path) -> None:
    write(folder, "a", "b")
    first, second = lines_of(path)
    for place in range(len(first)):
        edited = bytearray(first)
        edited[place] ^= 1
        with pytest.raises(MalformedError):
            list(verify([bytes(edited), second]))


def test_a_journal_that_was_touched_is_not_continued(folder: int, path: Path) -> None:
    write(folder, "a", "b", "c")
    lines = lines_of(path)
    path.write_bytes(b"\n".join([lines[0], lines[2]]) + b"\n")
    before = path.read_bytes()
    with pytest.raises(MalformedError):
        open_journal(folder)
    assert path.read_bytes() == before


@pytest.mark.parametrize("separator", [b"\r", b"\r\n", b"\n\n"])
def test_lines_end_with_one_newline_and_nothing_else(folder: int, path: Path, separator: bytes) -> None:
    write(folder, "a", "b")
    path.write_bytes(separator.join(lines_of(path)) + b"\n")
    with pytest.raises(MalformedError):
        open_journal(folder)


def test_a_tail_that_a_crash_left_is_cut_at_every_length(folder: int, path: Path) -> None:
    write(folder, "a", "b", "c")
    whole = path.read_bytes()
    third = whole.split(b"\n")[2]
    kept = whole[: -len(third) - 1]
    for length in range(len(third) + 1):
        path.write_bytes(kept + third[:length])
        write(folder, "again")
        found = list(verify(lines_of(path)))
        assert len(found) == 3
        assert path.read_bytes().startswith(kept)


def test_a_failed_write_leaves_the_chain_whole(folder: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = open_journal(folder)
    journal.write("a")

    def failing(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(OSError, match="Input/output"):
        journal.write("b")
    monkeypatch.undo()
    journal.write("c")
    journal.close()
    assert [canonical.load(line, max_bytes=MAX_LINE_BYTES)["event"] for line in lines_of(path)] == ["a", "c"]
    assert len(list(verify(lines_of(path)))) == 2


def test_what_could_not_be_read_again_is_not_written(folder: int, path: Path) -> None:
    journal = open_journal(folder)
    with pytest.raises(MalformedError, match="limit"):
        journal.write("grant", connections=["x" * MAX_LINE_BYTES])
    journal.write("grant", connections=["x" * 250] * 4_000)  # the names of the largest grant
    journal.close()
    assert len(lines_of(path)) == 1
    write(folder, "start")
    assert len(list(verify(lines_of(path)))) == 2


def test_a_second_writer_is_refused_and_changes_nothing(folder: int, path: Path) -> None:
    first = open_journal(folder)
    first.write("a")
    before = path.read_bytes()
    with pytest.raises(SettingsError, match="another launcher"):
        open_journal(folder)
    assert path.read_bytes() == before
    first.close()
    write(folder, "b")


def test_a_link_in_its_place_is_refused(folder: int, path: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        open_journal(folder)


def test_it_is_private_and_not_inherited(folder: int, path: Path) -> None:
    journal = open_journal(folder)
    assert path.stat().st_mode & 0o777 == 0o600
    assert fcntl.fcntl(journal._fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    journal.close()

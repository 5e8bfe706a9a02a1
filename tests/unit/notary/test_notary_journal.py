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
from notary.journal import MAX_LINE_BYTES, START, Journal, before, names, verify
from vocabulary import durable

FIRST = "journal.000000000001.jsonl"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FIRST


def open_journal(folder: int, **more: int) -> Journal:
    return Journal(folder, now_us=lambda: 1_700_000_000_000_000, **more)


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
    found = list(verify(lines))
    assert [place for _, place in found] == [(n, Digest.of(line).hex) for n, line in enumerate(lines, start=1)]
    assert [entry for entry, _ in found] == entries


def test_a_restart_continues_the_chain(folder: int, path: Path) -> None:
    write(folder, "start", "stop")
    write(folder, "start")
    write(folder, "start", "stop")
    assert [place[0] for _, place in verify(lines_of(path))] == [1, 2, 3, 4, 5]


def test_what_an_event_says_cannot_replace_its_place(folder: int, path: Path) -> None:
    journal = open_journal(folder)
    journal.write("x", seq=99, prev="f" * 128, at=0)
    journal.close()
    assert next(iter(verify(lines_of(path))))[1][0] == 1


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
    _, known = list(verify(lines_of(path)))[-1]
    assert known not in [place for _, place in verify(lines_of(path)[:-1])]


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
    touched = path.read_bytes()
    with pytest.raises(MalformedError):
        open_journal(folder)
    assert path.read_bytes() == touched


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
    assert [entry["event"] for entry, _ in verify(lines_of(path))] == ["a", "c"]


def test_half_a_line_that_stays_on_a_dead_disk_is_cut_off_before_the_next(
    folder: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal(folder)
    journal.write("a")
    write = os.write

    def failing(*_: object) -> None:
        raise OSError(5, "Input/output error")

    def half(fd: int, data: memoryview) -> int:
        monkeypatch.setattr(os, "write", failing)
        return write(fd, data[:40])

    monkeypatch.setattr(os, "write", half)
    monkeypatch.setattr(os, "ftruncate", failing)
    with pytest.raises(OSError, match="Input/output"):
        journal.write("b")
    monkeypatch.setattr(os, "write", write)
    assert not path.read_bytes().endswith(b"\n")
    with pytest.raises(OSError, match="Input/output"):
        journal.write("c")
    monkeypatch.undo()
    journal.write("d")
    journal.close()
    assert [entry["event"] for entry, _ in verify(lines_of(path))] == ["a", "d"]


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
    written = path.read_bytes()
    second = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    with pytest.raises(SettingsError, match="another launcher"):
        open_journal(second)
    assert path.read_bytes() == written
    first.close()
    fcntl.flock(folder, fcntl.LOCK_UN)  # as its end does
    write(second, "b")
    os.close(second)


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


def whole(folder: int, path: Path) -> list[str]:
    """The events of all files, which are one chain."""
    last, events = START, []
    for name in names(folder):
        assert before(name)[0] == last[0], "a file is named by the place of its first line"
        found = list(verify(lines_of(path.parent / name), last))
        events += [entry["event"] for entry, _ in found]
        last = found[-1][1]
    return events


def test_a_full_file_is_continued_in_another(folder: int, path: Path) -> None:
    journal = open_journal(folder, max_bytes=500)
    for _ in range(7):
        journal.write("event")
    first = path.read_bytes()
    assert names(folder) == [FIRST, "journal.000000000004.jsonl", "journal.000000000008.jsonl"]
    journal.close()
    assert path.read_bytes() == first
    assert whole(folder, path) == ["event"] * 3 + ["continued"] + ["event"] * 3 + ["continued"] + ["event"]


def test_a_start_reads_the_last_file_only(folder: int, path: Path) -> None:
    journal = open_journal(folder, max_bytes=500)
    for _ in range(4):
        journal.write("event")
    journal.close()
    path.write_bytes(b"this is read by nobody but who verifies all")
    write(folder, "start")
    path.unlink()
    write(folder, "start")
    second = path.with_name("journal.000000000004.jsonl")
    assert [entry["event"] for entry, _ in verify(lines_of(second), before(second.name))] == [
        "continued",
        "event",
        "start",
        "start",
    ]


@pytest.mark.parametrize("left", [b"", b"{"])
def test_a_later_file_that_was_emptied_is_not_continued(folder: int, path: Path, left: bytes) -> None:
    later = path.with_name("journal.000000000004.jsonl")
    later.write_bytes(left)
    with pytest.raises(MalformedError, match="is empty"):
        open_journal(folder)
    assert later.read_bytes() == left


@pytest.mark.parametrize(
    "told", [{}, {"event": "launch"}, {"event": "launch", "ticket": "x", "at": "x"}, {"event": "carried", "tickets": 1}]
)
def test_a_line_that_no_launcher_wrote_is_not_taken_up(folder: int, path: Path, told: dict[str, object]) -> None:
    write(folder, "a")
    place = {"seq": 2, "prev": Digest.of(lines_of(path)[0]).hex, "at": 1}
    with path.open("ab") as file:
        file.write(canonical.dump(place | told) + b"\n")
    with pytest.raises(MalformedError, match="line 2 is none"):
        open_journal(folder)


def test_a_later_file_is_no_first_one(folder: int, path: Path) -> None:
    write(folder, "a", "b")
    path.rename(path.with_name("journal.000000000004.jsonl"))
    with pytest.raises(MalformedError, match="line 4 "):
        open_journal(folder)


CALLS = ("write", "fsync", "link", "open", "unlink")


@pytest.mark.parametrize("call", CALLS)
def test_when_it_cannot_be_continued_nothing_is_written_until_it_can(
    folder: int, path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call that fails, once and at each of its places."""
    journal = open_journal(folder, max_bytes=1)
    journal.write("event")
    failed = 0
    for at in range(1, 10):
        calls = iter(range(1, 100))
        true = getattr(os, call)

        def failing(*args: object, calls=calls, at=at, true=true, **more: object) -> object:
            if next(calls) == at:
                raise OSError(28, "No space left on device")
            return true(*args, **more)

        monkeypatch.setattr(os, call, failing)
        known = len(whole(folder, path))
        try:
            journal.write("failed" if at == failed + 1 else "done")
        except OSError:
            failed += 1
            assert "failed" not in whole(folder, path)[known:]
        else:
            monkeypatch.undo()
            break
        monkeypatch.undo()
        journal.write("event")
        assert not [
            name for name in os.listdir(folder) if name.startswith(durable.TEMPORARY_PREFIX) and call != "unlink"
        ]
    assert failed >= 1
    journal.close()
    events = whole(folder, path)
    assert events.count("failed") == 1 and events.count("event") == failed + 1
    open_journal(folder).close()


def test_a_crash_while_it_is_continued_leaves_the_old_file_or_the_new(
    folder: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it stops: the next start goes on from what is there."""

    class Killed(BaseException):
        pass

    for call in CALLS:
        journal = open_journal(folder, max_bytes=1)
        journal.write("event")

        def killed(*_: object, **__: object) -> None:
            raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(os, call, killed)
            journal.write("never")
        write(folder, "start")
        assert "never" not in whole(folder, path)
        assert not [name for name in os.listdir(folder) if name.startswith(durable.TEMPORARY_PREFIX)]


def test_the_file_of_an_older_version_becomes_the_first(folder: int, path: Path) -> None:
    write(folder, "a", "b")
    path.rename(path.with_name("journal.jsonl"))
    write(folder, "c")
    assert os.listdir(folder) == [FIRST]
    assert whole(folder, path) == ["a", "b", "c"]


def test_an_older_version_that_still_runs_is_not_disturbed(folder: int, path: Path) -> None:
    write(folder, "a")
    old = path.rename(path.with_name("journal.jsonl"))
    with old.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SettingsError, match="another launcher"):
            open_journal(folder)
    assert os.listdir(folder) == ["journal.jsonl"]


def test_an_older_version_that_ran_in_between_is_not_overlooked(folder: int, path: Path) -> None:
    write(folder, "a")
    path.with_name("journal.jsonl").write_bytes(path.read_bytes())
    with pytest.raises(SettingsError, match="older version"):
        open_journal(folder)
    assert sorted(os.listdir(folder)) == [FIRST, "journal.jsonl"]

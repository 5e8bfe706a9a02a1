"""The log on an agent's disk: what was kept is there, half of what was not kept is cut off, and damage is not believed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from integrity.errors import SettingsError
from tests.logsim import Log
from vocabulary import tiles
from vocabulary.keys import SigningKey
from worker_cache import fsck, logrules
from worker_cache.logrules import Followed
from worker_cache.logstore import LogStore
from worker_cache.store import Store

T = 1_800_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def log() -> Log:
    made = Log()
    made.push("etl.py", 1)
    made.push("etl.py", 2)
    return made


@contextmanager
def opened(folder: Path) -> Iterator[LogStore]:
    store = Store.open(str(folder))
    kept = LogStore(store.log_folder())
    try:
        yield kept
    finally:
        kept.close()
        store.close()


def keep(
    kept: LogStore, known: Followed, log: Log, size: int | None = None, *, at: int = T, settled: bool = True
) -> Followed:
    pinned = log.key.public
    found = logrules.announced(known, log.note(size, at=at), pinned=pinned)
    update = logrules.grown(known, found, log.entries[known.tree.size : size], pinned=pinned)
    kept.keep(update)
    if settled:
        kept.settle()
    return update.followed


def found_by_fsck(folder: Path, *, repair: bool = False) -> list[tuple[str, str, bool]]:
    return [(one.kind, one.path, one.repaired) for one in fsck.check(str(folder), repair=repair).findings]


def test_what_was_kept_is_there_again(folder: Path, log: Log) -> None:
    with opened(folder) as kept:
        assert kept.load(log.key.public) == Followed()
        known = keep(kept, Followed(), log, 3)
        known = keep(kept, known, log)
        known = keep(kept, known, log, at=T + 60)
    with opened(folder) as kept:
        assert kept.load(log.key.public) == known
        log.push("a.py", 1)
        known = keep(kept, known, log, at=T + 61)
    with opened(folder) as kept:
        assert kept.load(log.key.public) == known
    assert found_by_fsck(folder) == []
    assert (folder / "log" / "leaves").read_bytes() == log.bundle(0, len(log.entries))
    assert (folder / "log" / "checkpoint").read_bytes() == log.note(at=T + 61)
    assert (folder / "log").stat().st_mode & 0o777 == 0o700


def sealed(log: Log, start: int, size: int, *, at: int) -> bytes:
    return log.bundle(start, size) + b"\0\0" + tiles.bundle([log.note(size, at=at)])


def test_what_was_kept_is_there_before_it_is_settled(folder: Path, log: Log) -> None:
    with opened(folder) as kept:
        known = keep(kept, Followed(), log, 3)
        known = keep(kept, known, log, at=T + 1, settled=False)
    assert (folder / "log" / "leaves").read_bytes() == log.bundle(0, 3) + sealed(log, 3, 5, at=T + 1)
    assert (folder / "log" / "checkpoint").read_bytes() == log.note(3, at=T)
    assert found_by_fsck(folder) == []
    with opened(folder) as kept:
        with pytest.raises(SettingsError, match="is api_key the key of this server"):
            kept.load(SigningKey.generate().public)
        assert kept.load(log.key.public) == known
    assert (folder / "log" / "leaves").read_bytes() == log.bundle(0, 5)
    assert (folder / "log" / "checkpoint").read_bytes() == log.note(at=T + 1)


def test_a_seal_is_settled_before_it_is_written_over(folder: Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose next entries are cut off by a crash, at any byte of them, still has those that it was told are kept."""
    with opened(folder) as kept:
        known = keep(kept, Followed(), log, 3, settled=False)

        def crash(fd: int) -> None:
            raise OSError(errno.EIO, "input/output error")

        monkeypatch.setattr(os, "fdatasync", crash)
        with pytest.raises(OSError, match="input/output error"):
            keep(kept, known, log, settled=False)
        monkeypatch.undo()
    after = sealed(log, 3, 5, at=T)
    for cut_at in range(len(after)):
        (folder / "log" / "leaves").write_bytes(log.bundle(0, 3) + after[:cut_at])
        assert found_by_fsck(folder) == []
        with opened(folder) as kept:
            assert kept.load(log.key.public) == known
    (folder / "log" / "leaves").write_bytes(log.bundle(0, 3) + after)
    with opened(folder) as kept:
        assert kept.load(log.key.public).tree == log.tree()


def test_a_seal_of_other_entries_is_none(folder: Path, log: Log) -> None:
    with opened(folder) as kept:
        known = keep(kept, Followed(), log, 3)
    other = log.copy(3)
    other.push("other.py", 1)
    for tail in (
        log.bundle(3, 5) + sealed(other, 5, 5, at=T),
        sealed(other, 3, 5, at=T)[:-9] + b"=\n",
        log.bundle(3, 5) + b"\0\0" + bytes(99),
    ):
        (folder / "log" / "leaves").write_bytes(log.bundle(0, 3) + tail)
        with opened(folder) as kept:
            assert kept.load(log.key.public) == known


def test_the_first_seal_that_was_not_written_whole_is_nothing(folder: Path, log: Log) -> None:
    with opened(folder) as kept:
        keep(kept, Followed(), log, settled=False)
    leaves = folder / "log" / "leaves"
    leaves.write_bytes(leaves.read_bytes()[:-1])
    assert found_by_fsck(folder) == []
    with opened(folder) as kept:
        assert kept.load(log.key.public) == Followed()
        assert leaves.read_bytes() == b""


@pytest.mark.parametrize("tail", [b"\0", b"\x01\0half of an entry", b"whole"])
def test_entries_that_nothing_signs_are_cut_off(folder: Path, log: Log, tail: bytes) -> None:
    with opened(folder) as kept:
        known = keep(kept, Followed(), log, 3)
    leaves = folder / "log" / "leaves"
    leaves.write_bytes(leaves.read_bytes() + (log.bundle(3, 4) if tail == b"whole" else tail))
    assert found_by_fsck(folder) == [], "a crash leaves it so"
    with opened(folder) as kept:
        assert kept.load(log.key.public) == known
        assert leaves.read_bytes() == log.bundle(0, 3)
        known = keep(kept, known, log)
    with opened(folder) as kept:
        assert kept.load(log.key.public) == known


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", ["leaves", "checkpoint"])
@pytest.mark.parametrize("damage", [flipped, cut, emptied])
def test_damage_is_refused_found_and_put_aside(
    folder: Path, log: Log, name: str, damage: Callable[[Path], None]
) -> None:
    with opened(folder) as kept:
        keep(kept, Followed(), log)
    damage(folder / "log" / name)
    before = {path.name: path.read_bytes() for path in (folder / "log").iterdir() if path.is_file()}
    with opened(folder) as kept:
        with pytest.raises(SettingsError, match="fsck --cache DIR --repair"):
            kept.load(log.key.public)
        assert found_by_fsck(folder, repair=True) == [("damaged-log", "log", False)], "an agent runs"
    assert found_by_fsck(folder) == [("damaged-log", "log", False)]
    assert found_by_fsck(folder, repair=True) == [("damaged-log", "log", True)]
    aside = folder / "quarantine" / "log"
    assert {path.name: path.read_bytes() for path in aside.iterdir() if path.is_file()} == before
    with opened(folder) as kept:
        assert kept.load(log.key.public) == Followed()
    assert found_by_fsck(folder) == []


def test_a_checkpoint_without_leaves_is_damage(folder: Path, log: Log) -> None:
    with opened(folder) as kept:
        keep(kept, Followed(), log)
    (folder / "log" / "leaves").unlink()
    with opened(folder) as kept, pytest.raises(SettingsError, match="leaf 0 of 5 is missing"):
        kept.load(log.key.public)


def test_another_pinned_key_does_not_take_over_the_log(folder: Path, log: Log) -> None:
    with opened(folder) as kept:
        keep(kept, Followed(), log)
        with pytest.raises(SettingsError, match="is api_key the key of this server"):
            kept.load(SigningKey.generate().public)


def test_strangers_in_the_folder_are_named(folder: Path, log: Log) -> None:
    with opened(folder) as kept:
        known = keep(kept, Followed(), log)
        kept.keep_evidence(log.note(at=T), log.note(at=T + 1))
    (folder / "log" / "stray").write_bytes(b"")
    (folder / "log" / ".tmp-1").write_bytes(b"")
    assert found_by_fsck(folder) == [("leftover", "log/.tmp-1", False), ("unexpected", "log/stray", False)]
    with opened(folder) as kept:
        assert kept.load(log.key.public) == known
    assert found_by_fsck(folder, repair=True) == [("unexpected", "log/stray", True)]
    assert found_by_fsck(folder) == []


def test_evidence_is_kept_once_and_told_at_the_next_start(folder: Path, log: Log) -> None:
    with opened(folder) as kept:
        assert kept.fork() is None
        one, two = log.note(at=T), log.note(at=T + 1)
        where = kept.keep_evidence(one, two)
        assert kept.keep_evidence(one, two) == where == kept.fork()
    with opened(folder) as kept:
        assert kept.fork() == where
    assert (folder / f"{where}.known").read_bytes() == one
    assert (folder / f"{where}.seen").read_bytes() == two
    assert len(list((folder / "log" / "evidence").iterdir())) == 2


STEPS = ("open", "write", "fsync", "fdatasync", "rename", "ftruncate")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("dead", [False, True])
def test_every_step_that_fails_leaves_the_old_or_the_new(
    folder: Path, log: Log, step: str, dead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its uses in turn, once or from then on; afterwards the same writer goes on, and the next one can read it."""
    genuine: Callable[..., Any] = getattr(os, step)
    for failing in range(1, 20):
        with opened(folder) as kept:
            old = kept.load(log.key.public)
            count = 0

            def fail(*arguments: Any, failing: int = failing, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count == failing or (dead and count > failing):
                    if step == "write":
                        genuine(arguments[0], memoryview(arguments[1])[:7])
                    raise OSError(errno.EIO, "input/output error")
                return genuine(*arguments, **named)

            log.push("etl.py", sum(b'"activation"' in entry for entry in log.entries) + 1)
            monkeypatch.setattr(os, step, fail)
            try:
                keep(kept, old, log, at=T + 2 * failing)
            except OSError:
                failed = True
            else:
                failed = False
            monkeypatch.setattr(os, step, genuine)
            now = kept.load(log.key.public)
            assert now.tree in (old.tree, log.tree())
            assert failed or now.tree == log.tree()
        assert {kind for kind, _, _ in found_by_fsck(folder)} <= {"leftover"}
        with opened(folder) as kept:
            assert kept.load(log.key.public) == now
            if failed:
                assert keep(kept, now, log, at=T + 2 * failing + 1).tree == log.tree()
        if not failed:
            assert failing > 1 or step == "ftruncate", "the step is one of them"
            return
    raise AssertionError("the step never succeeded")


def test_ten_thousand_leaves(folder: Path) -> None:
    log = Log()
    for number in range(5000):
        log.push(f"dag{number % 1000}.py", number // 1000 + 1)
    with opened(folder) as kept:
        known = keep(kept, Followed(), log)
    with opened(folder) as kept:
        found = kept.load(log.key.public)
    assert found == known
    assert known.tree.size == 10_001

"""The cache's folder: only right bytes get a name, wrong ones are moved aside, and every failing step leaves it clean."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from integrity.digests import Digest
from integrity.errors import DigestMismatchError, NotFoundError, SettingsError
from worker_cache import fsck
from worker_cache.store import Store

DATA = b"dag" * 50_000
DIGEST = Digest.of(DATA)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def put(store: Store, data: bytes = DATA, digest: Digest | None = None) -> None:
    receiver = store.receive()
    try:
        for offset in range(0, len(data), 50_000):
            receiver.write(data[offset : offset + 50_000])
        receiver.finish(digest or Digest.of(data))
    finally:
        receiver.close()


def blob(folder: Path, digest: Digest = DIGEST) -> Path:
    return folder / "sha512" / digest.hex[:2] / digest.hex


def kinds(folder: Path, *, repair: bool = False) -> list[str]:
    return sorted(finding.kind for finding in fsck.check(str(folder), repair=repair).findings)


def test_what_was_put_is_opened_and_the_folder_is_private(folder: Path) -> None:
    store = Store.open(str(folder))
    put(store)
    fd = store.open_verified(DIGEST)
    assert os.pread(fd, len(DATA) + 1, 0) == DATA
    assert os.lseek(fd, 0, os.SEEK_CUR) == 0
    with pytest.raises(OSError):
        os.write(fd, b"x")
    os.close(fd)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert blob(folder).stat().st_mode & 0o777 == 0o600
    with pytest.raises(NotFoundError):
        store.open_verified(Digest.of(b"other"))
    store.close()


def test_wrong_bytes_are_never_named(folder: Path) -> None:
    store = Store.open(str(folder))
    with pytest.raises(DigestMismatchError):
        put(store, b"evil", DIGEST)
    assert not blob(folder).exists()
    assert os.listdir(folder / "incoming") == []
    store.close()
    assert kinds(folder) == []


@pytest.mark.parametrize("position", [0, 1, 4096, len(DATA) - 1])
def test_one_flipped_bit_is_found_on_open(folder: Path, position: int) -> None:
    store = Store.open(str(folder))
    put(store)
    damaged = bytearray(DATA)
    damaged[position] ^= 1 << position % 8
    blob(folder).write_bytes(damaged)
    with pytest.raises(DigestMismatchError, match="quarantine"):
        store.open_verified(DIGEST)
    with pytest.raises(NotFoundError):
        store.open_verified(DIGEST)
    assert len(os.listdir(folder / "quarantine")) == 1
    put(store)
    os.close(store.open_verified(DIGEST))
    store.close()


def replaced_by_link(path: Path) -> None:
    other = path.parent / "other"
    path.rename(other)
    path.symlink_to(other)


def replaced_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replaced_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage",
    [
        replaced_by_link,
        replaced_by_folder,
        replaced_by_pipe,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(DATA[:-1]),
        lambda path: path.write_bytes(DATA + b"\n"),
    ],
)
def test_every_kind_of_damage_is_refused_and_moved_aside(folder: Path, damage: Callable[[Path], Any]) -> None:
    store = Store.open(str(folder))
    put(store)
    damage(blob(folder))
    with pytest.raises(DigestMismatchError):
        store.open_verified(DIGEST)
    assert not os.path.lexists(blob(folder))
    store.close()


def test_damage_to_the_same_name_twice_keeps_both(folder: Path) -> None:
    store = Store.open(str(folder))
    for text in (b"first", b"second"):
        put(store)
        blob(folder).write_bytes(text)
        with pytest.raises(DigestMismatchError):
            store.open_verified(DIGEST)
    kept = sorted((folder / "quarantine").iterdir())
    assert [path.read_bytes() for path in kept] == [b"first", b"second"]
    store.close()


def test_a_second_agent_may_not_share_the_cache(folder: Path) -> None:
    store = Store.open(str(folder))
    with pytest.raises(SettingsError, match="another agent"):
        Store.open(str(folder))
    store.close()
    Store.open(str(folder)).close()


def test_a_folder_that_others_may_enter_is_refused(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    folder.chmod(0o750)
    with pytest.raises(SettingsError, match="0700"):
        Store.open(str(folder))
    with pytest.raises(SettingsError):
        fsck.check(str(folder))


STEPS = ("open", "mkdir", "write", "rename")


@pytest.mark.parametrize("step", STEPS)
def test_a_system_call_that_fails_leaves_a_clean_cache(
    folder: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call of the publication fails once, at its first, second, … use, until it is not reached any more."""
    genuine = getattr(os, step)
    for failing in range(1, 20):
        store = Store.open(str(folder))
        count = 0

        def fail(*arguments: Any, failing: int = failing, genuine: Callable[..., Any] = genuine, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == failing:
                raise OSError(errno.ENOSPC, "no space left on device")
            return genuine(*arguments, **named)

        monkeypatch.setattr(os, step, fail)
        try:
            put(store)
        except OSError:
            failed = True
        else:
            failed = False
        monkeypatch.setattr(os, step, genuine)
        store.close()
        assert kinds(folder) == []
        store = Store.open(str(folder))
        if blob(folder).exists():
            os.close(store.open_verified(DIGEST))
            blob(folder).unlink()
        store.close()
        if not failed:
            assert failing > 1
            return
    raise AssertionError("the step never succeeded")


def test_a_crash_between_write_and_rename_leaves_only_a_leftover(folder: Path) -> None:
    pid = os.fork()
    if pid == 0:
        store = Store.open(str(folder))
        receiver = store.receive()
        receiver.write(DATA[:1000])
        os.kill(os.getpid(), 9)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == 9
    assert kinds(folder) == ["leftover"]
    assert not any(finding.is_damage for finding in fsck.check(str(folder)).findings)
    Store.open(str(folder)).close()
    assert kinds(folder) == []


def test_fsck_names_each_kind_and_repairs_without_deleting_evidence(folder: Path) -> None:
    store = Store.open(str(folder))
    put(store)
    put(store, b"good")
    store.close()
    blob(folder).write_bytes(b"bad")
    (folder / "incoming" / ".tmp-abc").write_bytes(b"half")
    (folder / "incoming" / "stray").write_bytes(b"")
    (folder / "sha512" / "zz").mkdir()
    (folder / "sha512" / DIGEST.hex[:2] / "short").write_bytes(b"")
    (folder / "extra").write_bytes(b"")
    expected = ["leftover", "unexpected", "unexpected", "unexpected", "unexpected", "wrong-bytes"]
    assert kinds(folder) == expected
    assert kinds(folder) == expected, "looking changes nothing"
    assert kinds(folder, repair=True) == expected
    report = fsck.check(str(folder))
    assert report.findings == ()
    assert (report.blobs, report.size, report.quarantined) == (1, 4, 5)


def test_fsck_leaves_the_fetches_of_a_running_agent_alone(folder: Path) -> None:
    store = Store.open(str(folder))
    receiver = store.receive()
    receiver.write(b"half")
    assert kinds(folder, repair=True) == []
    receiver.write(DATA)
    receiver.finish(Digest.of(b"half" + DATA))
    receiver.close()
    store.close()

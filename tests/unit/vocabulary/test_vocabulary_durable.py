"""durable.py on a real folder, each of its system calls failing once, and failing from then on."""

from __future__ import annotations

import errno
import os
import pathlib
from collections.abc import Callable, Iterator

import pytest

from vocabulary import durable

CALLS = (
    "open",
    "write",
    "fsync",
    "fdatasync",
    "rename",
    "link",
    "unlink",
    "close",
    "mkdir",
    "fstat",
    "ftruncate",
    "listdir",
)
OLD, NEW = b"old" * 1000, b"new" * 2000


class Faults:
    """Counts the system calls; the `at`th raises, and all after it too if the disk is dead. `close` closes all the same."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, code: int, *, dead: bool) -> None:
        self.seen: list[str] = []
        self.at, self.code, self.dead = at, code, dead
        for name in CALLS:
            patch.setattr(os, name, self.wrap(name, getattr(os, name)))

    def wrap(self, name: str, call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **kwargs: object) -> object:
            self.seen.append(name)
            if len(self.seen) == self.at or (self.dead and len(self.seen) > self.at):
                if name == "close":
                    call(*args, **kwargs)
                elif name == "write":
                    call(args[0], memoryview(args[1])[:7])  # type: ignore[arg-type]
                raise OSError(self.code, os.strerror(self.code))
            return call(*args, **kwargs)

        return wrapped


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def journal_append(folder: int) -> None:
    fd = os.open("journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600, dir_fd=folder)
    try:
        durable.append(fd, NEW, size=len(OLD))
    finally:
        os.close(fd)


def streamed(folder: int) -> None:
    fd, temporary = durable.open_temporary(folder)
    try:
        durable.write_all(fd, [NEW[:10], NEW[10:]])
        durable.publish_temporary(folder, temporary, fd, folder, "a")
    except OSError:
        durable.discard_temporary(folder, temporary)
        raise
    finally:
        os.close(fd)


VERBS: dict[str, Callable[[int], object]] = {
    "publish": lambda folder: durable.publish(folder, "a", [NEW[:10], NEW[10:]]),
    "overwrite": lambda folder: durable.overwrite(folder, "old", [NEW]),
    "create_exclusive": lambda folder: durable.create_exclusive(folder, "a", NEW),
    "streamed": streamed,
    "make_folder": lambda folder: durable.make_folder(folder, "d"),
    "append": journal_append,
    "sweep": durable.sweep,
}


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("dead", [False, True], ids=["once", "from-then-on"])
@pytest.mark.parametrize("verb", VERBS)
def test_each_system_call_fails(verb: str, dead: bool, code: int, tmp_path: pathlib.Path) -> None:
    failed: list[str] = []
    for at in range(1, 100):
        place = tmp_path / str(at)
        place.mkdir()
        (place / "old").write_bytes(OLD)
        (place / "journal").write_bytes(OLD)
        (place / ".tmp-left").write_bytes(b"half")
        folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        before = open_descriptors()
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, at, code, dead=dead)
            if at_end := not run(VERBS[verb], folder, code):
                assert len(faults.seen) < at
        assert open_descriptors() == before, faults.seen
        only_whole_files(place, appended=at_end and verb == "append", dead=dead)
        durable.sweep(folder)
        assert not [name for name in os.listdir(folder) if name.startswith(durable.TEMPORARY_PREFIX)]
        os.close(folder)
        if at_end:
            assert failed == faults.seen
            return
        failed.append(faults.seen[at - 1])
    raise AssertionError("the verb never ended")


def run(verb: Callable[[int], object], folder: int, code: int) -> bool:
    """Whether it failed, and then by the error that the system call gave."""
    try:
        verb(folder)
    except OSError as error:
        assert error.errno == code
        return True
    return False


def only_whole_files(place: pathlib.Path, *, appended: bool, dead: bool) -> None:
    for path in place.iterdir():
        if path.name.startswith(durable.TEMPORARY_PREFIX) or path.is_dir():
            continue
        content = path.read_bytes()
        if path.name == "journal":
            # On a dead disk the tail cannot be taken back either: a reader of the journal drops it.
            assert content.startswith(OLD) if dead else content in (OLD, OLD + NEW)
            assert not appended or content == OLD + NEW
        else:
            assert content in ((OLD, NEW) if path.name == "old" else (NEW,))


def test_short_writes_are_continued(folder: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, view: write(fd, view[:11]))
    durable.publish(folder, "a", [NEW, b"", OLD])
    assert (tmp_path / "a").read_bytes() == NEW + OLD


def test_modes_and_contents(folder: int, tmp_path: pathlib.Path) -> None:
    durable.publish(folder, "a", [b"1"], mode=0o400)
    durable.publish(folder, "a", [b"1"], mode=0o400)
    durable.create_exclusive(folder, "b", b"2")
    durable.make_folder(folder, "d")
    durable.make_folder(folder, "d")
    found = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert found == {"a": 0o400, "b": 0o600, "d": 0o700}
    assert (tmp_path / "a").stat().st_nlink == (tmp_path / "b").stat().st_nlink == 1


def test_an_existing_name_stays(folder: int, tmp_path: pathlib.Path) -> None:
    durable.create_exclusive(folder, "a", OLD)
    with pytest.raises(FileExistsError):
        durable.create_exclusive(folder, "a", NEW)
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        durable.create_exclusive(folder, "link", NEW)
    assert sorted(os.listdir(folder)) == ["a", "link"] and (tmp_path / "a").read_bytes() == OLD


def test_an_interrupted_writer_leaves_no_temporary(folder: int) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        durable.publish(folder, "a", chunks())
    assert os.listdir(folder) == []


def test_discarding_nothing_is_fine(folder: int) -> None:
    durable.discard_temporary(folder, ".tmp-none")
    assert durable.sweep(folder) == []


def test_sweep_names_what_it_removes(folder: int) -> None:
    fd, temporary = durable.open_temporary(folder)
    os.close(fd)
    durable.publish(folder, "a", [b"1"])
    assert durable.sweep(folder) == [temporary] and os.listdir(folder) == ["a"]


def test_bytes_are_synced_before_the_name_and_the_name_before_the_return(folder: int) -> None:
    for verb, order in {
        "publish": ["open", "write", "write", "fsync", "rename", "fsync", "close"],
        "create_exclusive": ["open", "write", "fsync", "link", "close", "unlink", "fsync"],
    }.items():
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, 0, 0, dead=False)
            VERBS[verb](folder)
        assert faults.seen == order
        os.unlink("a", dir_fd=folder)

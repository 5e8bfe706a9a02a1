"""The one place where files become durable. Four verbs; each takes an open directory descriptor and a plain name.

| verb                | atomic                                     | on disk when it returns        |
|---------------------|--------------------------------------------|--------------------------------|
| `make_folder`       | yes; an existing folder is fine            | the folder's entry             |
| `create_exclusive`  | yes; an existing name is `FileExistsError` | the bytes and the entry        |
| `publish`           | yes; the same name means the same bytes    | the bytes and the entry        |
| `overwrite`         | yes; readers see the old or the new        | the bytes and the entry        |

A name is never visible before its bytes are on disk: the bytes go to `.tmp-*`, then fsync, then link or rename, then
fsync of the folder. After a crash only whole files and `.tmp-*` are left; `sweep` removes the latter.
`OSError` is passed on (ENOSPC, EIO, …) after the temporary name was removed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable

TEMPORARY_PREFIX = ".tmp-"


def make_folder(dir_fd: int, *names: str, mode: int = 0o700) -> None:
    """Create these folders, durably. Their parent is synced also when they exist: a crash may have lost the entries."""
    for name in names:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=dir_fd)
    os.fsync(dir_fd)


def open_temporary(dir_fd: int, *, mode: int = 0o600) -> tuple[int, str]:
    """A new write descriptor and its temporary name, for bytes that arrive piece by piece.

    Then `publish_temporary` or `discard_temporary`, and close the descriptor.
    """
    name = TEMPORARY_PREFIX + secrets.token_hex(16)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, mode, dir_fd=dir_fd), name


def publish_temporary(dir_fd: int, temporary: str, fd: int, to_dir_fd: int, name: str) -> None:
    """Sync `fd` and give its file the final `name`. What stands there is replaced: by equals, if content-addressed."""
    os.fsync(fd)
    os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=to_dir_fd)
    os.fsync(to_dir_fd)


def discard_temporary(dir_fd: int, temporary: str) -> None:
    """Remove a temporary name; none is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=dir_fd)


def publish(dir_fd: int, name: str, chunks: Iterable[bytes | bytearray], *, mode: int = 0o600) -> None:
    """Write a whole file under `name`, which may exist: content-addressed, so what is there has the same bytes."""
    fd, temporary = open_temporary(dir_fd, mode=mode)
    try:
        write_all(fd, chunks)
        publish_temporary(dir_fd, temporary, fd, dir_fd, name)
    except BaseException:
        discard_temporary(dir_fd, temporary)
        raise
    finally:
        os.close(fd)


overwrite = publish


def create_exclusive(dir_fd: int, name: str, data: bytes, *, mode: int = 0o600) -> None:
    """Write a whole file under a name that must be new. Raises `FileExistsError`, having changed nothing."""
    fd, temporary = open_temporary(dir_fd, mode=mode)
    try:
        write_all(fd, [data])
        os.fsync(fd)
        os.link(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
    except FileExistsError:
        os.fsync(dir_fd)  # by a process that was killed before its own fsync: who is told of a name relies on it
        raise
    finally:
        os.close(fd)
        discard_temporary(dir_fd, temporary)
    os.fsync(dir_fd)


def append(fd: int, data: bytes, *, size: int) -> None:
    """Append to a journal opened with O_APPEND by its only writer, who knows its `size`, and wait until it is on disk.

    When that fails the journal is as long as before, so that the next record does not follow half of this one. What a dead
    disk did not let us cut off then is cut off now, or nothing is appended.
    """
    if os.fstat(fd).st_size != size:
        os.ftruncate(fd, size)
    try:
        write_all(fd, [data])
        os.fdatasync(fd)
    except BaseException:
        os.ftruncate(fd, size)
        raise


def write_all(fd: int, chunks: Iterable[bytes | bytearray]) -> None:
    """Write everything; a short write is continued."""
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            view = view[os.write(fd, view) :]


def sweep(dir_fd: int) -> list[str]:
    """Remove what a crash left unfinished, and name it. Only for a folder whose writer is not running."""
    found = [name for name in os.listdir(dir_fd) if name.startswith(TEMPORARY_PREFIX)]
    for name in found:
        os.unlink(name, dir_fd=dir_fd)
    return found

"""SHA-512 of many files, on as many cores as there are: what fsck and scrubbing spend their time with.

Threads do not help with small files, whose hash takes less time than the interpreter's lock changes hands; forked processes
do. Each is handed names below one open folder, a batch at a time, and says what it found; only that descriptor is shared.
"""

from __future__ import annotations

import multiprocessing
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import NamedTuple

from integrity.digests import Digest
from worker_cache.store import FILE, hash_fd

BATCH = 256
FEWEST = 4  # batches that are worth a process


class Hashed(NamedTuple):
    """`digest` is None where it could not be read; then `trouble` says why, and is empty where it is gone."""

    path: str
    digest: Digest | None
    size: int
    trouble: str = ""
    is_file: bool = True


def hash_files(folder: int, paths: Sequence[str], *, processes: int | None = None) -> Iterator[Hashed]:
    """Of each file below the open folder, in order. Links are not followed. `processes`: by default one for each core that
    this process may use, this one among them; few files are left to this one."""
    batches = [paths[at : at + BATCH] for at in range(0, len(paths), BATCH)]
    wanted = min(processes or len(os.sched_getaffinity(0)), -(-len(batches) // FEWEST))
    with ExitStack() as ending:
        others = [ending.enter_context(_forked(folder, batches[nth::wanted])) for nth in range(1, wanted)]
        for number, batch in enumerate(batches):
            nth = number % wanted
            yield from _batch(folder, batch) if nth == 0 else others[nth - 1]()


@contextmanager
def _forked(folder: int, batches: Sequence[Sequence[str]]) -> Iterator[Callable[[], list[Hashed]]]:
    """Another process at these batches; what is called gives the next one's result."""
    forking = multiprocessing.get_context("fork")
    receiver, sender = forking.Pipe(duplex=False)
    process = forking.Process(target=_work, args=(folder, batches, sender), daemon=True)
    process.start()
    sender.close()  # so that the end of the process is the end of what it sends

    def result() -> list[Hashed]:
        try:
            found = receiver.recv()
        except (EOFError, OSError):
            raise RuntimeError("a process that hashed files was killed before it had done its share") from None
        return [Hashed(path, Digest(hexadecimal) if hexadecimal else None, *rest) for path, hexadecimal, *rest in found]

    try:
        yield result
    finally:
        receiver.close()
        process.kill()
        process.join()


def _work(folder: int, batches: Sequence[Sequence[str]], sender: Connection) -> None:
    for batch in batches:
        found = _batch(folder, batch)
        sender.send(
            [(one.path, one.digest.hex if one.digest else "", one.size, one.trouble, one.is_file) for one in found]
        )


def _batch(folder: int, paths: Sequence[str]) -> list[Hashed]:
    return [_one(folder, path) for path in paths]


def _one(folder: int, path: str) -> Hashed:
    try:
        fd = os.open(path, FILE, dir_fd=folder)
    except FileNotFoundError:
        return Hashed(path, None, 0)
    except OSError as error:
        return Hashed(path, None, 0, str(error.strerror))
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return Hashed(path, None, 0, "not a file", is_file=False)
        return Hashed(path, *hash_fd(fd, found.st_size))
    except OSError as error:
        return Hashed(path, None, 0, str(error.strerror))
    finally:
        os.close(fd)

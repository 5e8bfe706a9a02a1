"""SHA-512 of many files, on as many cores as there are: what fsck and scrubbing spend their time with.

Threads do not help with small files, whose hash takes less time than the interpreter's lock changes hands; forked processes
do. Each is handed names below one open folder, a batch at a time, and says what it found; only that descriptor is shared.
"""

from __future__ import annotations

import multiprocessing
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from integrity.digests import Digest
from worker_cache.store import FILE, hash_fd

BATCH = 256


@dataclass(frozen=True, slots=True)
class Hashed:
    """`digest` is None where it could not be read; then `trouble` says why, and is empty where it is gone."""

    path: str
    digest: Digest | None
    size: int
    trouble: str = ""
    is_file: bool = True


def hash_files(folder: int, paths: Sequence[str], *, processes: int | None = None) -> Iterator[Hashed]:
    """Of each file below the open folder, in order. Links are not followed. `processes`: by default one for each core that
    this process may use; with one, or with a single batch, in this process."""
    wanted = processes or len(os.sched_getaffinity(0))
    batches = [paths[at : at + BATCH] for at in range(0, len(paths), BATCH)]
    if wanted == 1 or len(batches) < 2:
        for batch in batches:
            yield from _batch(folder, batch)
        return
    with multiprocessing.get_context("fork").Pool(min(wanted, len(batches))) as pool:
        for found in pool.imap(partial(_batch, folder), batches):
            yield from found


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
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return Hashed(path, None, 0, "not a file", is_file=False)
        return Hashed(path, *hash_fd(fd))
    except OSError as error:
        return Hashed(path, None, 0, str(error.strerror))
    finally:
        os.close(fd)

"""Verified bytes: copied into a sealed memfd while they are hashed, so what was checked is what runs.

Between the check and the use nothing can change them: not the owner of the file they came from, not the task, not root
(memfd_create(2), fcntl(2) F_ADD_SEALS). The child may read them through the descriptor that it is given.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import stat
from dataclasses import dataclass

from integrity.digests import Digest
from integrity.errors import FetchError, MalformedError
from vocabulary.durable import write_all

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_CHUNK_BYTES = 1 << 20
_SMALL_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class VerifiedCode:
    """A sealed memfd whose bytes have `digest`. A context manager: leaving it closes `fd`."""

    fd: int
    digest: Digest
    size: int

    def __enter__(self) -> VerifiedCode:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def verify_and_seal(fd: int, expected: Digest, *, max_bytes: int) -> VerifiedCode:
    """Read `fd` once, from its start. Raises `DigestMismatchError`, `MalformedError` for what is no plain file, `FetchError`
    for one that cannot be read."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise MalformedError("the archive's descriptor is not a regular file")
    if not 0 < found.st_size <= max_bytes:
        raise MalformedError(f"the archive is {found.st_size} bytes, the limit is {max_bytes}")
    memfd = os.memfd_create("dagseal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        hasher, size = hashlib.sha512(), 0
        while chunk := _read_at(fd, size):
            size += len(chunk)
            if size > max_bytes:  # it grew while it was read
                raise MalformedError(f"the archive is over the limit of {max_bytes} bytes")
            hasher.update(chunk)
            write_all(memfd, [chunk])
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, SEALS)
        if fcntl.fcntl(memfd, fcntl.F_GET_SEALS) & SEALS != SEALS:
            raise RuntimeError("the kernel did not keep the seals")
        digest = Digest(hasher.hexdigest())
        expected.require(digest, "the archive")
        return VerifiedCode(memfd, digest, size)
    except BaseException:
        os.close(memfd)
        raise


async def seal(fd: int, expected: Digest, *, max_bytes: int) -> VerifiedCode:
    """`verify_and_seal`, in a thread where that takes longer than the thread."""
    if os.fstat(fd).st_size <= _SMALL_BYTES:
        return verify_and_seal(fd, expected, max_bytes=max_bytes)
    return await asyncio.to_thread(verify_and_seal, fd, expected, max_bytes=max_bytes)


def _read_at(fd: int, offset: int) -> bytes:
    try:
        return os.pread(fd, _CHUNK_BYTES, offset)
    except OSError as error:
        raise FetchError(
            f"the archive cannot be read ({error.strerror}): check the disk, then fetch it again"
        ) from None

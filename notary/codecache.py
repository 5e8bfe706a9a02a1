"""What an archive's modules compile to, kept so that only its first launch compiles them.

One cache per warm process, so per unix user and interpreter: code goes from a fork of that process, which compiles and never
runs it (`launcher.task.compiling`), to forks of the same process, and nowhere else. Here it is a sealed memfd beside the
archive's digest: never on disk, never read, never parsed. Without an entry a task compiles for itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from integrity.digests import Digest
from integrity.errors import DagsealError
from launcher.channel import close_all
from launcher.log import log
from notary.sealed import SEALS
from vocabulary.manifest import Manifest

if TYPE_CHECKING:
    from launcher.kinds import Kind
    from notary.warmpool import WarmPool

MAX_ENTRY_BYTES = 16 << 20
MAX_BYTES = 64 << 20
MAX_ENTRIES = 128
LEAST_SOURCE_BYTES = 8 << 10  # some 0.1 ms of compiling per KiB: below this there is nothing to save
_FILL_SECONDS = 30.0


class CodeCache:
    """Of one warm process. The least recently used entries go when there are too many, or too many bytes of them."""

    def __init__(self) -> None:
        # Descriptor and bytes; -1 and 0 of what was tried in vain.
        self._kept: OrderedDict[Digest, tuple[int, int]] = OrderedDict()
        self._filling = False

    @contextlib.contextmanager
    def lend(self, digest: Digest) -> Iterator[list[int]]:
        """For the block: a read-only descriptor of that archive's code that nobody else has, or none."""
        fd, _ = self._kept.get(digest, (-1, 0))
        if fd < 0:
            yield []
            return
        self._kept.move_to_end(digest)
        lent = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield [lent]
        finally:
            os.close(lent)

    def wants(self, manifest: Manifest) -> bool:
        """Whether compiling it is worth a fork; once, whatever comes of it, and one at a time."""
        source = sum(member.size for member in manifest.members if member.name.endswith(".py"))
        return manifest.digest not in self._kept and not self._filling and source >= LEAST_SOURCE_BYTES

    async def fill(self, pool: WarmPool, kind: Kind, job: dict[str, Any], digest: Digest, archive_fd: int) -> None:
        """Have a task process that gets no other job compile the archive of this one. What it dies of is only its own."""
        if self._filling or digest in self._kept:  # by who ended before us
            return
        self._filling = True
        job = {key: job[key] for key in ("name", "digest", "members")} | {"job": "compile"}
        cache, fd, size = self, -1, 0
        try:
            fd = os.memfd_create("dagseal-code", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            task = await pool.take(kind)
            cache = task.warm.codes
            try:
                async with asyncio.timeout(_FILL_SECONDS):
                    await task.ask(job, archive_fd, fd)
                    (await task.answer("compiled")).fields.done()
            finally:
                await pool.give_back(task)
            # Its processes are dead: a mapping that somebody could still write through makes this fail (fcntl(2)).
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
            size = os.fstat(fd).st_size
        except (DagsealError, EOFError, OSError) as error:  # a TimeoutError is an OSError
            log("not-compiled", digest=str(digest), detail=f"{type(error).__name__}: {error}"[:1000])
        finally:
            self._filling = False
            if not 0 < size <= MAX_ENTRY_BYTES:
                close_all([fd])
                fd, size = -1, 0
            cache._keep(digest, fd, size)

    def _keep(self, digest: Digest, fd: int, size: int) -> None:
        if digest in self._kept:
            self._drop(digest)
        self._kept[digest] = fd, size
        while len(self._kept) > MAX_ENTRIES or sum(size for _, size in self._kept.values()) > MAX_BYTES:
            self._drop(next(iter(self._kept)))

    def _drop(self, digest: Digest) -> None:
        fd, _ = self._kept.pop(digest)
        close_all([fd])

    def close(self) -> None:
        for digest in list(self._kept):
            self._drop(digest)

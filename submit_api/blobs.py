"""The store of archive bytes: one file per SHA-512, `<first two digits>/<hex>`, never changed once it is there.

Promise: a name is visible only with exactly its bytes on disk (`integrity.durable`); bytes on their way in are `.tmp-*`
files, gone when their `Upload` is left without `publish`. An existing blob is hashed again before it is relied on, and
replaced when it is bad. Small bodies are written and hashed inline (a thread costs more), large ones in threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

from integrity import durable
from integrity.digests import Digest
from integrity.errors import DigestMismatchError, NotFoundError

T = TypeVar("T")
_READ_BYTES = 1024 * 1024


class BlobStore:
    """Open for the life of the process."""

    def __init__(self, folder: str, *, inline_bytes: int, cached_blob_bytes: int, cache_bytes: int) -> None:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._folders: set[str] = set()  # whose names are on disk
        self._inline_bytes = inline_bytes
        self._cached_blob_bytes = cached_blob_bytes
        self._cache = _Recent(cache_bytes)

    def close(self) -> None:
        os.close(self._fd)

    def upload(self) -> Upload:
        return Upload(self._fd, self._inline_bytes)

    def sweep(self) -> list[str]:
        """Remove what a crash left of uploads. Only at start, before any upload."""
        return durable.sweep(self._fd)

    def leftovers(self) -> list[str]:
        return sorted(name for name in os.listdir(self._fd) if name.startswith(durable.TEMPORARY_PREFIX))

    def check_writable(self) -> None:
        """Raises `OSError` when nothing can be stored now."""
        fd, name = durable.open_temporary(self._fd)
        os.close(fd)
        durable.discard_temporary(self._fd, name)

    async def publish(self, upload: Upload) -> bool:
        """Make the upload's bytes a blob; whether it is new. A good one of that digest stays, a bad one is replaced."""
        return await _in_thread(upload.size > self._inline_bytes, self._publish, upload)

    async def publish_all(self, uploads: Sequence[Upload]) -> None:
        """In one thread: that costs less than one each, and waiting for the disk keeps nobody else."""
        await asyncio.to_thread(lambda: [self._publish(upload) for upload in uploads])

    def _publish(self, upload: Upload) -> bool:
        digest = upload.digest
        if digest.hex[:2] not in self._folders:
            durable.make_folder(self._fd, digest.hex[:2])
            self._folders.add(digest.hex[:2])
        folder = os.open(digest.hex[:2], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            try:
                self._verify(digest)
            except (NotFoundError, DigestMismatchError):
                upload.publish_into(folder, digest.hex)
                return True
            # A process that was killed between its rename and its fsync left a name that is not on disk yet.
            os.fsync(folder)
            return False
        finally:
            os.close(folder)

    async def remove(self, digest: Digest) -> None:
        """Undo a publication whose transaction failed."""
        await asyncio.to_thread(self._remove, digest)

    def _remove(self, digest: Digest) -> None:
        self._cache.drop(digest)
        try:
            os.unlink(_path(digest), dir_fd=self._fd)
        except FileNotFoundError:
            return

    async def verify(self, digest: Digest) -> None:
        """Hash the stored bytes. Raises `DigestMismatchError`, or `NotFoundError` when there are none."""
        await asyncio.to_thread(self._verify, digest)

    def _verify(self, digest: Digest) -> None:
        fd = self.open(digest)
        try:
            digest.require(_hashed(fd), "the stored blob")
        finally:
            os.close(fd)

    def open(self, digest: Digest) -> int:
        """A read descriptor of the blob, unverified: its reader hashes. Raises `NotFoundError`."""
        try:
            return os.open(_path(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        except FileNotFoundError:
            raise NotFoundError(f"there is no blob {digest}") from None

    def small(self, digest: Digest) -> bytes | None:
        """The verified bytes of a small blob, from memory when it was read before; None for a large one."""
        held = self._cache.get(digest)
        if held is not None:
            return held
        fd = self.open(digest)
        try:
            if os.fstat(fd).st_size > self._cached_blob_bytes:
                return None
            data = os.read(fd, self._cached_blob_bytes + 1)
        finally:
            os.close(fd)
        digest.require(Digest.of(data), "the stored blob")
        self._cache.put(digest, data)
        return data

    def names(self) -> Iterator[tuple[str, str]]:
        """Every (folder, file name) below the store, but for temporary files. A stray file has an empty folder."""
        for folder in sorted(os.listdir(self._fd)):
            if folder.startswith(durable.TEMPORARY_PREFIX):
                continue
            if not stat.S_ISDIR(os.stat(folder, dir_fd=self._fd, follow_symlinks=False).st_mode):
                yield "", folder
            else:
                fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
                try:
                    yield from ((folder, name) for name in sorted(os.listdir(fd)))
                finally:
                    os.close(fd)


class Upload:
    """Bytes on their way in, in a temporary file. Use as a context manager: what is not published is removed."""

    def __init__(self, dir_fd: int, inline_bytes: int) -> None:
        self._dir_fd = dir_fd
        self._inline_bytes = inline_bytes
        self._hashed = hashlib.sha512()
        self._held = bytearray()
        self._whole: bytes | bytearray = b""
        self._digest: Digest | None = None
        self._published = False
        # A cancelled request leaves its thread running: the descriptor is closed only when that thread is done with it.
        self._busy = threading.Lock()
        self.size = 0

    def __enter__(self) -> Upload:
        self._fd, self._temporary = durable.open_temporary(self._dir_fd)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._busy:
            os.close(self._fd)
            self._fd = -1
            if not self._published:
                durable.discard_temporary(self._dir_fd, self._temporary)

    async def write(self, chunk: bytes) -> None:
        """Take the next piece; pieces are gathered, and large gatherings are written in a thread. A gathering is one buffer:
        pieces that live longer than the next is read leave holes in memory that nothing fits."""
        self.size += len(chunk)
        self._held += chunk
        self._whole = b""
        if len(self._held) >= _READ_BYTES:
            await asyncio.to_thread(self._flush)

    async def finish(self) -> Digest:
        """Everything was given: the digest of all of it."""
        if self._held:
            await _in_thread(len(self._held) > self._inline_bytes, self._flush)
        self._digest = Digest(self._hashed.hexdigest())
        return self._digest

    @property
    def digest(self) -> Digest:
        if self._digest is None:
            raise RuntimeError("the upload is not finished")
        return self._digest

    def open(self) -> int:
        """A read descriptor of the temporary file."""
        return os.open(self._temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._dir_fd)

    def read(self) -> memoryview:
        """The bytes that have `digest`: a small body's from memory; a large one's as they are on disk now, or this raises
        `DigestMismatchError`. The file is mapped and nobody changes it: what is in memory of it, the kernel takes back."""
        if len(self._whole) == self.size:
            return memoryview(self._whole)
        fd = self.open()
        try:
            self.digest.require(_hashed(fd), "the upload on disk")
            return memoryview(mmap.mmap(fd, self.size, access=mmap.ACCESS_READ))
        finally:
            os.close(fd)

    def publish_into(self, dir_fd: int, name: str) -> None:
        with self._busy:
            durable.publish_temporary(self._dir_fd, self._temporary, self._fd, dir_fd, name)
            self._published = True

    def _flush(self) -> None:
        with self._busy:
            self._hashed.update(self._held)
            durable.write_all(self._fd, [self._held])
            self._whole = self._held if len(self._held) == self.size else b""
            self._held = bytearray()


class _Recent:
    """Least recently used bytes, at most so many. Blobs never change, so nothing here goes stale."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def get(self, digest: Digest) -> bytes | None:
        data = self._held.get(digest.hex)
        if data is not None:
            self._held.move_to_end(digest.hex)
        return data

    def put(self, digest: Digest, data: bytes) -> None:
        self.drop(digest)
        self._held[digest.hex] = data
        self._bytes += len(data)
        while self._bytes > self._most_bytes:
            _, dropped = self._held.popitem(last=False)
            self._bytes -= len(dropped)

    def drop(self, digest: Digest) -> None:
        self._bytes -= len(self._held.pop(digest.hex, b""))


def _hashed(fd: int) -> Digest:
    hashed = hashlib.sha512()
    while chunk := os.read(fd, _READ_BYTES):
        hashed.update(chunk)
    return Digest(hashed.hexdigest())


def _path(digest: Digest) -> str:
    return f"{digest.hex[:2]}/{digest.hex}"


async def _in_thread(threaded: bool, call: Callable[..., T], *arguments: object) -> T:
    return await asyncio.to_thread(call, *arguments) if threaded else call(*arguments)

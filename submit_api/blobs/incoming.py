"""Bytes on their way in, local whatever the store is: they are hashed, inspected and described here.

Promise: large ones are `.tmp-*` files, gone when their `Upload` is left without being published. Small bodies are in memory
until then, so one that is refused never was on disk, and are hashed inline (a thread costs more).
"""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from integrity.digests import Digest
from submit_api.blobs.recent import Recent
from vocabulary import durable

T = TypeVar("T")
READ_BYTES = 1024 * 1024


class Incoming(ABC):
    """What every store is first: a folder of uploads, the folder store's own or one beside a bucket; and small blobs in
    memory."""

    def __init__(self, folder: str, *, inline_bytes: int, cached_blob_bytes: int, cache_bytes: int) -> None:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._inline_bytes = inline_bytes
        self._cached_blob_bytes = cached_blob_bytes
        self._cache = Recent(cache_bytes)

    def close(self) -> None:
        os.close(self._fd)

    def upload(self) -> Upload:
        return Upload(self._fd, self._inline_bytes)

    async def small(self, digest: Digest, size: int) -> bytes | None:
        if size > self._cached_blob_bytes:
            return None
        held = self._cache.get(digest)
        if held is None:
            held = await self._fetch(digest, size)
            digest.require(Digest.of(held), "the stored blob")
            self._cache.put(digest, held)
        return held

    @abstractmethod
    async def _fetch(self, digest: Digest, size: int) -> bytes:
        """What is stored of a small blob, unverified. Raises `NotFoundError`, and what the store does."""

    async def sweep(self) -> list[str]:
        return await asyncio.to_thread(durable.sweep, self._fd)

    async def leftovers(self) -> list[str]:
        names = await asyncio.to_thread(os.listdir, self._fd)
        return sorted(name for name in names if name.startswith(durable.TEMPORARY_PREFIX))

    async def check_writable(self) -> None:
        """Raises `OSError` when nothing can be taken in now."""
        await asyncio.to_thread(self._check_writable)

    def _check_writable(self) -> None:
        fd, name = durable.open_temporary(self._fd)
        os.close(fd)
        durable.discard_temporary(self._fd, name)


class Upload:
    """Bytes on their way in. Use as a context manager: what is not published is removed."""

    def __init__(self, dir_fd: int, inline_bytes: int) -> None:
        self._dir_fd = dir_fd
        self._inline_bytes = inline_bytes
        self._hashed = hashlib.sha512()
        self._held = bytearray()
        self._whole: bytes | bytearray = b""
        self._digest: Digest | None = None
        self._file: tuple[int, str] | None = None  # descriptor and temporary name, once there is one
        self._published = self._left = False
        # A cancelled request leaves its thread running: the descriptor is closed only when that thread is done with it.
        self._busy = threading.Lock()
        self.size = 0

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._busy:
            self._left = True
            if self._file is None:
                return
            fd, temporary = self._file
            os.close(fd)
            if not self._published:
                durable.discard_temporary(self._dir_fd, temporary)

    async def write(self, chunk: bytes) -> None:
        """Take the next piece; pieces are gathered, and large gatherings are written in a thread. A gathering is one buffer:
        pieces that live longer than the next is read leave holes in memory that nothing fits."""
        self.size += len(chunk)
        self._held += chunk
        self._whole = b""
        if len(self._held) > READ_BYTES:
            await asyncio.to_thread(self._flush)

    async def finish(self) -> Digest:
        """Everything was given: the digest of all of it."""
        if self.size <= self._inline_bytes:
            self._hashed.update(self._held)
            self._whole = self._held
        else:
            await asyncio.to_thread(self._flush, last=True)
        self._digest = Digest(self._hashed.hexdigest())
        return self._digest

    @property
    def digest(self) -> Digest:
        if self._digest is None:
            raise RuntimeError("the upload is not finished")
        return self._digest

    def open(self) -> int:
        """A read descriptor of the bytes."""
        if self._file is not None:
            return os.open(self._file[1], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._dir_fd)
        fd = os.memfd_create("upload", os.MFD_CLOEXEC)
        try:
            durable.write_all(fd, [self._whole])
            os.lseek(fd, 0, os.SEEK_SET)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def read(self) -> memoryview:
        """The bytes that have `digest`: a small body's from memory; a large one's as they are on disk now, or this raises
        `DigestMismatchError`. The file is mapped and nobody changes it: what is in memory of it, the kernel takes back."""
        if len(self._whole) == self.size:
            return memoryview(self._whole)
        fd = self.open()
        try:
            self.digest.require(hashed(fd), "the upload on disk")
            return memoryview(mmap.mmap(fd, self.size, access=mmap.ACCESS_READ))
        finally:
            os.close(fd)

    def publish_into(self, dir_fd: int, name: str) -> None:
        with self._busy:
            if self._file is None:
                # Beside its name: to make it in the one folder of all uploads takes the file system three times as long.
                durable.publish(dir_fd, name, [self._whole])
                return
            fd, temporary = self._file
            durable.publish_temporary(self._dir_fd, temporary, fd, dir_fd, name)
            self._published = True

    def _flush(self, *, last: bool = False) -> None:
        with self._busy:
            if self._left:
                return
            self._hashed.update(self._held)
            if self._file is None:
                self._file = durable.open_temporary(self._dir_fd)
            durable.write_all(self._file[0], [self._held])
            if last:  # it is synced again before it gets its name, but by then the one writer would wait for all of it
                os.fsync(self._file[0])
            if len(self._held) == self.size:
                self._whole = self._held
            self._held = bytearray()


def hashed(fd: int) -> Digest:
    """Of all that is in this file."""
    made = hashlib.sha512()
    while chunk := os.read(fd, READ_BYTES):
        made.update(chunk)
    return Digest(made.hexdigest())


async def in_thread(threaded: bool, call: Callable[..., T], *arguments: object) -> T:
    return await asyncio.to_thread(call, *arguments) if threaded else call(*arguments)

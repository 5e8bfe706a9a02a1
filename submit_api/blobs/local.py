"""Blobs in a folder: one file per SHA-512, `<first two digits>/<hex>`.

Promise, beyond the store's: a name is visible only with exactly its bytes on disk (`vocabulary.durable`). Small bodies are
handled inline, large ones in threads. What a crash leaves of an upload is in this folder, or beside the name of a small one.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

from integrity.digests import Digest
from integrity.errors import DigestMismatchError, NotFoundError
from submit_api.blobs.incoming import READ_BYTES, Incoming, Upload, hashed, in_thread
from vocabulary import durable

_THREADS = 4
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class LocalStore(Incoming):
    """`submit_api.blobs.store`, in the folder of its uploads."""

    def __init__(self, folder: str, *, inline_bytes: int, cached_blob_bytes: int, cache_bytes: int) -> None:
        super().__init__(
            folder, inline_bytes=inline_bytes, cached_blob_bytes=cached_blob_bytes, cache_bytes=cache_bytes
        )
        self._folders: set[str] = set()  # whose names are on disk

    async def claim(self) -> None:
        """The lock of the state folder has done it."""

    async def publish(self, upload: Upload) -> bool:
        return await in_thread(upload.size > self._inline_bytes, self._publish, upload)

    async def publish_all(self, uploads: Sequence[Upload]) -> None:
        """In a few threads: a thread for each costs more than it gives, and files that are synced at the same time share what
        the file system writes down for them. To the end of each: an upload's file is gone when its submission was answered."""
        shares = [uploads[at::_THREADS] for at in range(min(_THREADS, len(uploads)))]
        done = await asyncio.gather(
            *(asyncio.to_thread(self._publish_each, share) for share in shares), return_exceptions=True
        )
        for outcome in done:
            if isinstance(outcome, BaseException):
                raise outcome

    def _publish_each(self, uploads: Sequence[Upload]) -> None:
        for upload in uploads:
            self._publish(upload)

    def _publish(self, upload: Upload) -> bool:
        digest = upload.digest
        if digest.hex[:2] not in self._folders:
            durable.make_folder(self._fd, digest.hex[:2])
            self._folders.add(digest.hex[:2])
        folder = os.open(digest.hex[:2], _FOLDER, dir_fd=self._fd)
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
        await asyncio.to_thread(self._remove, digest)

    def _remove(self, digest: Digest) -> None:
        self._cache.drop(digest)
        try:
            os.unlink(path_of(digest), dir_fd=self._fd)
        except FileNotFoundError:
            return

    async def verify(self, digest: Digest) -> None:
        await asyncio.to_thread(self._verify, digest)

    def _verify(self, digest: Digest) -> None:
        fd = self._open(digest)
        try:
            digest.require(hashed(fd), "the stored blob")
        finally:
            os.close(fd)

    def _open(self, digest: Digest) -> int:
        try:
            return os.open(path_of(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        except FileNotFoundError:
            raise NotFoundError(f"there is no blob {digest}") from None

    async def _fetch(self, digest: Digest, size: int) -> bytes:
        fd = self._open(digest)
        try:
            return os.read(fd, size + 1)
        finally:
            os.close(fd)

    async def read(self, digest: Digest, first: int, last: int) -> AsyncGenerator[bytes, None]:
        fd = self._open(digest)
        try:
            while first <= last:
                piece = await asyncio.to_thread(os.pread, fd, min(READ_BYTES, last - first + 1), first)
                if not piece:
                    raise DigestMismatchError("the stored blob is shorter than its release says")
                yield piece
                first += len(piece)
        finally:
            os.close(fd)

    async def names(self) -> AsyncIterator[tuple[str, str]]:
        for folder in sorted(os.listdir(self._fd)):
            if folder.startswith(durable.TEMPORARY_PREFIX):
                continue
            if not self._is_folder(folder):
                yield "", folder
            else:
                for name in sorted(self._in(folder, os.listdir)):
                    if not name.startswith(durable.TEMPORARY_PREFIX):
                        yield folder, name

    async def sweep(self) -> list[str]:
        return await super().sweep() + await asyncio.to_thread(self._in_all, durable.sweep)

    async def leftovers(self) -> list[str]:
        inside = await asyncio.to_thread(self._in_all, os.listdir)
        return await super().leftovers() + [name for name in inside if f"/{durable.TEMPORARY_PREFIX}" in name]

    def _in_all(self, look: Callable[[int], list[str]]) -> list[str]:
        folders = filter(self._is_folder, sorted(os.listdir(self._fd)))
        return [f"{folder}/{name}" for folder in folders for name in sorted(self._in(folder, look))]

    def _in(self, folder: str, look: Callable[[int], list[str]]) -> list[str]:
        fd = os.open(folder, _FOLDER, dir_fd=self._fd)
        try:
            return look(fd)
        finally:
            os.close(fd)

    def _is_folder(self, name: str) -> bool:
        return stat.S_ISDIR(os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mode)


def path_of(digest: Digest) -> str:
    """Where a blob is in its store."""
    return f"{digest.hex[:2]}/{digest.hex}"

"""What a store of blobs promises, wherever it is. Both stores pass the same tests.

A name is there only with exactly its bytes, and stays when `publish` has returned. Nothing that the store holds is trusted:
an existing blob is hashed again before it is relied on, and replaced when it is bad. A store that is away raises
`UnavailableError`, a full one `NoSpaceError` or `OSError`; then nothing counts as stored, though a blob may be left that
nothing names.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Protocol

from integrity.digests import Digest
from submit_api.blobs.incoming import Upload


class BlobStore(Protocol):
    """Open for the life of the process."""

    def upload(self) -> Upload:
        """Bytes on their way in: a local file, in either store."""

    async def publish(self, upload: Upload) -> bool:
        """Make the upload's bytes a blob; whether it is new. A good one of that digest stays, a bad one is replaced."""

    async def publish_all(self, uploads: Sequence[Upload]) -> None:
        """`publish` each. When it raises, any of them may be there."""

    async def remove(self, digest: Digest) -> None:
        """That it is gone; no blob is fine."""

    async def verify(self, digest: Digest) -> None:
        """Hash the stored bytes. Raises `DigestMismatchError`, or `NotFoundError` when there are none."""

    async def small(self, digest: Digest, size: int) -> bytes | None:
        """The verified bytes of a small blob, from memory when it was read before; None for a large one."""

    def read(self, digest: Digest, first: int, last: int) -> AsyncGenerator[bytes, None]:
        """The bytes from `first` to `last`, unverified: its reader hashes. The first piece, or `NotFoundError`, comes before
        anything else. Raises `DigestMismatchError` for a blob that ends before `last`."""

    def names(self) -> AsyncIterator[tuple[str, str]]:
        """Every (folder, name) in the store, but for its own files. A stray one has an empty folder."""

    async def leftovers(self) -> list[str]:
        """What a crash left of uploads."""

    async def sweep(self) -> list[str]:
        """Remove it. Only at start, before any upload."""

    async def check_writable(self) -> None:
        """Raises `OSError` or `UnavailableError` when nothing can be stored now."""

    async def claim(self) -> None:
        """By who removes blobs, before: nobody else's are here. Raises `SettingsError`, `UnavailableError`."""

    def close(self) -> None: ...

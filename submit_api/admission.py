"""How much at once: so that neither one caller nor all of them together can fill this process's memory, or the disk.

Promise: a principal has at most so many uploads under way, the next is refused at once and sends nothing; and only so many
archives are read into memory at one time, the others wait with their bytes on disk.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager

from submit_api.refusals import TooManyUploadsError


class Admission:
    """For the life of the process; in one event loop."""

    def __init__(self, *, uploads_per_principal: int, inspections: int) -> None:
        self._most = uploads_per_principal
        self._under_way: Counter[str] = Counter()
        self._inspections = asyncio.Semaphore(inspections)

    @contextmanager
    def uploading(self, principal: str) -> Iterator[None]:
        """Raises `TooManyUploadsError`."""
        if self._under_way[principal] >= self._most:
            raise TooManyUploadsError(
                f"{principal} has {self._most} uploads under way: send it again when one has ended"
            )
        self._under_way[principal] += 1
        try:
            yield
        finally:
            self._under_way[principal] -= 1
            if not self._under_way[principal]:
                del self._under_way[principal]

    def inspecting(self) -> AbstractAsyncContextManager[None]:
        """Wait for the turn to read an archive."""
        return self._inspections

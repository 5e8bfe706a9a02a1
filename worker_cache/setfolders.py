"""Sets of releases for local processes: told to the API before anybody hears of them, and as folders.

Promise: a version that was given out is known to the API, so that a run pinned to it can be reserved. A folder holds each
archive under its own name, made from verified bytes and looked through each time (`worker_cache.trees`). For a set, and only
for what is in it, the agent fetches what it does not hold yet.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from integrity.digests import Digest
from integrity.errors import NotFoundError
from vocabulary.logview import LoggedRelease, LogView
from worker_cache import sets, trees
from worker_cache.authors import Authors
from worker_cache.readers import Reader
from worker_cache.sets import ReleaseSet
from worker_cache.trees import Trees, Wanted

MAX_KNOWN = 1000

Put = Callable[[bytes], Awaitable[str]]  # the API's; so is Get, by its name
Get = Callable[[str], Awaitable[bytes]]
Fetch = Callable[[LoggedRelease], Awaitable[int]]  # a verified descriptor, the caller's to close


@dataclass(slots=True, kw_only=True)
class SetFolders:
    """For one event loop. `view` is the newest, and raises `StaleError` or `ForkError`; `changed`: the log says more."""

    put: Put
    get: Get
    view: Callable[[], LogView]
    fetch: Fetch
    trees: Trees | None
    authors: Authors
    _known: OrderedDict[Digest, bytes] = field(default_factory=OrderedDict)
    _telling: asyncio.Lock = field(default_factory=asyncio.Lock)
    _making: asyncio.Lock = field(default_factory=asyncio.Lock)
    _waiting: set[asyncio.Event] = field(default_factory=set)

    def changed(self) -> None:
        for event in self._waiting:
            event.set()

    async def active(self, reader: Reader, globs: Sequence[str]) -> ReleaseSet | None:
        """The API knows it. Raises `FetchError`, or why it will not have it."""
        found = sets.active(self.view(), reader, globs, self.authors)
        if found is not None:
            async with self._telling:
                if found.digest not in self._known:
                    await self.put(found.to_bytes())
                self._remember(found.digest, found.to_bytes())
        return found

    async def recalled(self, reader: Reader, globs: Sequence[str], digest: Digest) -> ReleaseSet:
        """One that was given out before, here or elsewhere."""
        body = self._known.get(digest) or await self.get(digest.hex)
        found = sets.recalled(body, digest, self.view(), reader, globs, self.authors)
        self._remember(digest, body)
        return found

    async def folder(self, found: ReleaseSet) -> str:
        """Its path. Raises `FetchError`, `NotFoundError` where this agent makes no folders."""
        if self.trees is None:
            raise NotFoundError("this agent makes no folders: set trees_dir, or ask for the version")
        archives = self.view().archives
        wanted = Wanted(
            name=f"set {found.digest.hex}",
            hands=tuple(trees.hands_of(archives[one.archive]) for one in found.releases),
            files={one.archive: one.digest for one in found.releases},
            size=sum(one.size for one in found.releases),
        )
        async with self._making:
            path = await asyncio.to_thread(self.trees.find, wanted)
            if path is None:
                path = await self._make(self.trees, wanted, found)
        return path

    async def _make(self, there: Trees, wanted: Wanted, found: ReleaseSet) -> str:
        with there.begin(wanted) as draft:
            for release in found.releases:
                fd = await self.fetch(release)
                try:
                    draft.add(release.archive, trees.read_all(fd))
                finally:
                    os.close(fd)
            return draft.publish()

    def watch(self) -> asyncio.Event:
        """Set whenever the log says more; to be given to `unwatch`."""
        event = asyncio.Event()
        self._waiting.add(event)
        return event

    def unwatch(self, event: asyncio.Event) -> None:
        self._waiting.discard(event)

    def _remember(self, digest: Digest, body: bytes) -> None:
        self._known[digest] = body
        self._known.move_to_end(digest)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

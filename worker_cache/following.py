"""The agent follows the server's log, and launches what it says may be launched.

Promise: an update is known when it was checked whole (`worker_cache.logrules`) and is on disk; a refused one changes nothing.
What is known is good for launches while the newest checkpoint is fresh: who keeps the log from this agent stops its launches,
he does not turn back time. Of a fork both checkpoints are kept, and nothing is launched until somebody has decided.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress

import structlog

from integrity.errors import (
    DagsealError,
    FetchError,
    MalformedError,
    NotFoundError,
    SecurityError,
    StaleError,
)
from vocabulary import checkpoints, tiles
from vocabulary.keys import VerifyKey
from vocabulary.lognews import Blob
from vocabulary.logview import LoggedRelease, LogView, RevokedError
from vocabulary.manifest import VerifiedManifest
from worker_cache import logrules
from worker_cache.client import Client
from worker_cache.logrules import Announced, Followed, ForkError
from worker_cache.logstore import LogStore

CHECKPOINT_SECONDS = 10.0
SYNC_SECONDS = 600.0
LAUNCH_SECONDS = 20.0
RENEW_SECONDS = 60
INLINE_LEAVES = 64  # to check this many takes about as long as a hop to a thread and back

Changed = Callable[[LogView], None]
Offer = Callable[[Sequence[Blob]], None]
Pause = Callable[[float], Awaitable[bool]]


class Follower:
    """Of one server's log, for one event loop. `changed` is told what the log says, when it says more than before; before that
    `offer` is given the blobs that came with it, which nobody has verified."""

    def __init__(
        self,
        api: Client,
        store: LogStore,
        known: Followed,
        *,
        pinned: VerifyKey,
        max_age_seconds: int,
        now: Callable[[], float],
        log: structlog.typing.FilteringBoundLogger,
        changed: Changed = lambda view: None,
        offer: Offer = lambda blobs: None,
    ) -> None:
        self._api = api
        self._store = store
        self._known = known
        self._kept_time = known.newest.checkpoint.time if known.newest is not None else 0
        self._unsure = False
        self._pinned = pinned
        self._max_age_seconds = max_age_seconds
        self._now = now
        self._log = log
        self._changed = changed
        self._offer = offer
        self._fork = store.fork()
        self.alarm = ""  # why the server's word was not believed the last time, if so
        self._syncing = asyncio.Lock()
        self._settling: asyncio.Task[None] | None = None

    @property
    def known(self) -> Followed:
        return self._known

    @property
    def view(self) -> LogView:
        """What the log says, for whoever decides by it. Raises `StaleError`, `ForkError`."""
        self._require_no_fork()
        newest = self._known.newest
        if newest is None:
            raise StaleError("nothing is known of the server's log yet: it says what may be launched")
        self._require_fresh(newest.checkpoint)
        return self._known.view

    @property
    def keys(self) -> tuple[VerifyKey, ...]:
        """The server's, in order; the last one signs now."""
        return self._known.view.keys or (self._pinned,)

    async def follow(self, pause: Pause, delays: Callable[[], Iterator[float]], *, seconds: float) -> None:
        """Ask every so many seconds, less often while it fails, until `pause` says that the agent is to stop."""
        self._changed(self._known.view)
        waits, told = delays(), ""
        going_on = True
        while going_on:
            try:
                await self.sync()
            except DagsealError as error:
                self.alarm = str(error) if isinstance(error, SecurityError) else self.alarm
                if error.slug != told:
                    self._say(error)
                told = error.slug
                going_on = await pause(max(seconds, next(waits)))
            else:
                waits, told, self.alarm = delays(), "", ""
                going_on = await pause(seconds)

    def _say(self, error: DagsealError) -> None:
        say = self._log.error if isinstance(error, SecurityError) else self._log.warning
        say("log not followed", slug=error.slug, error=str(error))

    async def sync(self, *, unless: Callable[[], bool] = lambda: False) -> None:
        """Know what the server says now, `unless` that is not needed any more when it is this one's turn. Raises `FetchError`,
        or another error that says why it is refused."""
        async with self._syncing, _within(SYNC_SECONDS, "the log was not fetched"):
            try:
                if not unless():
                    await self._sync()
            except OSError as error:
                self._unsure = True
                raise FetchError(
                    f"the log cannot be kept, as the cache cannot be written: {error}; make room or repair the disk"
                ) from None

    async def _sync(self) -> None:
        self._require_no_fork()
        if self._unsure:
            self._known, self._unsure = self._store.load(self._pinned), False
        known = self._known
        async with _within(CHECKPOINT_SECONDS, "the log's checkpoint did not come"):
            note = await self._api.log_checkpoint()
        if known.newest is not None and note == known.newest.note:  # byte for byte, so it was checked
            self._require_fresh(known.newest.checkpoint)
            return
        try:
            found = logrules.announced(known, note, pinned=self._pinned)
            entries, blobs = await self._fetch(found)
            if len(entries) <= INLINE_LEAVES:
                update = logrules.grown(known, found, entries, pinned=self._pinned)
            else:
                update = await asyncio.to_thread(logrules.grown, known, found, entries, pinned=self._pinned)
        except ForkError as error:
            raise self._forked(note, error) from None
        self._require_fresh(found.checkpoint)
        # From here on nothing is awaited: nobody who goes away leaves the disk and what is known apart.
        if entries or found.checkpoint.time >= self._kept_time + RENEW_SECONDS:
            self._store.keep(update)
            self._kept_time = found.checkpoint.time
        self._known = update.followed
        if entries:
            self._settling = asyncio.create_task(self._settle())
            self._log.info("log followed", size=found.checkpoint.size, leaves=len(entries))
            self._offer(blobs)
            self._changed(update.followed.view)

    async def _settle(self) -> None:
        """Nobody waits for it: what it writes again is on disk already. Where it fails, the next update fails and says so."""
        with suppress(OSError):
            await asyncio.to_thread(self._store.settle)

    async def _fetch(self, found: Announced) -> tuple[list[bytes], list[Blob]]:
        """The entries after those that are known, and what came with them. Raises `FetchError`, `MalformedError`,
        `SignatureError`."""
        start, end, left = self._known.tree.size, found.checkpoint.size, 0
        if start < end:
            left = found.max_bytes(self._known)
        entries: list[bytes] = []
        blobs: list[Blob] = []
        while start + len(entries) < end:
            at = start + len(entries)
            if end - at <= INLINE_LEAVES:
                data, blobs = await self._api.log_news(at, end)
            else:
                data = await self._api.log_entries(at, end)
            left -= len(data)
            more = tiles.entries_of(data)
            if not more or left < 0 or at + len(more) > end:
                raise MalformedError(
                    f"asked for the log's leaves from {at} to {end}, the server sent none, or too much"
                )
            entries += more
        return entries, blobs

    def _forked(self, note: bytes, error: ForkError) -> ForkError:
        known = self._known.newest
        self._fork = "log/evidence"
        if known is not None:
            self._fork = self._store.keep_evidence(known.note, note)
        self._log.error("the log forked", error=str(error), evidence=self._fork)
        return ForkError(f"{error}; both checkpoints are in {self._fork} of the cache")

    def _require_no_fork(self) -> None:
        if self._fork is not None:
            raise ForkError(
                f"the server showed two logs, see {self._fork} of the cache: nothing is launched here until somebody found out "
                "why and moved the folder log away"
            )

    def _require_fresh(self, found: checkpoints.Checkpoint) -> None:
        checkpoints.require_fresh(found, now=int(self._now()), max_age_seconds=self._max_age_seconds)

    async def require_launchable(self, found: VerifiedManifest) -> LoggedRelease:
        """The log's word of exactly this release, where it says that it may be launched. Who was not told yet asks once.

        Raises `NotFoundError`, `DigestMismatchError`, `RevokedError`; `StaleError` where what is known is too old to tell,
        `ForkError`; or why it could not be asked."""
        try:
            return self._decide(found)
        except (StaleError, NotFoundError, RevokedError) as error:
            refusal = error
        try:
            async with _within(LAUNCH_SECONDS, "the log was not fetched"):
                await self.sync(unless=lambda: self._is_launchable(found))
        except FetchError as error:
            if isinstance(refusal, NotFoundError):
                raise
            raise type(refusal)(f"{refusal}; asked again: {error}") from None
        return self._decide(found)

    def _is_launchable(self, found: VerifiedManifest) -> bool:
        try:
            self._decide(found)
        except DagsealError:
            return False
        return True

    def _decide(self, found: VerifiedManifest) -> LoggedRelease:
        stated, view = found.manifest, self.view
        return view.require_launchable(stated.archive, stated.number, digest=stated.digest, manifest=found.digest)


@asynccontextmanager
async def _within(seconds: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise FetchError(f"{what} within {seconds:g} s: try again, or look at the server") from None

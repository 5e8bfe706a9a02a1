"""Where bytes come from: the API, and mirrors, in the order in which they are asked.

Promise: a mirror is sent no token and no signature, and is believed in nothing: what it sends is capped and hashed like all
else. Redirects are not followed. One that lied is asked nothing for ten minutes, and that it did is in the log; one that
failed rests for half a minute, so that a dead mirror costs one launch its timeout and not every one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

import structlog

from integrity.digests import Digest
from worker_cache.transport import Transport

LIAR_RESTS_SECONDS = 600.0
FAILED_RESTS_SECONDS = 30.0
API_LAYOUT = "/v1/blobs"

Fetch = Callable[[Digest, int], AsyncGenerator[bytes, None]]
_log = structlog.get_logger("worker_cache")


@dataclass(slots=True, kw_only=True)
class Source:
    """`fetch` gives the bytes from an offset on. Slower than `least_bytes_per_second`, it counts as failed."""

    name: str
    fetch: Fetch
    is_mirror: bool
    least_bytes_per_second: int
    patience_seconds: float
    rests_until: float = 0.0


def api_source(fetch: Fetch) -> Source:
    """The one that never rests: what it has is the last word."""
    return Source(name="the API", fetch=fetch, is_mirror=False, least_bytes_per_second=16 * 1024, patience_seconds=60.0)


def mirror_source(url: str, transport: Transport) -> Source:
    """`transport` is the mirror's own: without token and signer. A base that ends in `/v1/blobs` is asked as a dagseal API is,
    any other for `sha512/<two digits>/<hex>`."""

    def fetch(digest: Digest, start: int) -> AsyncGenerator[bytes, None]:
        folder = "" if url.rstrip("/").endswith(API_LAYOUT) else f"{digest.hex[:2]}/"
        return transport.stream(f"/sha512/{folder}{digest.hex}", start=start)

    return Source(name=url, fetch=fetch, is_mirror=True, least_bytes_per_second=256 * 1024, patience_seconds=5.0)


class Sources:
    """All of them."""

    def __init__(
        self, api: Source, mirrors: Sequence[Source], *, mirrors_first: bool, clock: Callable[[], float]
    ) -> None:
        self._ordered = [*mirrors, api] if mirrors_first else [api, *mirrors]
        self._clock = clock

    def awake(self) -> list[Source]:
        now = self._clock()
        return [source for source in self._ordered if source.rests_until <= now]

    def lied(self, source: Source, digest: Digest, detail: str) -> None:
        if source.is_mirror:
            source.rests_until = self._clock() + LIAR_RESTS_SECONDS
            _log.error("mirror lied", mirror=source.name, digest=str(digest), detail=detail)

    def failed(self, source: Source, digest: Digest, detail: str) -> None:
        if source.is_mirror:
            source.rests_until = self._clock() + FAILED_RESTS_SECONDS
            _log.warning("mirror failed", mirror=source.name, digest=str(digest), detail=detail)

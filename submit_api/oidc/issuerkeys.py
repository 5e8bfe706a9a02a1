"""When an issuer's keys are fetched, and how long they are believed: a cache of one issuer.

Promise: an issuer is asked at most once in `refetch_seconds`, whatever callers send, and all who wait share that one fetch.
While it answers, a key that it took back is believed for `keys_seconds` at most. While it does not, its last keys stay good for
`stale_keys_seconds`; what cannot be told then is a `FetchError` (503), never a yes.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from integrity.errors import FetchError
from submit_api.effects import Clock
from submit_api.oidc.keysets import Key, KeySet
from submit_api.oidc.section import IssuerSection, OidcSection
from submit_api.refusals import UnauthenticatedError

_log = structlog.get_logger("submit_api")


class Fetcher(Protocol):
    """The network."""

    async def fetch(self, issuer: IssuerSection) -> KeySet:
        """The keys that it publishes now. Raises `FetchError`."""


class IssuerKeys:
    """One issuer's keys. `find` is all that others call."""

    def __init__(self, issuer: IssuerSection, limits: OidcSection, fetcher: Fetcher, clock: Clock) -> None:
        self._issuer, self._limits, self._fetcher, self._clock = issuer, limits, fetcher, clock
        self._held: KeySet | None = None
        self._held_at = self._tried_at = 0
        self._failing = False
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, kid: str) -> Key:
        """The one key of this id. Raises `UnauthenticatedError` when the issuer has none or two, `FetchError` when it
        cannot be asked."""
        held = self._believed(self._limits.keys_seconds)
        if held is None or not held.knows(kid):
            await self._refresh()
            held = self._believed(self._limits.stale_keys_seconds)
        name = self._issuer.name
        if held is None or (self._failing and not held.knows(kid)):
            raise FetchError(f"the keys of issuer {name} cannot be fetched now: try again later")
        if kid in held.doubled:
            raise UnauthenticatedError(f"issuer {name} publishes two keys of the id that this token names")
        if kid not in held.keys:
            raise UnauthenticatedError(
                f"issuer {name} publishes no signing key of the id that this token names: get a new token"
            )
        return held.keys[kid]

    def _believed(self, seconds: float) -> KeySet | None:
        return self._held if self._within(self._held_at, seconds) else None

    def _within(self, since: int, seconds: float) -> bool:
        """A clock that was set back makes everything old."""
        return 0 <= self._clock.now_us() - since < seconds * 1_000_000

    async def _refresh(self) -> None:
        if self._fetching is None:
            if self._within(self._tried_at, self._limits.refetch_seconds):
                return
            self._tried_at = self._clock.now_us()
            self._fetching = asyncio.create_task(self._fetch())
        # Who goes away must not take the fetch from those who still wait for it.
        await asyncio.shield(self._fetching)

    async def _fetch(self) -> None:
        try:
            self._held = await self._fetcher.fetch(self._issuer)
            self._held_at, self._failing = self._clock.now_us(), False
        except FetchError as error:
            self._failing = True
            _log.warning("issuer_keys_not_fetched", issuer=self._issuer.name, detail=str(error))
        finally:
            self._fetching = None

"""What choices rest on, read from one transaction, each thing once: a batch of launches asks for the same few again and again.

Promise: nothing outlives the transaction. It is for one that changes none of these things.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar

from submit_api.registry import archives, ownership, people, secrets
from submit_api.registry.database import Transaction
from submit_api.registry.records import Archive, Queue, Release, Rule
from submit_api.service import Service
from vocabulary.manifest import VerifiedManifest

T = TypeVar("T")


class Facts:
    """Of the moment at which the transaction began."""

    def __init__(self, service: Service, tx: Transaction) -> None:
        self.service, self.tx = service, tx
        self._known: dict[tuple[Any, ...], Any] = {}

    async def expect(self, dags: Collection[str]) -> None:
        """Find the archives of all these dags at once."""
        names = await archives.archives_of_dags(self.tx, dags)
        found = await archives.named(self.tx, sorted(set(names.values())))
        for dag_id in dags:
            self._known["archive", dag_id] = found.get(names.get(dag_id, ""))

    async def archive_of(self, dag_id: str) -> Archive | None:
        if ("archive", dag_id) not in self._known:
            await self.expect([dag_id])
        found: Archive | None = self._known["archive", dag_id]
        return found

    async def release(self, archive: str, number: int) -> Release | None:
        return await self._once(("release", archive, number), lambda: archives.release(self.tx, archive, number))

    async def manifest_of(self, release: Release) -> VerifiedManifest:
        key = ("manifest", release.archive, release.number)
        return await self._once(key, lambda: self.service.manifest_of(release))

    async def queue(self, name: str) -> Queue | None:
        return await self._once(("queue", name), lambda: ownership.queue(self.tx, name))

    async def groups_of(self, principal: str) -> frozenset[str]:
        return await self._once(("groups", principal), lambda: people.groups_of(self.tx, principal))

    async def groups_behind(self, release: Release) -> frozenset[str]:
        key = ("behind", release.owner, release.group)
        return await self._once(key, lambda: people.groups_behind(self.tx, release.owner, release.group))

    async def rules(self) -> list[Rule]:
        return await self._once(("rules",), lambda: secrets.rules(self.tx))

    async def granted_names(self, reader: str, groups: frozenset[str]) -> set[tuple[str, str]]:
        return await self._once(("granted", reader, groups), lambda: secrets.granted_names(self.tx, reader, groups))

    async def stored_names(self, wanted: frozenset[tuple[str, str]]) -> set[str]:
        async def read() -> set[str]:
            return {secret.name for secret in await secrets.of_names(self.tx, wanted)}

        return await self._once(("stored", wanted), read)

    async def _once(self, key: tuple[Any, ...], read: Callable[[], Awaitable[T]]) -> T:
        if key not in self._known:
            self._known[key] = await read()
        found: T = self._known[key]
        return found

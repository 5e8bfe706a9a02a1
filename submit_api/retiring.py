"""Retention: releases that nothing uses any more give up their bytes. Their rows, manifests and events stay for good.

Promise: never retired are the active release and the newest ones, what waits for approval, what any launch of a run used
that has not ended, and what was launched or active within the last days. The row is changed first, with its audit event;
its blob is removed after that commit, under the same writer lock, when no other release has these bytes. So nothing is ever
recorded as kept whose bytes are gone. A crash in between leaves bytes that the next start removes; `fsck` knows them.
Sets (`vocabulary.sets`) go by the same setting, when nothing was put or reserved by them for as many days.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from integrity.digests import Digest
from submit_api import audit
from submit_api.registry import archives, released_sets, retention
from submit_api.registry.retention import Head
from submit_api.service import Service

_DAY_US = 86_400 * 1_000_000
_AT_ONCE = 50  # so long is the writer lock held


def retirable(
    heads: Sequence[Head], latest: Mapping[str, int], used: Collection[tuple[str, int]], *, keep: int, before_us: int
) -> list[Head]:
    """The rule. `latest` is each archive's newest number, `used` what is not to go; `keep` counts from the newest down."""
    return [
        head
        for head in heads
        if head.number <= latest[head.archive] - keep
        and head.created_at <= before_us
        and not head.waits
        and (head.archive, head.number) not in used
    ]


async def retire(service: Service) -> list[Head]:
    """Retire what may go, now. Nothing unless `retention.keep_releases` is set."""
    config, now = service.settings.retention, service.now_us()
    if config.keep_releases == 0:
        return []
    before = now - config.keep_days * _DAY_US
    async with service.database.read() as tx:
        latest = {archive.name: archive.latest for archive in await archives.listed(tx)}
        found = retirable(await retention.kept(tx), latest, (), keep=config.keep_releases, before_us=before)
        if found:  # only then the ledger is read, whose rows are many
            used = await retention.used_since(tx, before) | await retention.in_use(tx)
            found = retirable(found, latest, used, keep=config.keep_releases, before_us=before)
    done = []
    for start in range(0, len(found), _AT_ONCE):
        done += await _retire(service, found[start : start + _AT_ONCE], now)
    await _remove_sets(service, before, now)
    return done


async def _remove_sets(service: Service, before: int, now: int) -> None:
    """Nothing is reserved by them any more, or only a run that stood still for as long; an agent that still serves one puts it
    again."""
    async with service.database.read() as tx:
        unused = await released_sets.unused_since(tx, before)
    if not unused:
        return
    async with service.database.write() as tx:
        for name in await released_sets.unused_since(tx, before):
            await released_sets.remove(tx, name)
            why = f"unused for {service.settings.retention.keep_days} days"
            await audit.accepted(
                tx,
                at=now,
                caller=audit.SERVICE,
                action="set.remove",
                about=f"set:{name}",
                digest=f"sha512:{name}",
                detail=why,
            )


async def _retire(service: Service, heads: Sequence[Head], now: int) -> list[Head]:
    async with service.database.write() as tx:
        used = await retention.in_use(tx)  # once more: it may have been launched or activated since it was chosen
        going = [head for head in heads if (head.archive, head.number) not in used]
        for head in going:
            await retention.retire(tx, head, now)
            await audit.accepted(
                tx,
                at=now,
                caller=audit.SERVICE,
                action="release.retire",
                about=f"archive:{head.archive}",
                digest=head.digest,
                detail=f"release {head.number}: unused for {service.settings.retention.keep_days} days",
            )
        unneeded = await retention.unneeded(tx, {head.digest for head in going})
        await tx.commit()
        for digest in sorted(unneeded):
            await service.blobs.remove(Digest.parse(digest))
    return going


async def sweep(service: Service) -> list[str]:
    """At start: remove what a crash between the two steps left. The digests that were there."""
    async with service.database.read() as tx:
        unneeded = await retention.unneeded(tx)
    there = {f"sha512:{name}" async for _, name in service.blobs.names()} if unneeded else set()
    left = sorted(unneeded & there)
    if left:
        async with service.database.write() as tx:
            left = sorted(await retention.unneeded(tx, left))
            for digest in left:
                await service.blobs.remove(Digest.parse(digest))
    return left

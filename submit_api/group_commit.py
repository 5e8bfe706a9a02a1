"""Many submissions, one commit: what is ready at the same time is recorded by one transaction.

Promise: as if each had been recorded alone, one after the other: when `record` returns its release is on disk with its
bytes; when it raises there is nothing of it. One submission's refusal is not another's, and when what they have in common
fails, each is tried alone. (Group commit: DeWitt et al., Implementation Techniques for Main Memory Database Systems,
SIGMOD 1984.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import structlog
from sqlalchemy.exc import SQLAlchemyError

from integrity.digests import Digest
from integrity.errors import DagsealError
from submit_api import recording
from submit_api.accepting import OnRecord, Submitted, Wanted
from submit_api.blobs import Upload
from submit_api.recording import Candidate, Recorded
from submit_api.refusals import NoSpaceError, UnavailableError
from submit_api.registry import activations, archives, events, leaves, logged, people
from submit_api.registry.database import Transaction
from submit_api.registry.records import Archive
from submit_api.service import Service
from vocabulary.keys import SigningKey

_log = structlog.get_logger("submit_api")


async def record(service: Service, candidate: Candidate, upload: Upload) -> Submitted:
    """Raises what `recording.decide` raises, `OSError`, and what the database does."""
    return await service.recordings.add((candidate, upload), partial(_record, service))


async def look(
    service: Service, tx: Transaction, asked: Sequence[tuple[Wanted, Digest]], candidates: Sequence[Candidate] = ()
) -> OnRecord:
    """What is on record of these archives and bytes, and of the candidates' dags and groups."""
    names, digests = {ask.name for ask, _ in asked}, {str(digest) for _, digest in asked}
    found = await tx.together(lambda tx: _rows(tx, names, digests, candidates))
    for release in found.newest.values():
        if release.digest in digests:
            verified = await service.manifest_of(release)
            found.manifests[release.archive, release.number] = verified.manifest
    return found


async def _rows(tx: Transaction, names: set[str], digests: set[str], candidates: Sequence[Candidate]) -> OnRecord:
    found = OnRecord(archives=await archives.named(tx, names))
    if found.archives:
        found.newest = await archives.newest(tx, found.archives)
        found.revoked = await archives.revoked(tx, found.archives, digests)
    if candidates:
        found.dags = await archives.archives_of_dags(tx, {dag for one in candidates for dag in one.dag_ids})
        groups = {group for one in candidates for group in recording.groups_of(found, one)}
        found.asking = await people.asking_groups(tx, groups)
    return found


async def _record(service: Service, batch: Sequence[tuple[Candidate, Upload]]) -> list[Submitted | Exception]:
    published: set[Digest] = set()
    outcomes = await _outcomes(service, batch, published)
    failed = {one.digest for (one, _), outcome in zip(batch, outcomes, strict=True) if isinstance(outcome, Exception)}
    await _remove_unnamed(service, published & failed)
    return outcomes


async def _outcomes(
    service: Service, batch: Sequence[tuple[Candidate, Upload]], published: set[Digest]
) -> list[Submitted | Exception]:
    try:
        return await _attempt(service, batch, published)
    except UnavailableError as error:
        # Whether a commit that was broken off took place nobody knows: then the bytes stay, which without a release are only
        # a warning of fsck.
        published.difference_update(candidate.digest for candidate, _ in batch)
        return [error for _ in batch]
    except Exception as error:
        if len(batch) == 1:
            return [error]
        return [(await _outcomes(service, [one], published))[0] for one in batch]


async def _attempt(
    service: Service, batch: Sequence[tuple[Candidate, Upload]], published: set[Digest]
) -> list[Submitted | Exception]:
    candidates = [candidate for candidate, _ in batch]
    async with service.database.write_together() as tx:
        on_record = await look(service, tx, [(one.ask, one.digest) for one in candidates], candidates)
        before = dict(on_record.archives)
        decided = await asyncio.to_thread(_decide, on_record, candidates, service.now_us(), service.keys.signing)
        made = [one for one in decided if isinstance(one, Recorded)]
        if made:
            await tx.together(lambda tx: _add(tx, made, before))
            # Last before the commit, so that nothing but the commit can fail once the bytes have their names.
            uploads = [upload for (_, upload), one in zip(batch, decided, strict=True) if isinstance(one, Recorded)]
            published.update(upload.digest for upload in uploads)
            await service.blobs.publish_all(uploads)
            await tx.commit()
    return [one.submitted if isinstance(one, Recorded) else one for one in decided]


def _decide(
    on_record: OnRecord, candidates: Iterable[Candidate], now: int, key: SigningKey
) -> list[Submitted | Recorded | Exception]:
    """One after the other, each as if those before it were on record."""
    decided: list[Submitted | Recorded | Exception] = []
    for candidate in candidates:
        try:
            outcome = recording.decide(on_record, candidate, now=now, key=key)
        except DagsealError as refusal:
            decided.append(refusal)
            continue
        if isinstance(outcome, Recorded):
            recording.carry_on(on_record, outcome)
        decided.append(outcome)
    return decided


async def _add(tx: Transaction, made: Sequence[Recorded], before: Mapping[str, Archive]) -> None:
    latest = {one.archive.name: one.archive for one in made}
    await archives.put(tx, latest.values(), known=before)
    await archives.add_dags(tx, {dag: one.archive.name for one in made for dag in one.new_dags})
    releases, manifests = [one.release for one in made], [one.manifest for one in made]
    await archives.add(tx, releases, manifests)
    begun = [one.activation for one in made if one.activation]
    await activations.add(tx, begun)
    await leaves.add(tx, logged.recorded(manifests, releases, begun, before, latest.values()))
    await events.add_all(tx, [one.event for one in made])


async def _remove_unnamed(service: Service, digests: Iterable[Digest]) -> None:
    """The bytes of a failed transaction. Nobody else publishes any that no release names yet."""
    for digest in digests:
        try:
            async with service.database.read() as tx:
                named = await archives.is_named(tx, str(digest))
            if not named:
                await service.blobs.remove(digest)
        except (SQLAlchemyError, UnavailableError, NoSpaceError, OSError) as failure:
            _log.error("blob_not_removed", digest=str(digest), error=type(failure).__name__)

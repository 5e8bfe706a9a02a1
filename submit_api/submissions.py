"""A submission, step by step: `PUT /v1/archives/{name}`.

Promise: a refused upload leaves nothing, in the database or on disk, whenever it is refused and also when its sender goes
away; an accepted one is on disk, whole and committed, before the answer is sent. In order: 1 may this caller push here;
2 do the headers promise an acceptable body; 3 the bytes, hashed as they arrive, capped; 4 `Repr-Digest`, and the author's
signature where one was sent; 5 the same as the newest release? 6 the archive's rules; 7 the launcher's description;
8 one transaction, under the one writer lock: who owns the dags, the release's number, the signed manifest, the audit event,
with the blob published before its commit (`submit_api.group_commit`).
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterable

from integrity.digests import Digest
from integrity.errors import ArchiveError, DigestMismatchError, InvalidArchiveError
from submit_api import accepting, audit, group_commit
from submit_api.accepting import Submitted, Wanted
from submit_api.blobs import Upload
from submit_api.describing import Description
from submit_api.identity import Caller
from submit_api.recording import Candidate
from submit_api.refusals import NO_SPACE, NoSpaceError
from submit_api.registry import archives
from submit_api.service import Service
from vocabulary import archives as archive_rules
from vocabulary.manifest import Member


async def authorise(service: Service, caller: Caller, ask: Wanted) -> str:
    """Step 1: before a byte of the body is read. The digest of the newest release, or nothing."""
    async with service.database.glance() as tx:
        archive, newest = await archives.find_with_newest(tx, ask.name)
    accepting.check_owner(archive, caller, ask)
    accepting.check_newest(archive, newest, ask)
    return newest


async def submit(service: Service, caller: Caller, ask: Wanted, newest: str, body: AsyncIterable[bytes]) -> Submitted:
    """Steps 3 to 8, with what step 1 found. Raises what `integrity.errors` has for each."""
    try:
        with service.blobs.upload() as upload:
            async for chunk in body:
                await upload.write(chunk)
            return await _accept(service, caller, ask, newest, upload, await upload.finish())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(NO_SPACE) from None
        raise


async def _accept(
    service: Service, caller: Caller, ask: Wanted, newest: str, upload: Upload, digest: Digest
) -> Submitted:
    if ask.repr_digest is not None and ask.repr_digest != digest:
        raise DigestMismatchError(f"the body is {digest}, Repr-Digest says {ask.repr_digest}: send it again")
    accepting.check_author(ask, digest)
    if upload.size == 0:
        raise InvalidArchiveError("no-dag-found", "the file is empty", ask.name)
    if newest == str(digest):
        async with service.database.read() as tx:
            on_record = await group_commit.look(service, tx, [(ask, digest)])
        known = accepting.unchanged(on_record, caller, ask, digest)
        if known is not None:
            await _repair(service, caller, known, upload)
            return known
    async with service.admission.inspecting():
        if ask.name.endswith(".py") and upload.size <= service.settings.limits.inline_bytes:
            members = _members(ask.name, upload)
        else:
            members = await asyncio.to_thread(_members, ask.name, upload)
    description = await _describe(service, ask, upload, digest)
    candidate = Candidate(
        caller=caller, ask=ask, digest=digest, size=upload.size, members=members, description=description
    )
    return await group_commit.record(service, candidate, upload)


async def _repair(service: Service, caller: Caller, known: Submitted, upload: Upload) -> None:
    """These bytes are the release's: should the stored ones be damaged or gone, they are put back, and it is audited."""
    if await service.blobs.publish(upload):
        async with service.database.write() as tx:
            await audit.accepted(
                tx,
                at=service.now_us(),
                caller=caller,
                action="blob.repair",
                about=f"archive:{known.release.archive}",
                digest=known.release.digest,
                detail=f"the stored bytes of release {known.release.number} were damaged or missing",
            )


def _members(name: str, upload: Upload) -> tuple[Member, ...]:
    try:
        return archive_rules.read_digests(name, upload.read())
    except ArchiveError as error:
        # Its traceback would keep the archive in memory until the refusal is written down, when others have their turn already.
        raise error.with_traceback(None) from None


async def _describe(service: Service, ask: Wanted, upload: Upload, digest: Digest) -> Description:
    fd = upload.open()
    try:
        return await service.describer.describe(ask.name, digest, fd, ask.task_check)
    finally:
        os.close(fd)

"""A submission, step by step: `PUT /v1/archives/{name}`.

Promise: a refused upload leaves nothing, in the database or on disk, whenever it is refused and also when its sender goes
away; an accepted one is on disk, whole and committed, before the answer is sent. In order: 1 may this caller push here;
2 do the headers promise an acceptable body; 3 the bytes, hashed as they arrive, capped; 4 `Repr-Digest`; 5 the same as the
newest release? 6 the archive's rules; 7 the launcher's description; 8 one transaction, under the one writer lock: who
owns the dags, the release's number, the signed manifest, the audit event, with the blob published before its commit.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterable
from dataclasses import dataclass

from integrity import archives as archive_rules
from integrity import claims, names
from integrity import manifest as manifests
from integrity.digests import Digest
from integrity.errors import ArchiveError, ConflictError, DigestMismatchError, InvalidArchiveError, NotOwnerError
from integrity.manifest import Manifest, Member
from submit_api import audit, launches, modes, permissions, scopes
from submit_api.blobs import Upload
from submit_api.describing import Description
from submit_api.dispatching import MICROSECONDS
from submit_api.identity import Caller
from submit_api.refusals import (
    NO_SPACE,
    DigestAlgorithmError,
    InvalidRequestError,
    NoSpaceError,
    PreconditionError,
    UnavailableError,
)
from submit_api.registry import archives, people
from submit_api.registry.database import Transaction
from submit_api.registry.records import Archive, Release
from submit_api.service import Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the request's line and headers ask for. Empty `group` means the archive's own, or the caller's."""

    name: str
    group: str
    task_check: str
    isolation: str | None
    require_caller: bool
    repr_digest: Digest | None
    if_match: str | None
    if_none_match: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """The release, and whether this request made it."""

    release: Release
    manifest: Manifest
    created: bool


def wanted(
    name: str,
    group: str | None,
    task_check: str | None,
    isolation: str | None,
    require_caller: str | None,
    repr_digest: str | None,
    if_match: str | None,
    if_none_match: str | None,
) -> Wanted:
    """Read the request's own words. Raises `MalformedError`, `InvalidRequestError`."""
    names.check("archive", name)
    if group is not None:
        names.check("group", group)
    if task_check is not None and task_check not in manifests.TASK_CHECKS:
        raise InvalidRequestError(f"task_check is to be one of {', '.join(manifests.TASK_CHECKS)}")
    if isolation is not None and isolation not in claims.PROFILES:
        raise InvalidRequestError(f"isolation is to be one of {', '.join(claims.PROFILES)}")
    if repr_digest is not None and not repr_digest.strip().startswith("sha-512="):
        raise DigestAlgorithmError(
            "the only Repr-Digest that is taken here is sha-512=:<base64 of the 64 digest bytes>:"
        )
    if require_caller not in (None, "true", "false"):
        raise InvalidRequestError("require_caller is to be true or false")
    return Wanted(
        name=name,
        group=group or "",
        task_check=task_check or "task",
        isolation=isolation,
        require_caller=require_caller == "true",
        repr_digest=Digest.from_repr_digest(repr_digest) if repr_digest is not None else None,
        if_match=if_match,
        if_none_match=if_none_match,
    )


async def authorise(service: Service, caller: Caller, ask: Wanted) -> None:
    """Step 1: before a byte of the body is read."""
    async with service.database.read() as tx:
        archive = await archives.find(tx, ask.name)
        _check_owner(archive, caller, ask)
        await _check_newest(tx, archive, ask)


async def submit(service: Service, caller: Caller, ask: Wanted, body: AsyncIterable[bytes]) -> Submitted:
    """Steps 3 to 8. Raises what `integrity.errors` has for each."""
    try:
        with service.blobs.upload() as upload:
            async for chunk in body:
                await upload.write(chunk)
            return await _accept(service, caller, ask, upload, await upload.finish())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(NO_SPACE) from None
        raise


async def _accept(service: Service, caller: Caller, ask: Wanted, upload: Upload, digest: Digest) -> Submitted:
    if ask.repr_digest is not None and ask.repr_digest != digest:
        raise DigestMismatchError(f"the body is {digest}, Repr-Digest says {ask.repr_digest}: send it again")
    if upload.size == 0:
        raise InvalidArchiveError("no-dag-found", "the file is empty", ask.name)
    async with service.database.read() as tx:
        known = await _unchanged(service, tx, caller, ask, digest)
    if known is not None:
        await _repair(service, caller, known, upload)
        return known
    async with service.admission.inspecting():
        members = await asyncio.to_thread(_members, ask.name, upload)
    description = await _describe(service, ask, upload, digest)
    async with service.database.write() as tx:
        # What was checked before the lock may have changed while the archive was described.
        known = await _unchanged(service, tx, caller, ask, digest)
        if known is not None:
            return known
        return await _record(service, tx, caller, ask, upload, digest, members, description)


async def _unchanged(
    service: Service, tx: Transaction, caller: Caller, ask: Wanted, digest: Digest
) -> Submitted | None:
    """Step 5: the newest release, when it has these bytes and says the same of them. Revoked bytes do not come back."""
    archive = await archives.find(tx, ask.name)
    _check_owner(archive, caller, ask)
    await _check_newest(tx, archive, ask)
    if archive is None:
        return None
    revoked = await archives.revoked_of_digest(tx, ask.name, str(digest))
    if revoked is not None:
        raise ConflictError(
            f"these bytes are {ask.name}@{revoked.number}, which {launches.unlaunchable(revoked)}: push changed ones"
        )
    release = await archives.release(tx, ask.name, archive.latest)
    if (
        release is not None
        and release.digest == str(digest)
        and release.task_check == ask.task_check
        and release.isolation == ask.isolation
        and ask.group in ("", release.group)
    ):
        verified = await service.manifest_of(release)
        if verified.manifest.require_caller == ask.require_caller:
            return Submitted(release=release, manifest=verified.manifest, created=False)
    return None


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
        return archive_rules.manifest_members(archive_rules.read(name, upload.read()))
    except ArchiveError as error:
        # Its traceback would keep the archive in memory until the refusal is written down, when others have their turn already.
        raise error.with_traceback(None) from None


async def _describe(service: Service, ask: Wanted, upload: Upload, digest: Digest) -> Description:
    fd = upload.open()
    try:
        return await service.describer.describe(ask.name, digest, fd, ask.task_check)
    finally:
        os.close(fd)


async def _record(
    service: Service,
    tx: Transaction,
    caller: Caller,
    ask: Wanted,
    upload: Upload,
    digest: Digest,
    members: tuple[Member, ...],
    description: Description,
) -> Submitted:
    archive = await archives.find(tx, ask.name)
    taken = await archives.archives_of_dags(tx, [dag.dag_id for dag in description.dags])
    for dag_id, other in sorted(taken.items()):
        if other != ask.name:
            raise ConflictError(f"dag {dag_id!r} belongs to archive {other}: rename it, or push it as {other}")
    now = service.now_us()
    manifest = Manifest(
        archive=ask.name,
        number=archive.latest + 1 if archive else 1,
        digest=digest,
        size=upload.size,
        members=members,
        owner=archive.owner if archive else caller.principal,
        group=ask.group or (archive.group if archive else caller.principal),
        submitted_by=caller.principal,
        created_at=now // MICROSECONDS,
        task_check=ask.task_check,
        airflow_version=description.airflow_version,
        dags=description.dags,
        isolation=ask.isolation,
        require_caller=ask.require_caller,
    )
    asking = await people.asking_groups(tx, {manifest.group, archive.group if archive else manifest.group})
    release = Release(
        archive=ask.name,
        number=manifest.number,
        digest=str(digest),
        size=upload.size,
        owner=manifest.owner,
        group=manifest.group,
        submitted_by=caller.principal,
        created_at=now,
        revoked_at=None,
        task_check=ask.task_check,
        isolation=ask.isolation,
        manifest=await asyncio.to_thread(manifests.sign, manifest, service.keys.signing),
        manifest_digest=str(Digest.of(manifest.to_bytes())),
        approvals=max(asking.values(), default=0),
        approval_groups=sorted(asking),
    )
    await archives.add(tx, release, manifest)
    await audit.accepted(
        tx,
        at=now,
        caller=caller,
        action="archive.submit",
        about=f"archive:{ask.name}",
        digest=release.digest,
        detail=f"release {release.number}, {release.size} bytes, owner {release.owner}, group {release.group}, "
        f"task_check {release.task_check}, isolation {release.isolation or 'any'}"
        + (f", {launches.unlaunchable(release)}" if release.waits else "")
        + (", the caller is required to have what it gets" if ask.require_caller else ""),
    )
    others = await archives.others_of_digest(tx, release)
    # Last before the commit, so that nothing but the commit can fail once the blob has its name. Whether a commit that was
    # broken off took place nobody knows: then the blob stays, which without a release is only a warning of fsck.
    try:
        await service.blobs.publish(upload)
        await tx.commit()
    except (UnavailableError, asyncio.CancelledError):
        raise
    except BaseException:
        if not others:
            await service.blobs.remove(digest)
        raise
    return Submitted(release=release, manifest=manifest, created=True)


async def _check_newest(tx: Transaction, archive: Archive | None, ask: Wanted) -> None:
    """`If-Match`: only when the newest release is the one that the caller knows; `If-None-Match`: only when it is not, `*` is
    only a new archive. Raises `PreconditionError`."""
    if ask.if_match is None and ask.if_none_match is None:
        return
    newest = await archives.release(tx, archive.name, archive.latest) if archive else None
    unwanted = _tags(ask.if_none_match)
    if newest is not None and ("*" in unwanted or f'"{newest.digest}"' in unwanted):
        raise PreconditionError(f"{ask.name} is there already: {ask.name}@{newest.number} is {newest.digest}")
    if ask.if_match is None:
        return
    tags = _tags(ask.if_match)
    if newest is None:
        raise PreconditionError(f"there is no archive {ask.name} yet: push it without If-Match")
    if "*" not in tags and f'"{newest.digest}"' not in tags:
        raise PreconditionError(
            f"the newest release is {ask.name}@{newest.number}, {newest.digest}: look at it, then push again"
        )


def _tags(header: str | None) -> set[str]:
    return {tag.strip() for tag in header.split(",")} if header is not None else set()


def _check_owner(archive: Archive | None, caller: Caller, ask: Wanted) -> None:
    """A new name is anybody's; an existing archive asks for the bit to write it."""
    permissions.require_scope(caller, scopes.ARCHIVE, ask.name)
    if archive is not None:
        permissions.require(caller, modes.WRITE, archive, f"archive {archive.name}")
        if ask.group in ("", archive.group):
            return
        if not caller.admin and caller.principal != archive.owner:
            raise NotOwnerError(f"only {archive.owner} can move archive {archive.name} to group {ask.group}")
    if ask.group and not caller.admin and ask.group != caller.principal and ask.group not in caller.groups:
        raise NotOwnerError(f"{caller.principal} is not in group {ask.group}: ask an administrator to be added")

"""Required approval: a release of a group that asks for it waits until other members have looked at it.

Whether a release waits is decided when it is recorded and stays so: by the group of its archive, and by the group that it
moves the archive to, whichever ask; then a member of all of these approves. So what was active stays active when a group
begins to ask, and a waiting release waits on when it ends to; another push is another release, with approvals of its own.

An approval counts when: 1 it names the digest of the release, so that what was looked at is what is approved; 2 its principal
is not the submitter, under whatever token; 3 the principal is a member of the groups that ask, by the groups' own lists, now
and also when the last approval comes in: who has left by then is not counted. An administrator is no member by being one.

With the last approval the release becomes the active one, unless a newer one is approved already.
"""

from __future__ import annotations

from integrity.errors import ConflictError, OutOfScopeError
from submit_api import launches, modes, releasing
from submit_api.identity import Caller
from submit_api.models.archives import ApproveRequest
from submit_api.refusals import InvalidRequestError, PreconditionError, SecondMemberError
from submit_api.registry import activations, archives, people
from submit_api.registry.database import Transaction
from submit_api.registry.records import Archive, Release
from submit_api.releasing import Decided
from submit_api.service import Service


async def approve(service: Service, caller: Caller, name: str, number: int, wanted: ApproveRequest) -> Decided:
    """Raises `PreconditionError` for another digest, `SecondMemberError`, `ConflictError` where nothing waits."""
    if wanted.unsafe_alone and not wanted.reason:
        raise InvalidRequestError(
            "unsafe_alone needs a reason: it is what the audit log will show instead of a second member"
        )
    async with service.database.write() as tx:
        archive = await releasing.held(tx, caller, name, modes.READ)
        release = await releasing.numbered(tx, archive, number)
        _require_waiting(release, wanted.digest)
        if wanted.unsafe_alone:
            _require_administrator(caller)
            counted, done = len(release.approved_by), True
        else:
            _require_second(release, caller.principal, await people.groups_of(tx, caller.principal))
            counted = 1 + await _still_members(tx, release)
            done = counted >= release.approvals
        now = service.now_us()
        approved_by = [*release.approved_by, caller.principal]
        await archives.approve(tx, release, approved_by, now=now, enough=done, unsafe_alone=wanted.unsafe_alone)
        action = "release.approve-unsafe" if wanted.unsafe_alone else "release.approve"
        told = f"release {number}, {counted} of {release.approvals}"
        detail = f"{told}: {wanted.reason}" if wanted.reason else told
        await releasing.note(tx, now, caller, action, release, detail)
        if done:
            await _put_to_use(tx, archive, release, now, caller)
        return await releasing.now_is(tx, name, number)


def _require_waiting(release: Release, digest: str) -> None:
    if release.digest != digest:
        raise PreconditionError(
            f"{release.archive}@{release.number} is {release.digest}, not what was looked at: look again, then decide"
        )
    if release.revoked_at is not None:
        raise ConflictError(
            f"{release.archive}@{release.number} {launches.unlaunchable(release)}: approve another release"
        )
    if not release.waits:
        raise ConflictError(
            f"{release.archive}@{release.number} does not wait for approval: activate it, if it is to run"
        )


def _require_second(release: Release, principal: str, groups: frozenset[str]) -> None:
    named = f"{release.archive}@{release.number}"
    if principal == release.submitted_by:
        raise SecondMemberError(f"{principal} submitted {named}: somebody else is to approve it")
    missing = [group for group in release.approval_groups if group not in groups]
    if missing:
        raise SecondMemberError(f"{principal} is not a member of group {missing[0]}: a member is to approve {named}")
    if principal in release.approved_by:
        raise ConflictError(f"{principal} approved {named} already: another member is to do so, too")


def _require_administrator(caller: Caller) -> None:
    if not caller.admin:
        raise OutOfScopeError("unsafe_alone needs an administrator's token: let a second member approve it")


async def _still_members(tx: Transaction, release: Release) -> int:
    needed = set(release.approval_groups)
    return sum([needed <= await people.groups_of(tx, principal) for principal in release.approved_by])


async def _put_to_use(tx: Transaction, archive: Archive, release: Release, now: int, caller: Caller) -> None:
    """As its push would have done, had it not had to wait."""
    if await archives.launchable_after(tx, archive.name, release.number) is not None:
        return
    await archives.move(tx, archive, release.group, at=now, principal=caller.principal)
    await activations.activate(tx, archive.name, release.number, at=now, principal=caller.principal)
    detail = f"release {releasing.told(archive.active)} -> {release.number}"
    await releasing.note(tx, now, caller, "release.activate", release, detail)

"""What is decided about releases after they are recorded: which one is active, and which is never launched again.

Promise: each decision is one transaction with its audit event. `If-Match` names the release that the caller believes to be
the active one, by its number in quotes (`"3"`, or `"none"`): when another is active by then, nothing is changed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from integrity.errors import NotFoundError
from submit_api import audit, launches, modes, permissions, rollback, scopes
from submit_api.identity import Caller
from submit_api.refusals import InvalidRequestError, PreconditionError
from submit_api.registry import activations, archives, ledger
from submit_api.registry.database import Transaction
from submit_api.registry.records import Activation, Archive, Release
from submit_api.service import Service
from submit_api.signals import of_launch

MAX_REASON_CHARS = 500
_STEPS_AT_ONCE = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """The release and its archive, as they are now."""

    archive: Archive
    release: Release


async def activate(service: Service, caller: Caller, name: str, number: int, if_match: str | None) -> Decided:
    """Raises `PreconditionError`, or `ConflictError` for a release that cannot be launched."""
    async with service.database.write() as tx:
        archive = await held(tx, caller, name)
        require_active(archive, if_match)
        release = await numbered(tx, archive, number)
        launches.require_launchable(release)
        now = service.now_us()
        await activations.activate(tx, name, number, at=now, principal=caller.principal)
        await note(tx, now, caller, "release.activate", release, f"release {told(archive.active)} -> {number}")
        return await now_is(tx, name, number)


async def roll_back(service: Service, caller: Caller, name: str, number: int | None, if_match: str | None) -> Decided:
    """To the release that was active before the current one, or to an earlier one of those. Raises as `activate`."""
    async with service.database.write() as tx:
        archive = await held(tx, caller, name)
        require_active(archive, if_match)

        async def unusable(other: int) -> str | None:
            return launches.unlaunchable(await numbered(tx, archive, other))

        to = await rollback.target(archive, _back(tx, archive, number), unusable, number)
        now = service.now_us()
        await activations.activate(tx, name, to.number, at=now, principal=caller.principal, before=to.before)
        release = await numbered(tx, archive, to.number)
        await note(tx, now, caller, "release.rollback", release, f"release {told(archive.active)} -> {to.number}")
        return await now_is(tx, name, to.number)


async def _back(tx: Transaction, archive: Archive, number: int | None) -> AsyncIterator[Activation]:
    """The way back from the current activation, or what of it is of release `number`."""
    seq = archive.activation
    while found := await activations.back(tx, archive.name, seq, _STEPS_AT_ONCE, number=number):
        for one in found:
            yield one
        seq = found[-1].seq


async def revoke(service: Service, caller: Caller, name: str, number: int, reason: str, *, kill: bool) -> Decided:
    """For good. Where it was the active release, none is active afterwards. Queued launches are refused when they are taken,
    offered ones when they are claimed; with `kill` running ones are told to stop with their worker's next heartbeat. Again is
    fine, to kill what went on: the first reason stays."""
    if len(reason) > MAX_REASON_CHARS or not reason.isprintable():
        raise InvalidRequestError(f"reason is to be one line of at most {MAX_REASON_CHARS} characters")
    async with service.database.write() as tx:
        release = await numbered(tx, await held(tx, caller, name), number)
        now = service.now_us()
        await archives.revoke(tx, release, at=now, principal=caller.principal, reason=reason)
        doomed = await ledger.running(tx, name, number) if kill else []
        detail = f"release {number}{f', {len(doomed)} running killed' if kill else ''}"
        await note(tx, now, caller, "release.revoke", release, f"{detail}: {reason}" if reason else detail)
        for launch in doomed:
            await ledger.change(tx, launch.id, cancel_requested=True)
            await audit.accepted(
                tx,
                at=now,
                caller=caller,
                action="launch.cancel",
                about=f"launch:{launch.id}",
                digest=launch.digest,
                detail=f"release {name}@{number} was revoked",
            )
        done = await now_is(tx, name, number)
    for launch in doomed:
        service.signals.notify(of_launch(launch.id))
    return done


async def held(tx: Transaction, caller: Caller, name: str, wanted: int = modes.WRITE) -> Archive:
    """An archive on which the caller has this bit; to write it is to decide about its releases.

    Raises `NotFoundError`, `NotOwnerError`, `OutOfScopeError`.
    """
    found = await archives.find(tx, name)
    if found is None:
        raise NotFoundError(f"there is no archive {name!r}")
    permissions.require(caller, wanted, found, f"archive {name}")
    permissions.require_scope(caller, scopes.ARCHIVE, name)
    return found


async def numbered(tx: Transaction, archive: Archive, number: int) -> Release:
    found = await archives.release(tx, archive.name, number)
    if found is None:
        raise NotFoundError(f"archive {archive.name} has no release {number}; the latest is {archive.latest}")
    return found


def require_active(archive: Archive, if_match: str | None) -> None:
    """Raises `PreconditionError` where the active release is none of those named."""
    if if_match is None:
        return
    tags = {tag.strip() for tag in if_match.split(",")}
    if f'"{told(archive.active)}"' not in tags and not ("*" in tags and archive.active is not None):
        raise PreconditionError(
            f"the active release of {archive.name} is {told(archive.active)}, not {if_match[:100]}: somebody changed it; "
            f"look at 'dagseal history {archive.name}', then decide again"
        )


async def note(tx: Transaction, now: int, caller: Caller, action: str, release: Release, detail: str) -> None:
    about = f"archive:{release.archive}"
    await audit.accepted(tx, at=now, caller=caller, action=action, about=about, digest=release.digest, detail=detail)


async def now_is(tx: Transaction, name: str, number: int) -> Decided:
    archive, release = await archives.find(tx, name), await archives.release(tx, name, number)
    if archive is None or release is None:
        raise RuntimeError(f"{name}@{number} is gone")
    return Decided(archive=archive, release=release)


def told(number: int | None) -> str:
    return "none" if number is None else str(number)

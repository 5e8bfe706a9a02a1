"""Which leaf of the log says what a row says. No I/O. Times of leaves are in seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from integrity import names
from integrity.digests import Digest
from integrity.errors import MalformedError
from submit_api.effects import MICROSECONDS
from submit_api.registry.records import Activation, Archive, Release
from vocabulary.leaves import MAX_QUEUES, Activated, Approved, Leaf, Owned, Released, Retired, Revoked
from vocabulary.manifest import Manifest

SERVICE = "dagseal"


def released(found: Release, queues: Iterable[str] = ()) -> Released:
    """`queues`: of its tasks, as its manifest has them, which are said only where an agent can serve each."""
    return Released(
        at=found.created_at // MICROSECONDS,
        by=found.submitted_by,
        archive=found.archive,
        number=found.number,
        digest=found.sha512,
        size=found.size,
        manifest=Digest.parse(found.manifest_digest),
        owner=found.owner,
        group=found.group,
        waits=found.approvals > 0,
        queues=_sayable(frozenset(queues)),
        author=found.author,
    )


def _sayable(queues: frozenset[str]) -> tuple[str, ...]:
    try:
        named = tuple(sorted(names.check("queue", queue) for queue in queues))
    except MalformedError:
        return ()
    return named if len(named) <= MAX_QUEUES else ()


def activated(made: Activation) -> Activated:
    return Activated(at=made.at // MICROSECONDS, by=made.principal, archive=made.archive, number=made.number)


def approved(found: Release, by: str, *, at: int, enough: bool) -> Approved:
    return Approved(
        at=at // MICROSECONDS,
        by=by,
        archive=found.archive,
        number=found.number,
        digest=found.sha512,
        enough=enough,
    )


def revoked(found: Release, *, by: str, at: int) -> Revoked:
    return Revoked(at=at // MICROSECONDS, by=by, archive=found.archive, number=found.number, digest=found.sha512)


def retired(archive: str, number: int, digest: str, *, at: int) -> Retired:
    return Retired(at=at // MICROSECONDS, by=SERVICE, archive=archive, number=number, digest=Digest.parse(digest))


def owned(found: Archive, *, by: str, at: int) -> Owned:
    return Owned(
        at=at // MICROSECONDS, by=by, archive=found.name, owner=found.owner, group=found.group, mode=found.mode
    )


def recorded(
    manifests: Sequence[Manifest],
    releases: Sequence[Release],
    activations: Iterable[Activation],
    before: Mapping[str, Archive],
    after: Iterable[Archive],
) -> list[Leaf]:
    """Of submissions that are recorded together. `before` are the archives that there were."""
    now = {archive.name: archive for archive in after}
    active = {(made.archive, made.number): made for made in activations}
    found: list[Leaf] = []
    for release, manifest in zip(releases, manifests, strict=True):
        archive = now[release.archive]
        known = before.get(release.archive)
        if release.number == 1:
            found.append(owned(archive, by=release.submitted_by, at=release.created_at))
        found.append(released(release, (task.queue for dag in manifest.dags for task in dag.tasks)))
        if (release.archive, release.number) in active:
            found.append(activated(active[release.archive, release.number]))
        if known is not None and release.number == archive.latest and known.group != archive.group:
            found.append(owned(archive, by=release.submitted_by, at=release.created_at))
    return found


def so_far(archives: Iterable[Archive], releases: Mapping[str, Sequence[Release]], *, now: int) -> Iterator[Leaf]:
    """What a log says at first of all that was on record before there was one: the state, not its history."""
    for archive in archives:
        yield owned(archive, by=archive.owner, at=now)
        for release in releases.get(archive.name, ()):
            yield released(release)
            for done, by in enumerate(release.approved_by, 1):
                enough = release.approved_at is not None and done == len(release.approved_by)
                yield approved(release, by, at=release.approved_at or now, enough=enough)
            if release.revoked_at is not None:
                yield revoked(release, by=release.revoked_by or SERVICE, at=release.revoked_at)
            if release.retired_at is not None:
                yield retired(release.archive, release.number, release.digest, at=release.retired_at)
        if archive.active is not None:
            yield Activated(at=now // MICROSECONDS, by=archive.owner, archive=archive.name, number=archive.active)

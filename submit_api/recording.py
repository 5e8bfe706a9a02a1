"""What an accepted upload becomes on record: its number, its owner, its signed manifest, its audit event.

Promise: `decide` is a rule without I/O: given what is on record it refuses a submission or says every row that it adds.
`carry_on` puts these into what is on record, so that several submissions can be decided one after the other and written
together, with the same outcome as one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from integrity.digests import Digest
from integrity.errors import ConflictError
from submit_api import audit, launches, modes
from submit_api.accepting import OnRecord, Submitted, Wanted, unchanged
from submit_api.describing import Description
from submit_api.effects import MICROSECONDS
from submit_api.identity import Caller
from submit_api.registry import activations
from submit_api.registry.records import Activation, Archive, Event, Release
from vocabulary import envelopes
from vocabulary.keys import SigningKey
from vocabulary.manifest import PAYLOAD_TYPE, Manifest, Member


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An upload that was hashed, inspected and described."""

    caller: Caller
    ask: Wanted
    digest: Digest
    size: int
    members: tuple[Member, ...]
    description: Description

    @property
    def dag_ids(self) -> list[str]:
        return [dag.dag_id for dag in self.description.dags]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The rows of one release. `archive` is as it is afterwards; without an `activation` the release waits for approval."""

    release: Release
    manifest: Manifest
    archive: Archive
    activation: Activation | None
    new_dags: list[str]
    event: Event

    @property
    def submitted(self) -> Submitted:
        return Submitted(release=self.release, manifest=self.manifest, active=self.archive.active, created=True)


def groups_of(on_record: OnRecord, candidate: Candidate) -> set[str]:
    """The archive's group, and the one that the release would move it to."""
    archive = on_record.archives.get(candidate.ask.name)
    group = candidate.ask.group or (archive.group if archive else candidate.caller.principal)
    return {group, archive.group if archive else group}


def decide(on_record: OnRecord, candidate: Candidate, *, now: int, key: SigningKey) -> Submitted | Recorded:
    """`now` in microseconds. Raises what `accepting.unchanged` raises, and `ConflictError` where a dag is another archive's."""
    caller, ask = candidate.caller, candidate.ask
    known = unchanged(on_record, caller, ask, candidate.digest)
    if known is not None:
        return known
    for dag_id in sorted(candidate.dag_ids):
        other = on_record.dags.get(dag_id, ask.name)
        if other != ask.name:
            raise ConflictError(f"dag {dag_id!r} belongs to archive {other}: rename it, or push it as {other}")
    archive = on_record.archives.get(ask.name)
    manifest = Manifest(
        archive=ask.name,
        number=archive.latest + 1 if archive else 1,
        digest=candidate.digest,
        size=candidate.size,
        members=candidate.members,
        owner=archive.owner if archive else caller.principal,
        group=ask.group or (archive.group if archive else caller.principal),
        submitted_by=caller.principal,
        created_at=now // MICROSECONDS,
        task_check=ask.task_check,
        airflow_version=candidate.description.airflow_version,
        dags=candidate.description.dags,
        isolation=ask.isolation,
        require_caller=ask.require_caller,
    )
    asking = {group: on_record.asking[group] for group in groups_of(on_record, candidate) if group in on_record.asking}
    payload = manifest.to_bytes()
    release = Release(
        archive=ask.name,
        number=manifest.number,
        digest=str(candidate.digest),
        size=candidate.size,
        owner=manifest.owner,
        group=manifest.group,
        submitted_by=caller.principal,
        created_at=now,
        revoked_at=None,
        task_check=ask.task_check,
        isolation=ask.isolation,
        manifest=envelopes.sign(payload, payload_type=PAYLOAD_TYPE, key=key),
        manifest_digest=str(Digest.of(payload)),
        approvals=max(asking.values(), default=0),
        approval_groups=sorted(asking),
        author=ask.author,
    )
    after, activation = _put_to_use(archive or _new(release), release)
    return Recorded(
        release=release,
        manifest=manifest,
        archive=after,
        activation=activation,
        new_dags=[dag_id for dag_id in candidate.dag_ids if dag_id not in on_record.dags],
        event=_event(caller, ask, release),
    )


def carry_on(on_record: OnRecord, made: Recorded) -> None:
    """As if it were written already."""
    release = made.release
    on_record.archives[release.archive] = made.archive
    on_record.newest[release.archive] = release
    on_record.manifests[release.archive, release.number] = made.manifest
    on_record.dags.update(dict.fromkeys(made.new_dags, release.archive))


def _new(release: Release) -> Archive:
    return Archive(
        name=release.archive,
        owner=release.owner,
        group=release.group,
        latest=0,
        active=None,
        created_at=release.created_at,
        mode=modes.NEW["archive"],
    )


def _put_to_use(archive: Archive, release: Release) -> tuple[Archive, Activation | None]:
    """It becomes the active one, and moves its archive to its group, unless it waits."""
    if release.waits:
        return replace(archive, latest=release.number), None
    activation = activations.following(archive, release.number, at=release.created_at, principal=release.submitted_by)
    after = replace(
        archive, latest=release.number, group=release.group, active=release.number, activation=activation.seq
    )
    return after, activation


def _event(caller: Caller, ask: Wanted, release: Release) -> Event:
    return audit.decision(
        at=release.created_at,
        caller=caller,
        action="archive.submit",
        about=f"archive:{ask.name}",
        digest=release.digest,
        detail=f"release {release.number}, {release.size} bytes, owner {release.owner}, group {release.group}, "
        f"task_check {release.task_check}, isolation {release.isolation or 'any'}"
        + (f", {launches.unlaunchable(release)}" if release.waits else "")
        + (", the caller is required to have what it gets" if ask.require_caller else "")
        + (f", signed by author key {release.author_key_id}" if release.author is not None else ""),
    )

"""What a scheduler reserves: task instances of Airflow's, many in one transaction, each for one of its queueings.

Promises: the same queueing is reserved once, however often it is asked for. One that is refused is on record as a launch that
was refused, so that the worker that asks for it learns why, and the others go on. The release is the one of the set that the
run is pinned to; all else is decided as for any launch (`submit_api.choosing`), and Airflow's serialised task is to be the
recorded one. A new queueing supersedes those before: what nobody claimed is cancelled, what runs is asked to end.

Whoever may not launch a dag has no say about a task instance that was reserved: his refusal is told to him and audited, and
changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from integrity.digests import Digest
from integrity.errors import ConflictError, DagsealError, DigestMismatchError, NotFoundError, SecurityError
from submit_api import audit, choosing, launches
from submit_api.choosing import Chosen
from submit_api.facts import Facts
from submit_api.identity import Caller
from submit_api.models.launches import ReservationRequest
from submit_api.refusals import SUPERSEDED, InvalidRequestError, NoVersionError
from submit_api.registry import events, ledger, released_sets
from submit_api.registry.records import Archive, Event, Launch, Release
from submit_api.registry.text import storable
from submit_api.service import Service
from submit_api.signals import of_launch, of_offers
from vocabulary import sets
from vocabulary.sets import Member

_REFUSALS = (SecurityError, ConflictError, NotFoundError, InvalidRequestError)
_ACTION = "launch.reserve"
_USE_IS_NEWS_US = 60_000_000  # what nobody uses is kept for days


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """What came of one. `launch` is None for one that is at odds with another; `error` then says how."""

    wanted: ReservationRequest
    launch: Launch | None
    error: DagsealError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What would be launched and by which rule, or why not; and as much as was found out of archive and release."""

    archive: Archive | None
    release: Release | None
    chosen: Chosen | None
    rule: str
    error: DagsealError | None


async def reserve(service: Service, caller: Caller, wanted: Sequence[ReservationRequest]) -> list[Reserved]:
    """In the order of `wanted`, which names each task instance once."""
    async with service.database.write() as tx:
        batch = Batch(service, caller, Facts(service, tx))
        await batch.look_up(wanted)
        found = [await batch.one(one) for one in wanted]
        await batch.store()
    for launch_id in batch.ended:
        service.signals.notify(of_launch(launch_id))
    for one in wanted:
        service.signals.notify(of_offers(one.task_instance))
    return found


class Batch:
    """One transaction. What several reservations have in common is decided once."""

    def __init__(self, service: Service, caller: Caller, facts: Facts) -> None:
        self.service, self.caller, self.facts, self.tx = service, caller, facts, facts.tx
        self.now = service.now_us()
        self.ended: list[str] = []
        self._made: list[Launch] = []
        self._events: list[Event] = []
        self._sets: dict[str, dict[str, Member]] = {}
        self._used: list[str] = []
        self._decisions: dict[tuple[str, str, str, str | None], Decision] = {}

    async def look_up(self, wanted: Sequence[ReservationRequest]) -> None:
        """What is on record of these."""
        found = await ledger.reserved(self.tx, [(one.task_instance, one.queueing) for one in wanted])
        self._same = {(launch.task_instance, launch.queueing): launch for launch in found}
        self._newest = {launch.task_instance: launch for launch in found if launch.newest}
        self._unended: dict[str | None, list[Launch]] = {}
        for launch in found:
            if launch.state in ledger.LIVE:
                self._unended.setdefault(launch.task_instance, []).append(launch)
        await self.facts.expect(sorted({one.dag_id for one in wanted}))

    async def one(self, wanted: ReservationRequest) -> Reserved:
        same = self._same.get((wanted.task_instance, wanted.queueing))
        if same is not None:
            if _names(same) == _names(wanted) and (same.principal, same.release_set) == (
                self.caller.principal,
                wanted.set,
            ):
                return Reserved(wanted=wanted, launch=same)
            return self._at_odds(wanted, ConflictError(f"queueing {wanted.queueing} was reserved already, otherwise"))
        decided = await self._decided(wanted)
        error = decided.error
        if error is None and decided.chosen is not None:
            try:
                chosen = decided.chosen
                launches.require_recorded_task(chosen.release, wanted.dag_id, chosen.task, wanted.task_digest)
            except DigestMismatchError as mismatch:
                error = mismatch
        before = self._newest.get(wanted.task_instance)
        if before is not None and before.state != "refused" and _names(before) != _names(wanted):
            return self._at_odds(
                wanted,
                ConflictError(f"task instance {wanted.task_instance} is {'.'.join(map(str, _names(before)[:2]))}"),
            )
        unended = self._unended.get(wanted.task_instance, [])
        if unended and decided.archive is None and error is not None:
            return self._at_odds(wanted, error)
        for launch in unended:
            await self._supersede(launch, wanted)
        launch = self._launch(wanted, decided, error)
        self._made.append(launch)
        self._note(launch, decided, error)
        return Reserved(wanted=wanted, launch=launch)

    async def store(self) -> None:
        await ledger.add_reserved(self.tx, self._made, known=self._newest.keys())
        if self._used:
            await released_sets.note_use(self.tx, self._used, self.now)
        await events.add_all(self.tx, self._events)

    async def _decided(self, wanted: ReservationRequest) -> Decision:
        key = (wanted.dag_id, wanted.task_id, wanted.queue, wanted.set)
        if key not in self._decisions:
            self._decisions[key] = await self._decide(wanted)
        return self._decisions[key]

    async def _decide(self, wanted: ReservationRequest) -> Decision:
        archive: Archive | None = None
        release: Release | None = None
        chosen: Chosen | None = None
        rule, refusal = "", None
        try:
            archive = await choosing.permitted(self.facts, self.caller, wanted.dag_id)
            release = await self._released(archive, wanted.set)
            launches.require_launchable(release)
            chosen = await choosing.choose(
                self.facts,
                self.caller,
                release,
                "of the set",
                dag_id=wanted.dag_id,
                task_id=wanted.task_id,
                queue=wanted.queue,
            )
            rule = await choosing.require_all(
                self.facts, release, chosen.groups, chosen.task, chosen.verdict, chosen.besides
            )
        except _REFUSALS as error:
            refusal = error
        return Decision(archive=archive, release=release, chosen=chosen, rule=rule, error=refusal)

    async def _released(self, archive: Archive, name: str | None) -> Release:
        """The archive's release in this set."""
        if name is None:
            raise NoVersionError("the run is pinned to no version of the bundle: begin a run of a bundle with versions")
        if name not in self._sets:
            stored = await released_sets.find(self.tx, name)
            if stored is None:
                raise NotFoundError(
                    f"there is no set {name[:16]}…: the agents of the workers put it when they serve it"
                )
            if self.now - stored.used_at >= _USE_IS_NEWS_US:
                self._used.append(name)
            self._sets[name] = sets.parse(stored.body, Digest(name))
        member = self._sets[name].get(archive.name)
        if member is None:
            raise NotFoundError(f"archive {archive.name} is not in set {name[:16]}…, to which the run is pinned")
        release = await self.facts.release(archive.name, member.number)
        if release is None:
            raise NotFoundError(f"archive {archive.name} has no release {member.number}, which is in set {name[:16]}…")
        member.digest.require(release.sha512, f"the digest of {release.archive}@{release.number}")
        return release

    async def _supersede(self, launch: Launch, wanted: ReservationRequest) -> None:
        """An earlier one of the same task instance does not go on."""
        why = f"queueing {wanted.queueing} of the task instance superseded it"
        if launch.state == "running":
            if launch.cancel_requested:
                return
            await ledger.change(self.tx, launch.id, cancel_requested=True)
        else:
            state = launches.step(launch, "cancelled")
            await ledger.change(self.tx, launch.id, state=state, ended_at=self.now, error=SUPERSEDED, detail=why)
            self.ended.append(launch.id)
        self._events.append(
            audit.decision(
                at=self.now,
                caller=self.caller,
                action="launch.cancel",
                about=f"launch:{launch.id}",
                digest=launch.digest,
                detail=why,
            )
        )

    def _launch(self, wanted: ReservationRequest, decided: Decision, error: DagsealError | None) -> Launch:
        release, config = decided.release, self.service.settings.launches
        launch = Launch(
            id=self.service.new_id(),
            state="queued",
            dag_id=wanted.dag_id,
            task_id=wanted.task_id,
            run_id=wanted.run_id,
            map_index=wanted.map_index,
            try_number=wanted.try_number,
            archive=decided.archive.name if decided.archive else "",
            release=release.number if release else 0,
            digest=release.digest if release else "",
            unix_user=decided.chosen.user if decided.chosen else "",
            queue=wanted.queue,
            owner=release.owner if release else "",
            group=release.group if release else "",
            principal=self.caller.principal,
            timeout_seconds=config.supervised_timeout_seconds,
            created_at=self.now,
            supervised=True,
            newest=True,
            task_instance=wanted.task_instance,
            queueing=wanted.queueing,
            release_set=wanted.set,
            valid_until=self.now + wanted.valid_seconds * 1_000_000,
        )
        if error is None:
            return launch
        detail = storable(str(error))[: audit.MAX_DETAIL_CHARS]
        state = launches.step(launch, "refused")
        return replace(launch, state=state, error=error.slug, detail=detail, ended_at=self.now, valid_until=None)

    def _note(self, launch: Launch, decided: Decision, error: DagsealError | None) -> None:
        what = f"{launch.dag_id}.{launch.task_id} run {launch.run_id} try {launch.try_number}"
        said = f"{what} of {launch.archive}@{launch.release}, as {launch.unix_user} in {launch.queue}"
        self._events.append(
            audit.decision(
                at=self.now,
                caller=self.caller,
                action=_ACTION,
                about=f"launch:{launch.id}",
                digest=launch.digest,
                detail=said if error is None else f"{error.slug}: {error}",
                verdict=audit.ACCEPTED if error is None else audit.REFUSED,
                rule=decided.rule if error is None else audit.rule_of(error),
            )
        )

    def _at_odds(self, wanted: ReservationRequest, error: DagsealError) -> Reserved:
        """Refused without a launch of its own: what is on record of the task instance is another's, and stays."""
        self._events.append(
            audit.decision(
                at=self.now,
                caller=self.caller,
                action=_ACTION,
                about=f"task-instance:{wanted.task_instance}",
                detail=f"{error.slug}: {error}",
                verdict=audit.REFUSED,
                rule=audit.rule_of(error),
            )
        )
        return Reserved(wanted=wanted, launch=None, error=error)


def _names(of: Launch | ReservationRequest) -> tuple[str, str, str, int]:
    return of.dag_id, of.task_id, of.run_id, of.map_index

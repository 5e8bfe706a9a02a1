"""Records as what HTTP shows of them. Fields are copied one by one from the model's list, so a secret has no way out."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, TypeVar

from pydantic import BaseModel

from integrity.fields import to_base64
from submit_api import modes
from submit_api.choosing import Chosen
from submit_api.dispatching import Offer
from submit_api.drift import Report, Standing
from submit_api.models.archives import ArchiveView, DiffView, ReleaseView
from submit_api.models.launches import LaunchView, OfferView, ReservationView
from submit_api.models.ownership import ExplainedView, MatchView, RuleView
from submit_api.models.workers import WorkerView
from submit_api.registry.archives import Latest
from submit_api.registry.records import Archive, Launch, Release, Worker
from submit_api.reservations import Reserved
from vocabulary import differences
from vocabulary.manifest import Manifest

V = TypeVar("V", bound=BaseModel)


def copied(model: type[V], value: Any) -> V:
    """The model's fields, taken from the record's attributes of the same names."""
    return model(**{name: getattr(value, name) for name in model.model_fields})


def release(found: Release, manifest: Manifest, active: int | None) -> ReleaseView:
    state = "active" if active == found.number else "inactive"
    special = {"revoked": found.revoked_at is not None, "retired": found.retired_at is not None, "pending": found.waits}
    state = next((word for word, holds in special.items() if holds), state)
    fields = {name: getattr(found, name, None) for name in ReleaseView.model_fields}
    dags = [dag.to_json() for dag in manifest.dags]
    said = {"state": state, "require_caller": manifest.require_caller, "dags": dags}
    return ReleaseView.model_validate({**fields, **said})


def diff(before: Manifest, after: Manifest) -> DiffView:
    found = differences.between(before, after)
    return DiffView.model_validate(
        {
            **asdict(found),
            "archive": after.archive,
            "before": before.number,
            "after": after.number,
            "digests": [str(before.digest), str(after.digest)],
            "same": found.same,
        }
    )


def archive(found: Archive, latest: Latest) -> ArchiveView:
    return ArchiveView(
        name=found.name,
        owner=found.owner,
        group=found.group,
        mode=modes.shown(found.mode),
        active=found.active,
        latest=found.latest,
        digest=latest.digest,
        dags=latest.dags,
    )


def launch(found: Launch) -> LaunchView:
    return copied(LaunchView, found)


def explained(found: Chosen) -> ExplainedView:
    verdict = found.verdict
    matches = [
        MatchView(
            **{name: getattr(match.rule, name) for name in RuleView.model_fields},
            role=match.party.role,
            principal=match.party.principal,
            decides=match is verdict.decides,
        )
        for match in verdict.matches
    ]
    return ExplainedView(
        dag_id=verdict.question.dag_id,
        task_id=found.task.task_id,
        archive=found.release.archive,
        release=found.release.number,
        owner=found.release.owner,
        unix_user=found.user,
        named_by=found.source,
        queue=found.queue,
        verdict="allowed" if verdict.allowed else "refused",
        rule=verdict.decides.rule.id if verdict.decides else None,
        ask=str(verdict.refusal or ""),
        matches=matches,
    )


def offer(found: Offer) -> OfferView:
    return OfferView(
        launch_id=found.launch.id,
        archive=found.launch.archive,
        digest=found.launch.digest,
        ticket=to_base64(found.ticket),
        manifest=to_base64(found.manifest),
        xcom_dags=list(found.xcom_dags),
    )


def reservation(found: Reserved) -> ReservationView:
    launch, error = found.launch, found.error
    return ReservationView(
        task_instance=found.wanted.task_instance,
        queueing=found.wanted.queueing,
        launch_id=launch.id if launch else None,
        state=launch.state if launch else "refused",
        error=launch.error if launch else error.slug if error else "",
        detail=launch.detail if launch else str(error),
    )


def worker(found: Worker, report: Report | None, now: Standing) -> WorkerView:
    return WorkerView(
        name=found.name,
        verify_key=to_base64(found.verify_key),
        sealing_key=to_base64(found.sealing_key),
        fingerprint=found.fingerprint,
        queues=found.queues,
        created_at=found.created_at,
        revoked_at=found.revoked_at,
        request_key_id=found.request_key_id,
        state=now.state,
        why=now.why,
        reported_at=report.at if report else None,
        log_size=report.log_size if report else None,
        missing=report.missing_count if report else None,
        damaged=[str(digest) for digest in report.damaged] if report else [],
    )

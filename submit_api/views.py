"""Records as what HTTP shows of them. Fields are copied one by one from the model's list, so a secret has no way out."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel

from integrity.fields import to_base64
from integrity.manifest import Manifest
from submit_api.dispatching import Offer
from submit_api.models import (
    ArchiveView,
    DagView,
    LaunchView,
    OfferView,
    ReleaseView,
    TaskView,
    WorkerView,
)
from submit_api.registry.records import Archive, Launch, Release, Worker

V = TypeVar("V", bound=BaseModel)


def copied(model: type[V], value: Any) -> V:
    """The model's fields, taken from the record's attributes of the same names."""
    return model(**{name: getattr(value, name) for name in model.model_fields})


def release(found: Release, manifest: Manifest, active: int | None) -> ReleaseView:
    state = "revoked" if found.revoked_at is not None else "active" if active == found.number else "inactive"
    fields = {name: getattr(found, name, None) for name in ReleaseView.model_fields}
    dags = [
        DagView(dag_id=dag.dag_id, member=dag.member, tasks=[TaskView(**task.to_json()) for task in dag.tasks])
        for dag in manifest.dags
    ]
    said = {"state": state, "require_caller": manifest.require_caller, "dags": dags}
    return ReleaseView.model_validate({**fields, **said})


def archive(found: Archive, latest: Release, dags: list[str]) -> ArchiveView:
    return ArchiveView(
        name=found.name,
        owner=found.owner,
        group=found.group,
        active=found.active,
        latest=found.latest,
        digest=latest.digest,
        dags=dags,
    )


def launch(found: Launch) -> LaunchView:
    return copied(LaunchView, found)


def offer(found: Offer) -> OfferView:
    return OfferView(
        launch_id=found.launch.id,
        archive=found.launch.archive,
        digest=found.launch.digest,
        ticket=to_base64(found.ticket),
        manifest=to_base64(found.manifest),
    )


def worker(found: Worker) -> WorkerView:
    return WorkerView(
        name=found.name,
        verify_key=to_base64(found.verify_key),
        sealing_key=to_base64(found.sealing_key),
        fingerprint=found.fingerprint,
        queues=found.queues,
        created_at=found.created_at,
        revoked_at=found.revoked_at,
    )

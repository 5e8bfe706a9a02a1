"""Every route, as one literal table. The server is built from it, and so is the OpenAPI document."""

from __future__ import annotations

from submit_api.http import (
    administration,
    archives,
    audit_log,
    blobs,
    keys,
    launches,
    log,
    ownership,
    publishing,
    release_sets,
    releases,
    system,
    workers,
)
from submit_api.http.routes import ANYTHING, BYTES, DSSE, JSON, Route
from submit_api.models.archives import (
    ApproveRequest,
    ArchiveDetail,
    ArchiveList,
    BlobsRequest,
    ConsistencyView,
    DiffView,
    InclusionView,
    ReleaseList,
    ReleaseView,
)
from submit_api.models.launches import (
    Heartbeat,
    LaunchList,
    LaunchRequest,
    LaunchView,
    OfferView,
    OffsetView,
    RefusedByWorker,
    ReservationsRequest,
    ReservationsView,
    StateView,
    TakeRequest,
)
from submit_api.models.ownership import (
    ExplainedView,
    OwnershipChange,
    OwnershipView,
    QueueList,
    QueueRequest,
    QueueView,
    RuleList,
    RuleRequest,
    RuleView,
    TransferRequest,
    TransferView,
)
from submit_api.models.people import (
    ExchangedView,
    ExchangeRequest,
    GroupList,
    GroupRequest,
    GroupView,
    NewTokenView,
    PublisherList,
    PublisherRequest,
    PublisherView,
    TokenList,
    TokenRequest,
    TokenView,
)
from submit_api.models.secrets import (
    ConnectionList,
    GrantList,
    GrantRequest,
    GrantView,
    ImportedView,
    SecretValue,
    SecretView,
    VariableList,
    VariableValue,
)
from submit_api.models.system import EventList, HealthView, KeyList, KeyView, ReadinessView
from submit_api.models.workers import (
    InvitationRequest,
    InvitationView,
    JoinRequest,
    NewWorkerView,
    ReportRequest,
    SpreadList,
    StandingView,
    WorkerList,
    WorkerRequest,
    WorkerView,
)
from vocabulary import blobframes, lognews
from vocabulary.logrecords import MEDIA_TYPE

_RELEASE = "/v1/archives/{name}/releases/{number:[1-9][0-9]{0,8}}"
_NAMED = f"{{secret:{ANYTHING}}}"
_OWNERSHIP = "/v1/ownership/{kind:(?:archive|connection|variable|queue)}/" + _NAMED
_PLAIN, _HTML, _CSS = "text/plain", "text/html", "text/css"


def _secrets(kind: str) -> tuple[Route, ...]:
    """Connections and variables have the same routes."""
    path, about = f"/v1/{kind}s", kind + ":{secret}"
    put = administration.put_connection if kind == "connection" else administration.put_variable
    get = administration.get_connection if kind == "connection" else administration.get_variable
    remove = administration.remove_connection if kind == "connection" else administration.remove_variable
    listed = administration.list_connections if kind == "connection" else administration.list_variables
    names = ConnectionList if kind == "connection" else VariableList
    value = SecretValue if kind == "connection" else VariableValue
    return (
        Route(
            method="GET", path=path, handler=listed, action=f"{kind}.read", summary=f"The {kind}s' names",
            answers={200: names},
        ),
        Route(
            method="PUT", path=f"{path}/{_NAMED}", handler=put, action=f"{kind}.write", about=about,
            summary=f"Store a {kind}; its value is never sent back", body=(value,),
            answers={200: SecretView, 201: SecretView},
        ),
        Route(
            method="GET", path=f"{path}/{_NAMED}", handler=get, action=f"{kind}.read", about=about,
            summary=f"When and by whom a {kind} was stored", answers={200: SecretView}, refusals=(404,),
        ),
        Route(
            method="DELETE", path=f"{path}/{_NAMED}", handler=remove, action=f"{kind}.remove", about=about,
            summary=f"Remove a {kind} with its grants", answers={204: None}, refusals=(404,),
        ),
    )  # fmt: skip


ROUTES: tuple[Route, ...] = (
    Route(
        method="PUT", path="/v1/archives/{name}", handler=archives.submit, action="archive.submit",
        about="archive:{name}", summary="Submit an archive: its bytes are the body", body=(BYTES,),
        query=("group", "task_check", "isolation", "require_caller"),
        headers=("Repr-Digest", "If-Match", "If-None-Match", "Author-Signature"),
        answers={200: ReleaseView, 201: ReleaseView}, refusals=(409, 412, 429, 503, 507),
    ),
    Route(
        method="GET", path="/v1/archives", handler=archives.listed, action="archive.list",
        summary="The caller's archives, by pages", query=("after", "limit"), answers={200: ArchiveList},
        refusals=(422,),
    ),
    Route(
        method="GET", path="/v1/archives/{name}", handler=archives.one, action="archive.read",
        about="archive:{name}", summary="An archive with its newest releases", answers={200: ArchiveDetail}, refusals=(404,),
    ),
    Route(
        method="GET", path="/v1/archives/{name}/releases", handler=archives.releases, action="archive.read",
        about="archive:{name}", summary="The releases of an archive, by pages", query=("after", "limit", "digest"),
        answers={200: ReleaseList}, refusals=(404, 422),
    ),
    Route(
        method="GET", path=_RELEASE, handler=archives.release, action="release.read", about="archive:{name}",
        summary="One release", answers={200: ReleaseView}, refusals=(404,),
    ),
    Route(
        method="POST", path=_RELEASE + "/activate", handler=releases.activate, action="release.activate",
        about="archive:{name}", summary="Make this release the one that is launched", headers=("If-Match",),
        answers={200: ReleaseView}, refusals=(404, 409, 412),
    ),
    Route(
        method="POST", path="/v1/archives/{name}/rollback", handler=releases.roll_back, action="release.rollback",
        about="archive:{name}", summary="Make the release the active one that was it before, or an earlier one",
        query=("to",), headers=("If-Match",), answers={200: ReleaseView}, refusals=(404, 409, 412, 422),
    ),
    Route(
        method="POST", path=_RELEASE + "/revoke", handler=releases.revoke, action="release.revoke",
        about="archive:{name}", summary="Never launch this release again; with kill, end what runs of it",
        query=("reason", "kill"), answers={200: ReleaseView}, refusals=(404, 422),
    ),
    Route(
        method="POST", path=_RELEASE + "/approve", handler=releases.approve, action="release.approve",
        about="archive:{name}", summary="Approve what waits, by the digest that was looked at", body=(ApproveRequest,),
        answers={200: ReleaseView}, refusals=(404, 409, 412),
    ),
    Route(
        method="GET", path=_RELEASE + "/diff", handler=releases.diff, action="release.read", about="archive:{name}",
        summary="What changed in this release: files, dags, tasks, connections, unix users, settings",
        query=("against",), answers={200: DiffView}, refusals=(404, 409, 422),
    ),
    Route(
        method="GET", path=_RELEASE + "/workers", handler=releases.spread, action="release.read", about="archive:{name}",
        summary="Which workers hold this release, as they last said", answers={200: SpreadList}, refusals=(404,),
    ),
    Route(
        method="GET", path=_RELEASE + "/manifest", handler=archives.manifest, action="manifest.read",
        about="archive:{name}", summary="The signed manifest's envelope", answers={200: DSSE}, refusals=(404,),
    ),
    Route(
        method="GET", path="/v1/blobs/sha512/{hex:[0-9a-f]{128}}", handler=blobs.one, action="blob.read",
        about="blob:{hex}", summary="Bytes by their digest; immutable", headers=("Range", "If-None-Match"),
        answers={200: BYTES, 206: BYTES, 304: None}, refusals=(404, 416, 422),
    ),
    Route(
        method="GET", path="/v1/log/checkpoint", handler=log.checkpoint, action="log.checkpoint",
        summary="The log's newest checkpoint, a signed note", answers={200: _PLAIN}, refusals=(404, 503), quiet=True,
    ),
    Route(
        method="GET", path="/v1/log/keys", handler=log.keys, action="log.checkpoint",
        summary="The entries of the log's keys, each handed on by the one before", answers={200: BYTES},
    ),
    Route(
        method="GET", path="/v1/log/tile/{path:(?:entries|[0-7])/[0-9x/]{3,19}(?:\\.p/[0-9]{1,3})?}", handler=log.tile,
        action="log.read", summary="A tile of the log, or a bundle of its entries; immutable", answers={200: BYTES},
        refusals=(403, 404),
    ),
    Route(
        method="GET", path="/v1/log/entries", handler=log.entries, action="log.read",
        summary="Entries of the log from one to before another, each with its length before it; worker: and new blobs",
        query=("start", "end", "blobs"), answers={200: (BYTES, lognews.MEDIA_TYPE)}, refusals=(404, 422),
    ),
    Route(
        method="GET", path="/v1/log/consistency", handler=log.consistency, action="log.read",
        summary="The proof that the log of so many leaves is the beginning of that of so many", query=("old", "new"),
        answers={200: ConsistencyView}, refusals=(404, 422),
    ),
    Route(
        method="GET", path=_RELEASE + "/proof", handler=log.inclusion, action="release.read", about="archive:{name}",
        summary="What proves this release without the server: manifest, leaf, path, checkpoint",
        answers={200: InclusionView}, refusals=(404,),
    ),
    Route(
        method="POST", path="/v1/blobs/batch", handler=blobs.batch, action="blob.read", about="blobs",
        summary="Many blobs in one answer, each in a frame", body=(BlobsRequest,), answers={200: blobframes.MEDIA_TYPE},
    ),
    Route(
        method="POST", path="/v1/launches", handler=launches.create, action="launch.create", about="launch",
        summary="Reserve a launch of one task", body=(LaunchRequest,), answers={201: LaunchView}, refusals=(404, 409),
    ),
    Route(
        method="GET", path="/v1/launches", handler=launches.listed, action="launch.list", summary="Launches, newest first",
        query=("dag_id", "state", "limit"), answers={200: LaunchList}, refusals=(422,),
    ),
    Route(
        method="GET", path="/v1/launches/{launch_id}", handler=launches.one, action="launch.read",
        about="launch:{launch_id}", summary="A launch; can wait until it has ended", query=("wait_seconds",),
        answers={200: LaunchView}, refusals=(404, 422),
    ),
    Route(
        method="GET", path="/v1/launches/{launch_id}/log", handler=launches.read_log, action="launch.log.read",
        about="launch:{launch_id}", summary="The log from an offset: text, or the records; can wait",
        query=("offset", "wait_seconds"), answers={200: (BYTES, MEDIA_TYPE)}, refusals=(404, 422),
    ),
    Route(
        method="POST", path="/v1/launches/{launch_id}/cancel", handler=launches.cancel, action="launch.cancel",
        about="launch:{launch_id}", summary="Stop a launch", answers={200: LaunchView}, refusals=(404, 409),
    ),
    Route(
        method="PUT", path="/v1/sets/{hex:[0-9a-f]{128}}", handler=release_sets.put, action="set.put", about="set:{hex}",
        summary="Worker: a set of releases, by the SHA-512 of its canonical JSON", body=(JSON,),
        answers={200: None, 201: None}, refusals=(404,),
    ),
    Route(
        method="GET", path="/v1/sets/{hex:[0-9a-f]{128}}", handler=release_sets.get, action="set.read", about="set:{hex}",
        summary="A set of releases; immutable", answers={200: JSON}, refusals=(404,),
    ),
    Route(
        method="POST", path="/v1/reservations", handler=launches.reserve, action="launch.reserve",
        about="reservations", summary="Scheduler: reserve task instances of Airflow's, each for one queueing",
        body=(ReservationsRequest,), answers={200: ReservationsView},
    ),
    Route(
        method="POST", path="/v1/workers/{name}/take", handler=launches.take, action="launch.take",
        about="worker:{name}", summary="Worker: take the next launch of these queues, or of a task instance",
        body=(TakeRequest,), query=("wait_seconds",), answers={200: OfferView, 204: None}, refusals=(409,),
    ),
    Route(
        method="POST", path="/v1/launches/{launch_id}/claim", handler=launches.claim, action="launch.claim",
        about="launch:{launch_id}", summary="Worker: the launcher's claim, answered with the sealed grant", body=(DSSE,),
        answers={200: DSSE}, refusals=(404, 409),
    ),
    Route(
        method="POST", path="/v1/launches/{launch_id}/log", handler=launches.append_log, action="launch.log.append",
        about="launch:{launch_id}", summary="Worker: more of the log", body=(BYTES,), query=("offset",),
        answers={200: OffsetView}, refusals=(404, 409),
    ),
    Route(
        method="POST", path="/v1/launches/{launch_id}/state", handler=launches.state, action="launch.state",
        about="launch:{launch_id}", summary="Worker: the launcher's signed result, a heartbeat, or a refusal",
        body=(DSSE, Heartbeat, RefusedByWorker), answers={200: StateView}, refusals=(404, 409),
    ),
    Route(
        method="POST", path="/v1/connections/import", handler=administration.import_connections,
        action="connection.import", about="connection", query=("format",), body=(JSON, "application/yaml", _PLAIN),
        summary="Import what 'airflow connections export' wrote, all or nothing", answers={200: ImportedView},
    ),
    *_secrets("connection"),
    *_secrets("variable"),
    Route(
        method="GET", path=_OWNERSHIP, handler=ownership.show, action="ownership.read",
        about="{kind}:{secret}", summary="Owner, group and mode of an archive, connection, variable or queue",
        answers={200: OwnershipView}, refusals=(404, 422),
    ),
    Route(
        method="PATCH", path=_OWNERSHIP, handler=ownership.change, action="ownership.change",
        about="{kind}:{secret}", summary="Change owner, group or mode", body=(OwnershipChange,),
        answers={200: OwnershipView}, refusals=(404,),
    ),
    Route(
        method="GET", path="/v1/queues", handler=ownership.list_queues, action="queue.read",
        summary="The queues on record; others are open to all", answers={200: QueueList},
    ),
    Route(
        method="PUT", path="/v1/queues/{name}", handler=ownership.put_queue, action="queue.write", about="queue:{name}",
        summary="Put a queue on record, with an owner", body=(QueueRequest,), answers={201: QueueView},
        refusals=(409,),
    ),
    Route(
        method="DELETE", path="/v1/queues/{name}", handler=ownership.remove_queue, action="queue.remove",
        about="queue:{name}", summary="Take a queue off the record", answers={204: None}, refusals=(404,),
    ),
    Route(
        method="POST", path="/v1/dags/{dag_id}/transfer", handler=ownership.transfer_dag, action="dag.transfer",
        about="dag:{dag_id}", summary="Give a dag_id to another archive", body=(TransferRequest,),
        answers={200: TransferView}, refusals=(404, 409),
    ),
    Route(
        method="POST", path="/v1/grants", handler=administration.add_grant, action="grant.add", about="grant",
        summary="Grant a connection or variable", body=(GrantRequest,), answers={201: GrantView}, refusals=(404, 409),
    ),
    Route(
        method="GET", path="/v1/grants", handler=administration.list_grants, action="grant.read",
        summary="All grants", answers={200: GrantList},
    ),
    Route(
        method="GET", path="/v1/grants/{id}", handler=administration.get_grant, action="grant.read",
        about="grant:{id}", summary="A grant", answers={200: GrantView}, refusals=(404,),
    ),
    Route(
        method="DELETE", path="/v1/grants/{id}", handler=administration.remove_grant, action="grant.remove",
        about="grant:{id}", summary="Take a grant back", answers={204: None}, refusals=(404,),
    ),
    Route(
        method="POST", path="/v1/impersonation-rules", handler=administration.add_rule, action="impersonation.add",
        about="rule", summary="Let an owner's dags run as a unix user", body=(RuleRequest,), answers={201: RuleView},
    ),
    Route(
        method="GET", path="/v1/impersonation-rules", handler=administration.list_rules, action="impersonation.read",
        summary="All impersonation rules", answers={200: RuleList},
    ),
    Route(
        method="GET", path="/v1/impersonation-rules/explain", handler=administration.explain_rules,
        action="impersonation.explain", about="impersonation", summary="As whom a task would run, and which rule decides",
        query=("dag_id", "task_id", "run_as_user", "queue"), answers={200: ExplainedView}, refusals=(404, 409, 422),
    ),
    Route(
        method="GET", path="/v1/impersonation-rules/{id:[0-9a-f]{32}}", handler=administration.get_rule,
        action="impersonation.read", about="rule:{id}", summary="A rule", answers={200: RuleView}, refusals=(404,),
    ),
    Route(
        method="DELETE", path="/v1/impersonation-rules/{id:[0-9a-f]{32}}", handler=administration.remove_rule,
        action="impersonation.remove", about="rule:{id}", summary="Remove a rule", answers={204: None}, refusals=(404,),
    ),
    Route(
        method="GET", path="/v1/groups", handler=administration.list_groups, action="group.read",
        summary="All groups", answers={200: GroupList},
    ),
    Route(
        method="PUT", path="/v1/groups/{name}", handler=administration.put_group, action="group.write",
        about="group:{name}", summary="Create a group or replace its members", body=(GroupRequest,),
        answers={200: GroupView},
    ),
    Route(
        method="GET", path="/v1/groups/{name}", handler=administration.get_group, action="group.read",
        about="group:{name}", summary="A group's members", answers={200: GroupView}, refusals=(404,),
    ),
    Route(
        method="POST", path="/v1/tokens", handler=administration.create_token, action="token.create", about="token",
        summary="Make a token; it is shown once", body=(TokenRequest,), answers={201: NewTokenView},
    ),
    Route(
        method="GET", path="/v1/tokens", handler=administration.list_tokens, action="token.read",
        summary="All tokens, without their secrets", answers={200: TokenList},
    ),
    Route(
        method="GET", path="/v1/tokens/{id:[a-z2-7]{12}}", handler=administration.get_token, action="token.read",
        about="token:{id}", summary="A token, without its secret", answers={200: TokenView}, refusals=(404,),
    ),
    Route(
        method="DELETE", path="/v1/tokens/{id:[a-z2-7]{12}}", handler=administration.revoke_token, action="token.revoke",
        about="token:{id}", summary="Revoke a token", answers={204: None}, refusals=(404,),
    ),
    Route(
        method="POST", path="/v1/tokens/exchange", handler=publishing.exchange, action="token.exchange", about="token",
        summary="A token of CI's issuer for a push token of fifteen minutes; the token in the body proves who asks",
        body=(ExchangeRequest,), answers={201: ExchangedView}, refusals=(401, 403, 409, 429, 503),
    ),
    Route(
        method="POST", path="/v1/publishers", handler=publishing.add, action="publisher.add", about="publisher",
        summary="Trust the runs of a workflow to push", body=(PublisherRequest,), answers={201: PublisherView},
        refusals=(409,),
    ),
    Route(
        method="GET", path="/v1/publishers", handler=publishing.listed, action="publisher.read",
        summary="All trusted publishers", answers={200: PublisherList},
    ),
    Route(
        method="GET", path="/v1/publishers/{id}", handler=publishing.one, action="publisher.read",
        about="publisher:{id}", summary="A trusted publisher", answers={200: PublisherView}, refusals=(404,),
    ),
    Route(
        method="DELETE", path="/v1/publishers/{id}", handler=publishing.remove, action="publisher.remove",
        about="publisher:{id}", summary="Remove a publisher and its tokens", answers={204: None}, refusals=(404,),
    ),
    Route(
        method="POST", path="/v1/workers", handler=workers.enroll, action="worker.enroll", about="worker",
        summary="Enrol a worker by its launcher's keys; its token is shown once", body=(WorkerRequest,),
        answers={201: NewWorkerView}, refusals=(409,),
    ),
    Route(
        method="GET", path="/v1/workers", handler=workers.listed, action="worker.read",
        summary="All workers", answers={200: WorkerList},
    ),
    Route(
        method="GET", path="/v1/workers/{name}", handler=workers.one, action="worker.read",
        about="worker:{name}", summary="A worker", answers={200: WorkerView}, refusals=(404,),
    ),
    Route(
        method="POST", path="/v1/workers/{name}/report", handler=workers.report, action="worker.report",
        about="worker:{name}", summary="Worker: what it holds, and how much of the log it knows", body=(ReportRequest,),
        answers={200: StandingView},
    ),
    Route(
        method="DELETE", path="/v1/workers/{name}", handler=workers.revoke, action="worker.revoke",
        about="worker:{name}", summary="Revoke a worker with its tokens, key and invitations", answers={204: None},
        refusals=(404,),
    ),
    Route(
        method="POST", path="/v1/workers/{name}/invite", handler=workers.invite, action="worker.invite",
        about="worker:{name}", summary="A token that this worker joins with, once; it is shown once",
        body=(InvitationRequest,), answers={201: InvitationView},
    ),
    Route(
        method="POST", path="/v1/workers/{name}/join", handler=workers.join, action="worker.join", about="worker:{name}",
        summary="Join with an invitation's token, signed by the agent's new key; 200 when it has joined so already",
        body=(JoinRequest,), answers={200: WorkerView, 201: WorkerView}, refusals=(401, 409, 429),
    ),
    Route(
        method="GET", path="/v1/keys", handler=keys.listed, action="key.read",
        summary="The keys that secrets rest under, and how many rows each still holds", answers={200: KeyList},
    ),
    Route(
        method="POST", path="/v1/keys/rotate", handler=keys.rotate, action="key.rotate", about="row-keys",
        summary="Encrypt with a new key from now on; what is under older ones is rewritten", answers={201: KeyView},
        refusals=(409, 507),
    ),
    Route(
        method="DELETE", path="/v1/keys/{id:[0-9a-f]{32}}", handler=keys.retire, action="key.retire", about="key:{id}",
        summary="Remove a key that no row needs", answers={204: None}, refusals=(404, 409, 507),
    ),
    Route(
        method="GET", path="/v1/audit", handler=audit_log.listed, action="audit.read",
        summary="The audit log, in order",
        query=("after", "limit", "object", "principal", "action", "verdict", "since", "until"),
        answers={200: (EventList, *audit_log.FORMS)}, refusals=(422,),
    ),
    Route(
        method="GET", path="/healthz", handler=system.healthz, action="health", summary="The process answers",
        answers={200: HealthView},
    ),
    Route(
        method="GET", path="/readyz", handler=system.readyz, action="health",
        summary="Database, blob store and signing key work", answers={200: ReadinessView, 503: ReadinessView},
    ),
    Route(
        method="GET", path="/metrics", handler=system.metrics, action="metrics", summary="Prometheus metrics",
        answers={200: _PLAIN},
    ),
    Route(
        method="GET", path="/openapi.json", handler=system.openapi_json, action="openapi", summary="This API's description",
        answers={200: JSON},
    ),
    Route(
        method="GET", path="/docs", handler=system.docs, action="docs", summary="The description, to read",
        answers={200: _HTML},
    ),
    Route(
        method="GET", path="/docs/docs.css", handler=system.docs_style, action="docs", summary="Its style",
        answers={200: _CSS},
    ),
)  # fmt: skip

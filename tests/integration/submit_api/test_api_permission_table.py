"""Every role, object, mode and action of `permissions.ACTIONS` over HTTP: let in, or refused without a trace.

Each action of the table has one request here that succeeds when it is allowed; an action without one fails the first test.
Seen to fail when weakened: `modes.permits` that looks at the group's bits for the owner, `permissions.require` that is asked
for `READ` everywhere, `permitted` (the SQL) with the wrong shift.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from api_rig import SOURCE, Answer, Api, WorkerPeer, dag_entry, task_entry
from sqlalchemy import delete, select, update

from integrity.digests import Digest
from integrity.fields import to_base64
from submit_api import connections, modes, permissions
from submit_api.http.table import ROUTES
from submit_api.registry import ownership, people, secrets
from submit_api.registry.records import Grant, Queue
from submit_api.registry.tables import (
    ArchiveRow,
    Base,
    DagRow,
    EventRow,
    GrantRow,
    LaunchRow,
    QueueRow,
    ReleaseRow,
    SetRow,
    TokenRow,
)
from vocabulary import merkle, sets
from vocabulary.sets import Member

EMPTY = to_base64(merkle.root_of([]))
OWNER, GROUP, ID = "alice", "team", "0" * 32
MODES = (0, *(1 << bit for bit in range(9)), 0o777, 0o707)
RULE = {"subject_kind": "group", "subject": "g", "unix_user": "u"}
APPROVE = {"digest": str(Digest.of(SOURCE))}
KEY = {"verify_key": "", "sealing_key": "", "fingerprint": "0" * 64, "queues": ["x"]}

REPORT = {
    "log_size": 0, "log_root": EMPTY, "held_root": EMPTY, "missing": [], "missing_count": 0, "damaged": [], "alarm": ""
}  # fmt: skip
SET = sets.to_bytes([Member(archive="etl.py", number=1, digest=Digest.of(SOURCE))])
NEW_SET = sets.to_bytes([Member(archive="other.py", number=1, digest=Digest.of(SOURCE + b"#"))])
RESERVATION = {
    "task_instance": f"{'0' * 8}-0000-0000-0000-{'0' * 12}", "queueing": "1", "dag_id": "etl", "task_id": "t",
    "run_id": "new", "map_index": -1, "try_number": 1, "queue": "default", "set": Digest.of(SET).hex,
    "task_digest": str(Digest.of(b"task t")), "valid_seconds": 60,
}  # fmt: skip
JOIN = {"token": "x", "request_key": "x", "verify_key": "x", "sealing_key": "x"}


@dataclass(frozen=True)
class Ask:
    """One request, what it answers when it is allowed, and to whom it is refused as if it were not there."""

    method: str
    path: str
    ok: int
    json: Any = None
    body: bytes | None = None
    hidden: int = 403


ASKS: dict[str, Ask] = {
    "archive.submit": Ask("PUT", "/v1/archives/etl.py", 200, body=SOURCE),
    "archive.list": Ask("GET", "/v1/archives", 200),
    "archive.read": Ask("GET", "/v1/archives/etl.py", 200),
    "release.read": Ask("GET", "/v1/archives/etl.py/releases/1", 200),
    "release.activate": Ask("POST", "/v1/archives/etl.py/releases/1/activate", 200),
    "release.rollback": Ask("POST", "/v1/archives/etl.py/rollback", 409),  # nothing was active before
    "release.approve": Ask("POST", "/v1/archives/etl.py/releases/1/approve", 409, json=APPROVE),  # it does not wait
    "release.revoke": Ask("POST", "/v1/archives/etl.py/releases/1/revoke", 200),
    "manifest.read": Ask("GET", "/v1/archives/etl.py/releases/1/manifest", 200),
    "blob.read": Ask("GET", f"/v1/blobs/sha512/{Digest.of(SOURCE).hex}", 200, hidden=404),
    "set.put": Ask("PUT", f"/v1/sets/{Digest.of(NEW_SET).hex}", 201, body=NEW_SET),
    "set.read": Ask("GET", f"/v1/sets/{Digest.of(SET).hex}", 200, hidden=404),
    "log.checkpoint": Ask("GET", "/v1/log/checkpoint", 200),
    "log.read": Ask("GET", "/v1/log/entries?start=0&end=9", 200),
    "launch.create": Ask("POST", "/v1/launches", 201, json={"dag_id": "etl", "task_id": "t", "run_id": "new"}),
    "launch.reserve": Ask("POST", "/v1/reservations", 200, json={"reservations": [RESERVATION]}),
    "launch.list": Ask("GET", "/v1/launches", 200),
    "launch.read": Ask("GET", "/v1/launches/LAUNCH", 200),
    "launch.log.read": Ask("GET", "/v1/launches/LAUNCH/log", 200),
    "launch.cancel": Ask("POST", "/v1/launches/LAUNCH/cancel", 200),
    "launch.take": Ask("POST", "/v1/workers/w1/take", 204, json={"queues": ["idle"]}),
    "launch.claim": Ask("POST", "/v1/launches/RUNNING/claim", 400, body=b"{}"),  # read, and found to be no claim
    "launch.log.append": Ask("POST", "/v1/launches/RUNNING/log?offset=0", 200, body=b""),
    "launch.state": Ask("POST", "/v1/launches/RUNNING/state", 200, json={"state": "running"}),
    **{
        f"{kind}.{verb}": ask
        for kind in ("connection", "variable")
        for verb, ask in {
            "write": Ask("PUT", f"/v1/{kind}s/it", 200, json={"value": "http://h"}),
            "read": Ask("GET", f"/v1/{kind}s/it", 200),
            "remove": Ask("DELETE", f"/v1/{kind}s/it", 204),
        }.items()
    },
    "connection.import": Ask("POST", "/v1/connections/import?format=json", 200, body=b'{"it": "http://h"}'),
    "ownership.read": Ask("GET", "/v1/ownership/archive/etl.py", 200),
    "ownership.change": Ask("PATCH", "/v1/ownership/archive/etl.py", 200, json={"mode": "u+x"}),
    "dag.transfer": Ask("POST", "/v1/dags/etl/transfer", 200, json={"archive": "other.py"}),
    "queue.write": Ask("PUT", "/v1/queues/new", 201, json={}),
    "queue.read": Ask("GET", "/v1/queues", 200),
    "queue.remove": Ask("DELETE", "/v1/queues/it", 204),
    "grant.add": Ask("POST", "/v1/grants", 409, json={"kind": "variable", "name": "it", "to_kind": "principal", "to": "g"}),
    "grant.read": Ask("GET", "/v1/grants", 200),
    "grant.remove": Ask("DELETE", f"/v1/grants/{ID}", 204),
    "impersonation.add": Ask("POST", "/v1/impersonation-rules", 201, json=RULE),
    "impersonation.read": Ask("GET", "/v1/impersonation-rules", 200),
    "impersonation.remove": Ask("DELETE", f"/v1/impersonation-rules/{ID}", 404),
    "impersonation.explain": Ask("GET", "/v1/impersonation-rules/explain?dag_id=etl&task_id=t", 200),
    "group.write": Ask("PUT", f"/v1/groups/{GROUP}", 200, json={"members": ["bob"]}),
    "group.read": Ask("GET", "/v1/groups", 200),
    "token.create": Ask("POST", "/v1/tokens", 201, json={"principal": "new"}),
    "token.read": Ask("GET", "/v1/tokens", 200),
    "token.revoke": Ask("DELETE", f"/v1/tokens/{'a' * 12}", 404),
    "token.exchange": Ask("POST", "/v1/tokens/exchange", 401, json={"token": "x"}),  # of nobody, whoever brings it
    "key.read": Ask("GET", "/v1/keys", 200),
    "key.rotate": Ask("POST", "/v1/keys/rotate", 201),
    "key.retire": Ask("DELETE", f"/v1/keys/{ID}", 404),
    "publisher.add": Ask("POST", "/v1/publishers", 422, json={"repository": "octo/etl"}),
    "publisher.read": Ask("GET", "/v1/publishers", 200),
    "publisher.remove": Ask("DELETE", f"/v1/publishers/{ID}", 404),
    "worker.enroll": Ask("POST", "/v1/workers", 422, json={"name": "w2", **KEY}),
    "worker.invite": Ask("POST", "/v1/workers/w2/invite", 201, json={"queues": ["x"], "fingerprint": "0" * 64}),
    "worker.join": Ask("POST", "/v1/workers/w2/join", 401, json=JOIN),  # whoever brings it: it is not signed
    "worker.report": Ask("POST", "/v1/workers/w1/report", 200, json=REPORT),
    "worker.read": Ask("GET", "/v1/workers", 200),
    "worker.revoke": Ask("DELETE", "/v1/workers/w2", 404),
    "audit.read": Ask("GET", "/v1/audit", 200),
    "health": Ask("GET", "/healthz", 200),
    "metrics": Ask("GET", "/metrics", 200),
    "openapi": Ask("GET", "/openapi.json", 200),
    "docs": Ask("GET", "/docs", 200),
}  # fmt: skip
# The word of the table, also for those whose object decides besides it.
WORDS = permissions.ACTIONS | dict.fromkeys(("manifest.read", "blob.read", "set.read", "ownership.read"), "archive:r")
ADMINISTRATION = ("queue", "impersonation", "group", "token", "key", "publisher", "worker", "audit")
PUBLIC = ("health", "metrics", "openapi", "docs", "log")
AREAS = {
    "archives": ("archive", "release", "manifest", "blob", "set", "dag"),
    "launches": ("launch",),
    "secrets": ("connection", "variable", "grant"),
    "administration": ("ownership", *ADMINISTRATION, *PUBLIC),
}
LISTS = {"archive.list": "archives", "launch.list": "launches", "queue.read": "queues"}


def test_every_action_of_the_table_has_a_request_and_a_route() -> None:
    assert set(ASKS) == set(permissions.ACTIONS) == {route.action for route in ROUTES}
    assert {action.partition(".")[0] for action in ASKS} == {name for names in AREAS.values() for name in names}


class Table:
    """The API with one object of each kind, all alice's and her team's, and a token for each role."""

    def __init__(self, api: Api, worker: WorkerPeer) -> None:
        self.api, self.worker = api, worker
        self.tokens: dict[str, str | None] = {"anonymous": None, "worker": worker.token, "admin": api.admin}
        self.places: dict[str, str] = {}
        rows = api.service.keys.rows
        self.secrets = [
            connections.seal(rows, kind, "it", "http://h", earlier=None, at=1, by=OWNER)
            for kind in ("connection", "variable")
        ]

    async def fill(self) -> None:
        api = self.api
        for role, name in (("owner", OWNER), ("member", "bob"), ("other", "carol")):
            self.tokens[role] = await api.token(name)
        async with api.service.database.write() as tx:
            await people.put_group(tx, GROUP, ["bob"], None, 1)
        await api.allow(OWNER)
        assert (await api.push("etl.py", SOURCE, token=self.tokens["owner"])).status == 201
        assert (await api.push("other.py", SOURCE + b"#", token=self.tokens["owner"])).status == 201
        self.places["RUNNING"] = (await api.launch(run_id="running")).json["id"]
        offer = await self.worker.take()
        assert offer is not None and (await self.worker.claim(offer)).status == 200
        answer = await api.call("PUT", f"/v1/sets/{Digest.of(SET).hex}", token=self.worker.token, body=SET)
        assert answer.status == 201, answer.body
        self.places["LAUNCH"] = (await api.launch(run_id="queued")).json["id"]

    async def arrange(self, mode: int) -> None:
        """Everything as it was at first, with this mode."""
        async with self.api.service.database.write() as tx:
            run = tx.session.execute
            await run(update(ArchiveRow).values(owner=OWNER, group=GROUP, mode=mode, active=1))
            await run(update(ArchiveRow).where(ArchiveRow.name == "other.py").values(mode=0o777))
            await run(update(DagRow).where(DagRow.dag_id == "etl").values(archive="etl.py", transferred_at=None))
            await run(update(ReleaseRow).values(revoked_at=None))
            await run(
                update(LaunchRow).where(LaunchRow.id == self.places["LAUNCH"]).values(state="queued", ended_at=None)
            )
            await run(delete(LaunchRow).where(LaunchRow.run_id == "new"))
            await run(delete(SetRow).where(SetRow.hex == Digest.of(NEW_SET).hex))
            await run(delete(QueueRow))
            await ownership.add_queue(tx, Queue(name="it", owner=OWNER, group=GROUP, mode=mode, created_at=1))
            for row in self.secrets:
                await secrets.put(tx, replace(row, owner=OWNER, group=GROUP, mode=mode))
            await run(delete(GrantRow))
            fields = {"kind": "variable", "name": "it", "to_kind": "principal", "to": "g"}
            await secrets.add_grant(tx, Grant(id=ID, created_at=1, created_by="x", **fields))

    async def ask(self, role: str, action: str) -> Answer:
        ask = ASKS[action]
        path = ask.path
        for word, place in self.places.items():
            path = path.replace(word, place)
        kind = "application/vnd.dsse+json" if action == "launch.claim" else "application/json"
        headers = {"Content-Type": kind} if ask.json is None and ask.body is not None else {}
        return await self.api.call(
            ask.method, path, token=self.tokens[role], json=ask.json, body=ask.body, headers=headers
        )

    async def rows(self) -> list[Any]:
        """All that a refusal must not change: every table but the audit log and the time of a token's last use."""
        found: list[Any] = []
        async with self.api.service.database.read() as tx:
            for table in Base.metadata.sorted_tables:
                if table.name != "audit_events":
                    shown = [column for column in table.columns if column.name != "last_used_at"]
                    found.append((await tx.session.execute(select(*shown).order_by(*table.primary_key))).all())
        return found


@pytest.fixture
async def table(api: Api) -> AsyncIterator[Table]:
    made = Table(api, await api.worker(queues=["default", "idle"]))
    await made.fill()
    yield made


ROLES = ("anonymous", "worker", "other", "member", "owner", "admin")


def allowed(role: str, action: str, mode: int) -> bool:
    """What the table means, said once more and otherwise."""
    who = permissions.ACTIONS[action]
    user = role in ("other", "member", "owner", "admin")
    if who == permissions.PUBLIC:
        return True
    if action == "log.read":  # whoever has a token: it holds no bytes
        return role != "anonymous"
    if who == permissions.WORKERS or (who == permissions.FETCHERS and role == "worker"):
        return role == "worker"
    if who == permissions.ADMIN:
        return role == "admin"
    if action == "ownership.change":
        return role in ("owner", "admin")
    triple = modes.shown(mode)[{"owner": 0, "member": 3}.get(role, 6) :][:3]
    return user and (role == "admin" or WORDS[action][-1] in triple)


@pytest.mark.parametrize("area", AREAS)
async def test_who_may(table: Table, area: str) -> None:
    """Arranged anew after what was let in and may have changed something; after the refusals all is as before."""
    actions = [action for action in permissions.ACTIONS if action.partition(".")[0] in AREAS[area]]
    for action, mode in itertools.product(actions, MODES):
        if mode != 0o777 and ":" not in WORDS[action]:
            continue
        roles = [role for role in ROLES if mode == 0o777 or role not in ("anonymous", "worker")]
        refused = [role for role in roles if not allowed(role, action, mode)]
        changes = ASKS[action].method != "GET"
        # Whose reservation is refused, not his request, has a launch on record that was refused.
        noted = [role for role in refused if action == "launch.reserve" and role not in ("anonymous", "worker")]
        await table.arrange(mode)
        before = await table.rows() if changes and refused else []
        for role in [role for role in refused if role not in noted]:
            await _refused(table, action, role, mode)
        if before:
            assert await table.rows() == before, f"{action} by one of {refused}, {modes.shown(mode)}: changed something"
        for role in noted:
            await _refused(table, action, role, mode)
            await table.arrange(mode)
        for role in roles:
            if role in refused:
                continue
            answer = await table.ask(role, action)
            case = f"{action} by {role} with {modes.shown(mode)}: {answer.status} {answer.body[:300]!r}"
            assert answer.status == ASKS[action].ok, case
            if action == "launch.reserve":
                assert [told["error"] for told in answer.json["reservations"]] == [""], case
            if action in LISTS and role != "worker":
                assert [one for one in answer.json[LISTS[action]] if one.get("name") != "other.py"], case
            if changes:
                await table.arrange(mode)


async def _refused(table: Table, action: str, role: str, mode: int) -> None:
    """The right refusal, and it is in the audit log. A list is there for everybody, without what he may not see."""
    answer = await table.ask(role, action)
    case = f"{action} by {role} with {modes.shown(mode)}: {answer.status} {answer.body[:300]!r}"
    if action in LISTS and role not in ("anonymous", "worker"):
        assert answer.status == 200, case
        assert not [one for one in answer.json[LISTS[action]] if one.get("name") != "other.py"], case
        return
    if action == "launch.reserve" and role not in ("anonymous", "worker"):
        (told,) = answer.json["reservations"]
        assert (answer.status, told["state"], told["error"]) == (200, "refused", "not-owner"), case
        return
    assert answer.status == (401 if role == "anonymous" else ASKS[action].hidden if role != "worker" else 403), case
    if answer.status == 403:
        (event,) = await _events(table.api, action)
        assert event.verdict == "refused", case


async def _events(api: Api, action: str) -> list[EventRow]:
    """The last one of an action."""
    async with api.service.database.read() as tx:
        query = select(EventRow).where(EventRow.action == action).order_by(EventRow.seq.desc()).limit(1)
        return list(await tx.session.scalars(query))


RELATIONS = {"owner": (OWNER, "x"), "member": ("x", GROUP), "other": ("x", "x")}


@pytest.mark.parametrize("relation", RELATIONS)
async def test_whose_task_may_use_what(table: Table, relation: str) -> None:
    """The execute bit of connection, variable and queue, for the owner of the release that is launched."""
    api, (owner, group) = table.api, RELATIONS[relation]
    await api.call("PUT", f"/v1/groups/{GROUP}", token=api.admin, json={"members": [OWNER]})
    api.launcher.dags["uses.py"] = [
        dag_entry("uses", task_entry("c", connections=("it",)), task_entry("q", queue="it"))
    ]
    assert (await api.push("uses.py", b"uses", token=table.tokens["owner"])).status == 201
    for number, mode in enumerate(MODES):
        await table.arrange(0o777)
        async with api.service.database.write() as tx:
            for kind in ("connection", "variable", "queue"):
                await ownership.change(tx, kind, "it", owner=owner, group=group, mode=mode)
        fits = "x" in modes.shown(mode)[{"owner": 0, "member": 3, "other": 6}[relation] :][:3]
        async with api.service.database.read() as tx:
            usable = await secrets.granted_names(tx, OWNER, await people.groups_of(tx, OWNER))
        assert {kind for kind, _ in usable} == ({"connection", "variable"} if fits else set()), modes.shown(mode)
        for task, slug in (("c", "out-of-scope"), ("q", "not-owner")):
            answer = await api.launch(dag_id="uses", task_id=task, run_id=f"r{number}")
            assert answer.status == (201 if fits else 403), (task, modes.shown(mode), answer.body)
            assert fits or answer.slug == slug


async def test_releases_from_before_a_transfer_are_no_damage(table: Table) -> None:
    await table.arrange(0o770)
    assert (await table.ask("owner", "dag.transfer")).status == 200
    arranged = {"log-archive-disagrees"}  # the rows were, not by a decision
    assert {finding.rule for finding in await table.api.fsck()} == arranged
    async with table.api.service.database.write() as tx:
        await tx.session.execute(update(DagRow).values(transferred_at=None))
    assert {finding.rule for finding in await table.api.fsck()} == {"dag-owner", *arranged}


async def test_a_token_of_nobody_changes_nothing(table: Table) -> None:
    before = await table.rows()
    for action, ask in ASKS.items():
        if permissions.ACTIONS[action] == permissions.PUBLIC:
            continue
        answer = await table.api.call(ask.method, ask.path, token="dgs_" + "a" * 12, json=ask.json, body=ask.body)
        assert answer.status in (401, 404), (action, answer.body)
    assert await table.rows() == before
    async with table.api.service.database.read() as tx:
        assert await tx.session.get(TokenRow, "a" * 12) is None

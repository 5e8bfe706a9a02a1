"""What is asked of the database for a push, for a launch and for each list, on both databases: no statement reads all rows of a
table that grows. The requests are sent, their statements are caught, and each is explained by the database.

PostgreSQL would rather read a small table whole than by an index, so that is made dear: what it still reads whole has no index
that serves. Between indexes it chooses by statistics: so there are more tasks of other releases, and it has looked at them.
SQLite has no statistics here, as in production, and plans for any size.

Seen to fail when weakened: each of the indexes of migration 0012 dropped from the tables; `archives.put` that writes the name
of an archive again.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from api_rig import SOURCE, Api, dag_entry
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection

from integrity.digests import Digest
from vocabulary import sets
from vocabulary.sets import Member

GROW = ("archives", "releases", "activations", "tasks", "dags", "launches", "xcoms", "audit_events")
KEYS = "name|dag_id"  # that other tables refer to
# An archive has many releases: of its tasks only those of one are read.
OF_A_RELEASE = {
    "sqlite": r"SEARCH tasks .*\(archive=\? AND number=\?",
    "postgresql": r"Index Cond: .*\(archive\b.*\bnumber = ",
}

MORE_TASKS = (
    "INSERT INTO tasks (archive, number, dag_id, task_id, digest, run_as_user, connections) "
    "SELECT archive, number + more, dag_id, task_id, digest, run_as_user, connections FROM tasks, "
    "generate_series(10, 1000) more WHERE number = 1"
)


class Statements:
    """What was sent, each text once, with the values of its first time."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def note(self, _connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        if statement.lstrip().startswith(("SELECT", "UPDATE", "DELETE", "WITH")):
            self.seen.setdefault(statement, parameters[0] if many else parameters)


@contextmanager
def caught(api: Api) -> Iterator[Statements]:
    found = Statements()
    engines = api.service.database.engines
    for engine in engines:
        event.listen(engine, "before_cursor_execute", found.note)
    try:
        yield found
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", found.note)


async def plan(connection: AsyncConnection, statement: str, parameters: Any, kind: str) -> list[str]:
    word = "EXPLAIN QUERY PLAN" if kind == "sqlite" else "EXPLAIN"
    rows = await connection.exec_driver_sql(f"{word} {statement}", parameters)
    return [str(row[-1]) for row in rows]


def wrong(statement: str, lines: list[str], kind: str) -> list[str]:
    """The lines by which a table that grows is read from its beginning to its end, or sorted."""
    grows = rf"({'|'.join(GROW)})\b"
    if not re.search(grows, statement):
        return []
    few, nested = "LIMIT" in statement, re.search(r"\b(anon_1|back)\b", statement)
    if kind == "sqlite":
        found = [line for line in lines if re.search(rf"SCAN {grows}" + (r"(?! USING)" if few else ""), line)]
        found += [line for line in lines if "TEMP B-TREE FOR ORDER BY" in line and not nested]
        if re.match(rf"UPDATE {grows} SET (?:(?!WHERE).)*\b(?:{KEYS})\s*=", statement, re.DOTALL):
            found.append("a key is written: SQLite looks through all rows that refer to it")
    else:
        found = [line for line in lines if re.search(rf"Seq Scan on {grows}", line)]
        found += [
            line
            for line, after in zip(lines, [*lines[1:], ""], strict=True)
            if re.search(rf"Index (Only )?Scan.* on {grows}", line) and "Index Cond" not in after and not few
        ]
        found += [line for line in lines if "Sort Key" in line and not nested and "DISTINCT" not in statement]
    if re.search(r"FROM .*\btasks\b", statement, re.DOTALL) and not any(
        re.search(OF_A_RELEASE[kind], one) for one in lines
    ):
        found.append("the tasks of all releases of an archive")
    return found


async def explained(api: Api, found: Statements) -> dict[str, list[str]]:
    """By statement: the lines of its plan."""
    kind = api.service.database.kind
    if kind != "sqlite":
        async with api.service.database.write() as tx:
            await tx.session.execute(text(MORE_TASKS))
            await tx.session.execute(text("ANALYZE"))
    async with api.service.database.engine.connect() as connection:
        if kind != "sqlite":
            for way in ("seqscan", "bitmapscan", "hashjoin", "mergejoin", "sort"):
                await connection.execute(text(f"SET enable_{way} = off"))
        return {
            statement: await plan(connection, statement, parameters, kind)
            for statement, parameters in found.seen.items()
        }


@pytest.fixture
async def busy(api: Api) -> AsyncIterator[Api]:
    """Somebody in two groups, who pushes, launches and works."""
    alice = await api.token("alice")
    for group in ("team", "other"):
        body = {"members": ["alice"]}
        assert (await api.call("PUT", f"/v1/groups/{group}", token=api.admin, json=body)).status == 200
    await api.allow("alice")
    assert (await api.push("etl.py", SOURCE, token=alice)).status == 201
    yield api


async def pushes(api: Api) -> None:
    alice = api.tokens["alice"]
    for body in (SOURCE + b"#2", SOURCE + b"#2", SOURCE + b"#3"):
        assert (await api.push("etl.py", body, token=alice, If_Match="*")).status in (200, 201)
    assert (await api.push("new.py", SOURCE + b"#new", token=alice)).status == 201


async def launches(api: Api) -> None:
    worker = await api.worker(queues=["default", "other"])
    api.launcher.dags["etl.py"] = [dag_entry("etl")]
    assert (await api.launch(token=api.tokens["alice"])).status == 201
    assert (await api.launch(token=api.tokens["alice"], try_number=2)).status == 201
    offer = await worker.take()
    assert offer is not None
    await worker.claimed(offer)
    said = await worker.post(offer["launch_id"], "log?offset=0", b"said\n", kind="application/octet-stream")
    assert said.status == (await worker.finish(offer)).status == 200


async def reservations(api: Api) -> None:
    """Two queueings of one task instance, the first of which runs."""
    worker = await api.worker(queues=["default"])
    body = sets.to_bytes([Member(archive="etl.py", number=1, digest=Digest.of(SOURCE))])
    name = Digest.of(body).hex
    assert (await api.call("PUT", f"/v1/sets/{name}", token=worker.token, body=body)).status == 201
    asked = {"queues": ["default"], "task_instance": f"{'0' * 8}-0000-0000-0000-{'0' * 12}"}
    for queueing in ("1", "2"):
        one = {
            "task_instance": asked["task_instance"], "queueing": queueing, "dag_id": "etl", "task_id": "t", "run_id": "r",
            "map_index": -1, "try_number": 1, "queue": "default", "set": name,
            "task_digest": str(Digest.of(b"task t")), "valid_seconds": 60,
        }  # fmt: skip
        answer = await api.call("POST", "/v1/reservations", token=api.tokens["alice"], json={"reservations": [one]})
        assert answer.json["reservations"][0]["state"] == "queued", answer.body
        taken = await api.call("POST", f"/v1/workers/{worker.name}/take", token=worker.token, json=asked)
        assert taken.status == {"1": 200, "2": 204}[queueing]
        if queueing == "1":
            await worker.claimed(taken.json)


async def decisions(api: Api) -> None:
    alice = api.tokens["alice"]
    for number in (2, 3):
        assert (await api.push("etl.py", SOURCE + b"#%d" % number, token=alice)).status == 201
    for path in ("rollback", "releases/3/activate", "rollback?to=2", "releases/1/revoke?kill=true"):
        assert (await api.call("POST", f"/v1/archives/etl.py/{path}", token=alice)).status == 200


def asking(*paths: str, by: str) -> Any:
    async def ask(api: Api) -> None:
        for path in paths:
            answer = await api.call("GET", path, token=api.tokens[by])
            assert answer.status == 200, (path, answer.body)

    return ask


LISTS = (
    "/v1/archives",
    "/v1/archives?after=a.py&limit=7",
    "/v1/archives/etl.py",
    "/v1/archives/etl.py/releases",
    "/v1/archives/etl.py/releases?after=3",
    f"/v1/archives/etl.py/releases?digest=sha512:{'0' * 128}&after=0",
    "/v1/launches",
    "/v1/launches?dag_id=etl",
    "/v1/launches?state=failed",
    "/v1/launches?dag_id=etl&state=failed",
)
PAGES = tuple(
    f"/v1/audit?after=3{more}"
    for more in ("", "&object=archive:etl.py", "&principal=alice", "&action=archive.submit", "&verdict=refused")
)
WORK = {
    "push": pushes,
    "launch": launches,
    "reserve": reservations,
    "decide": decisions,
    "lists of an administrator": asking(*LISTS, by="admin"),
    "lists of somebody": asking(*LISTS, by="alice"),
    "pages of the audit log": asking(*PAGES, by="admin"),
}

# The indexes that serve it: without one of them another is walked through, or what it finds is sorted.
BY = {
    "push": ("ix_releases_digest_archive_number",),
    "launch": ("ix_launches_dag_id_run_id", "ix_launches_state_queue_created_at"),
    "reserve": (
        "ix_launches_newest",
        "ix_launches_task_instance_queueing",
        "ix_launches_task_instance_state",
        "ix_launches_state_valid_until",
        "ix_releases_digest_archive_number",
    ),
    "decide": ("ix_releases_digest_archive_number",),
    "lists of an administrator": (
        "ix_releases_digest_archive_number",
        "ix_launches_created_at",
        "ix_launches_state_created_at",
        "ix_launches_dag_id_archive_created_at",
        "ix_launches_dag_id_archive_state_created_at",
    ),
    "lists of somebody": (
        "ix_archives_owner_name",
        "ix_archives_group_name",
        "ix_archives_open",
        "ix_launches_archive_created_at",
        "ix_launches_principal_created_at",
        "ix_launches_dag_id_archive_created_at",
        "ix_launches_dag_id_archive_state_created_at",
    ),
    "pages of the audit log": (
        "ix_audit_events_object_seq",
        "ix_audit_events_principal_seq",
        "ix_audit_events_action_seq",
        "ix_audit_events_verdict_seq",
    ),
}


@pytest.mark.parametrize("work", WORK)
async def test_no_table_that_grows_is_read_whole(busy: Api, work: str) -> None:
    if work != "push":
        await busy.launch(token=busy.tokens["alice"], run_id="before")
    with caught(busy) as found:
        await WORK[work](busy)
    plans = await explained(busy, found)
    assert any(re.search(rf"\b({'|'.join(GROW)})\b", statement) for statement in plans)
    kind = busy.service.database.kind
    found_wrong = {statement: lines for statement, lines in plans.items() if wrong(statement, lines, kind)}
    for statement, lines in found_wrong.items():
        print(statement.replace("\n", " "), *lines, sep="\n   ")
    assert not found_wrong
    used = "\n".join(line for lines in plans.values() for line in lines)
    assert [name for name in BY[work] if name not in used] == []

"""Submissions that are recorded together: the same rows as one by one, in fewer commits; and each for itself when one fails.

Seen to fail when weakened: `recording.carry_on` that leaves out one of its lines; `_outcomes` that does not try each alone;
`_remove_unnamed` that does nothing, or that does not look; `events.add_all` that numbers from 1.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from api_rig import SOURCE, Answer, Api, dag_entry, task_entry
from sqlalchemy import delete, event

from integrity.digests import Digest
from submit_api import group_commit
from submit_api.accepting import Submitted, wanted
from submit_api.blobs import Upload
from submit_api.blobs.local import LocalStore
from submit_api.describing import Description
from submit_api.identity import USER, Caller
from submit_api.recording import Candidate
from submit_api.refusals import NO_SPACE, NoSpaceError
from submit_api.registry import leaves, rows
from submit_api.registry.database import Transaction
from submit_api.registry.tables import LeafRow, LogKeyRow, TileRow
from vocabulary.leaves import from_bytes
from vocabulary.logview import LogView
from vocabulary.manifest import Member

TABLES = ("archives", "releases", "activations", "dags", "tasks", "audit_events")


def body(number: int) -> bytes:
    return SOURCE + f"# {number}\n".encode()


class Commits:
    """Of everybody, how many."""

    def __init__(self, api: Api) -> None:
        self.count = 0
        for engine in api.service.database.engines:
            event.listen(engine, "commit", self._one)

    def _one(self, _connection: Any) -> None:
        self.count += 1


async def together(api: Api, pushes: list[tuple[str, bytes, str]]) -> list[Answer]:
    """Push them all while nobody can write: what comes first waits for the lock, everything else for it."""
    for token in {token for _, _, token in pushes}:
        await api.call("GET", "/v1/archives", token=token)  # that it is in use is written down now
    async with api.service.database.write():
        first = asyncio.create_task(api.push(*pushes[0][:2], token=pushes[0][2]))
        while api.service.recordings._task is None or api.service.recordings._task.done():
            await asyncio.sleep(0)
        while api.service.recordings._waiting:
            await asyncio.sleep(0)
        others = []
        for name, data, token in pushes[1:]:
            count = len(api.service.recordings._waiting)
            others.append(asyncio.create_task(api.push(name, data, token=token)))
            while len(api.service.recordings._waiting) == count:
                await asyncio.sleep(0)
    return list(await asyncio.gather(first, *others))


async def test_one_commit_for_all_that_wait(api: Api) -> None:
    commits = Commits(api)
    answers = await together(api, [(f"a{number}.py", body(number), api.admin) for number in range(12)])
    assert [answer.status for answer in answers] == [201] * 12
    assert commits.count == 4  # the token's first use, the one that all waited for, the first of them, and the eleven
    events = [event for event in await api.events() if event["action"] == "archive.submit"]
    assert [event["object"] for event in events] == [f"archive:a{number}.py" for number in range(12)]
    assert len(api.files()) == 12 and await api.fsck() == []


async def test_each_with_its_own_outcome(api: Api) -> None:
    api.launcher.dags["thief.py"] = [dag_entry("one", member="thief.py")]
    bob = await api.token("bob")
    answers = await together(
        api,
        [
            ("zero.py", body(0), api.admin),
            ("one.py", body(1), api.admin),
            ("one.py", body(2), api.admin),
            ("one.py", body(2), api.admin),
            ("one.py", body(3), bob),
            ("thief.py", body(4), bob),
            ("bobs.py", body(5), bob),
            ("twin.py", body(5), api.admin),
        ],
    )
    assert [answer.status for answer in answers] == [201, 201, 201, 200, 403, 409, 201, 201]
    assert [answer.json.get("number") for answer in answers[1:4]] == [1, 2, 2]
    assert answers[3].json == answers[2].json and answers[2].json["state"] == "active"
    assert "dag 'one' belongs to archive one.py" in answers[5].json["detail"]
    kept = {Digest.of(body(number)).hex for number in (0, 1, 2, 5)}
    assert {os.path.basename(name) for name in api.files()} == kept
    assert await api.fsck() == []
    verdicts = [(e["object"], e["verdict"]) for e in await api.events() if e["action"] == "archive.submit"]
    assert sorted(verdicts) == sorted(
        [(f"archive:{name}.py", "accepted") for name in ("zero", "one", "one", "bobs", "twin")]
        + [(f"archive:{name}.py", "refused") for name in ("one", "thief")]
    )


async def test_one_without_room_on_the_disk_is_alone_with_it(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    publish, too_much = LocalStore._publish, Digest.of(body(2))

    def full(store: LocalStore, upload: Upload) -> bool:
        if upload.digest == too_much:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return publish(store, upload)

    monkeypatch.setattr(LocalStore, "_publish", full)
    answers = await together(api, [(f"a{number}.py", body(number), api.admin) for number in range(5)])
    assert [answer.status for answer in answers] == [201, 201, 507, 201, 201]
    assert answers[2].slug == "no-space"
    assert {os.path.basename(name) for name in api.files()} == {Digest.of(body(n)).hex for n in (0, 1, 3, 4)}
    assert (await api.remains())[1] == [f"a{number}.py@1" for number in (0, 1, 3, 4)]
    assert await api.fsck() == []


@pytest.mark.parametrize("times", [1, 100])
async def test_a_commit_that_fails(api: Api, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Once: each is tried again alone. Always: nothing is left of any, but what another release has stays."""
    assert (await api.push("there.py", body(3))).status == 201
    commit, left = Transaction.commit, times
    before = await api.remains()

    async def failing(tx: Transaction) -> None:
        nonlocal left
        if left:
            left -= 1
            raise NoSpaceError(NO_SPACE)
        await commit(tx)

    monkeypatch.setattr(Transaction, "commit", failing)
    answers = await together(api, [(f"a{number}.py", body(number), api.admin) for number in range(1, 5)])
    if times == 1:
        assert [answer.status for answer in answers] == [507, 201, 201, 201]  # the first was alone
    else:
        assert [answer.slug for answer in answers] == ["no-space"] * 4
        assert await api.remains() == before
    assert await api.fsck() == []


def candidates(chance: random.Random, count: int) -> list[Candidate]:
    """Of few people, archives, dags and bytes, so that they meet."""
    found = []
    for _ in range(count):
        principal = chance.choice(["alice", "bob"])
        caller = Caller(
            principal=principal, kind=USER, admin=chance.random() < 0.3, token_id="t", address="a",
            groups=frozenset({"data", "ml"} if principal == "alice" else {"data"}),
        )  # fmt: skip
        name = chance.choice(["x.py", "y.py", "z.py"])
        data = body(chance.randrange(4))
        group = chance.choice([None, None, "data", "ml", "careful"])
        check = chance.choice(["task", "archive"])
        dags = [dag_entry(dag, task_entry(), member=name) for dag in sorted(chance.sample(["d", "e", "f"], 2))]
        if chance.random() < 0.6:
            dags = [dag_entry(f"{name[0]}1", member=name)]
        found.append(
            Candidate(
                caller=caller,
                ask=wanted(name, group, check, None, None, None, chance.choice([None, None, None, "*"]), None),
                digest=Digest.of(data),
                size=len(data),
                members=(Member(name=name, size=len(data), digest=Digest.of(data)),),
                description=Description(airflow_version="3.3.0", dags=tuple(dags)),
            )
        )
    return found


async def stored(api: Api) -> dict[str, list[Any]]:
    async with api.service.database.read() as tx:
        tables = [table for table in await rows.tables(tx) if table.name in TABLES]
        assert len(tables) == len(TABLES)
        found = {
            table.name: sorted(map(repr, (await tx.session.execute(table.select())).mappings())) for table in tables
        }
        entries = await leaves.entries(tx, 0, 2**53)
    # Of a batch that moves an archive more than once the log tells where it ended: its leaves are fewer, its state is the same.
    view = LogView().extended(from_bytes(entry) for entry in entries)
    releases = [one for archive in view.archives.values() for one in archive.releases.values()]
    said = [(name, one.active, one.owner, one.group, one.mode) for name, one in view.archives.items()]
    return {**found, "log": sorted([*said, *(repr(replace(one, index=0)) for one in releases)], key=repr)}


@pytest.fixture
async def open_api(folder: str) -> AsyncIterator[Api]:
    async with Api(folder) as api:
        for name, members, approvals in (("data", ["alice", "bob"], 0), ("ml", ["alice"], 0), ("careful", ["bob"], 1)):
            made = {"members": members, "approvals": approvals}
            assert (await api.call("PUT", f"/v1/groups/{name}", token=api.admin, json=made)).status == 200
        yield api


async def recorded(api: Api, found: list[Candidate]) -> list[object]:
    """One batch of these. Which outcome each had: its number and state, or the error's words."""
    batch = []
    for candidate in found:
        upload = api.service.blobs.upload().__enter__()
        data = next(body(number) for number in range(4) if Digest.of(body(number)) == candidate.digest)
        await upload.write(data)
        await upload.finish()
        batch.append((candidate, upload))
    commits = Commits(api)
    outcomes = await group_commit._record(api.service, batch)
    assert commits.count == 1  # else it was done one by one after all
    for _, upload in batch:
        upload.__exit__(None, None, None)
    return [
        (o.release.number, o.created, o.active, o.release.approvals) if isinstance(o, Submitted) else str(o)
        for o in outcomes
    ]


async def test_a_batch_is_as_one_after_the_other(open_api: Api) -> None:
    """What random submissions leave in every table, and what each is told."""
    api, seen = open_api, set()
    await emptied(api)
    for seed in range(8):
        found = candidates(random.Random(seed), 25)
        said_alone = [outcome for one in found for outcome in await recorded(api, [one])]
        alone = await stored(api)
        await emptied(api)
        said_together = await recorded(api, found)
        assert said_together == said_alone, seed
        assert await stored(api) == alone, seed
        seen |= {type(said) if isinstance(said, tuple) else str(said).split()[0] for said in said_alone}
        assert await api.fsck() == []
        await emptied(api)
    assert len(seen) >= 4, seen  # accepted, and refused in several ways


async def emptied(api: Api) -> None:
    async with api.service.database.write() as tx:
        for table in reversed([table for table in await rows.tables(tx) if table.name in TABLES]):
            await tx.session.execute(table.delete())
        for row in (LeafRow, LogKeyRow, TileRow):
            await tx.session.execute(delete(row))
    await api.begin_log()
    for name in api.files():
        os.unlink(f"{api.settings.blobs_folder}/{name}")

"""The transparency log of a running service: a leaf for each decision and no other, and all that is served agrees with them.

Seen to fail when weakened: `archives.revoke` that adds a second leaf; `owning.change` without its leaf; `_filled` that forgets
the leaves that were there; `checkpoint` that keeps its note when something was committed; `begin` that does not look whether
there is a log; `tile` that answers for what is not full yet.
"""

from __future__ import annotations

import asyncio
import base64
import io
import random
from typing import Any

import pytest
from api_rig import SOURCE, Answer, Api, dag_entry
from sqlalchemy import insert
from test_api_backups import Target, taken, target  # noqa: F401
from test_api_storage import filled

from integrity.digests import Digest
from submit_api import retiring, transparency
from submit_api.fsck import fsck
from submit_api.http import log
from submit_api.registry import leaves as rows
from submit_api.registry import migrate
from submit_api.registry.tables import LeafRow, TileRow, table
from submit_api.restoring import restore
from submit_api.running import opened
from vocabulary import checkpoints, leaves, lognews, merkle, tiles
from vocabulary.leaves import Keyed, Leaf, Owned
from vocabulary.logview import LogView
from vocabulary.merkle import Tree
from vocabulary.proofs import Proof, verify
from vocabulary.tiles import WIDTH, TilePath

AT, DAY = "/v1/archives/etl.py", 86_400


async def entries(api: Api) -> list[bytes]:
    async with api.service.database.read() as tx:
        return await rows.entries(tx, 0, 2**53)


async def said(api: Api, since: int = 0) -> list[str]:
    """The leaves, each in a few words."""
    return [_words(leaves.from_bytes(entry)) for entry in (await entries(api))[since:]]


def _words(leaf: Leaf) -> str:
    match leaf:
        case leaves.Keyed():
            return "key"
        case leaves.Released():
            return f"release {leaf.archive}@{leaf.number} by {leaf.by}{', waits' if leaf.waits else ''}"
        case leaves.Owned():
            return f"ownership {leaf.archive} {leaf.owner}:{leaf.group} {leaf.mode:o} by {leaf.by}"
        case leaves.Approved():
            return f"approval {leaf.archive}@{leaf.number} by {leaf.by}{', enough' if leaf.enough else ''}"
        case _:
            return f"{leaf.kind} {leaf.archive}@{leaf.number} by {leaf.by}"


async def checked(api: Api) -> LogView:
    """The checkpoint is of all leaves, and fsck finds nothing."""
    found = await entries(api)
    answer = await api.call("GET", "/v1/log/checkpoint")
    assert answer.status == 200 and answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    key = api.service.keys.signing.public
    point = checkpoints.verify(answer.body, [key], origin=checkpoints.origin_of(key)).checkpoint
    root = merkle.root_of([merkle.leaf_hash(entry) for entry in found])
    assert (point.size, point.root, point.time) == (len(found), root, api.clock.at // 1_000_000)
    assert await api.fsck() == []
    return LogView().extended(leaves.from_bytes(entry) for entry in found)


async def post(api: Api, path: str, body: Any = None, token: str | None = None) -> Answer:
    return await api.call("POST", f"{AT}{path}", token=token or api.admin, json=body)


async def test_each_decision_is_a_leaf_and_nothing_else_is(api: Api) -> None:
    alice, bob = await api.token("alice"), await api.token("bob")
    assert await said(api) == ["key"]
    seen = 1

    async def new(*expected: str) -> None:
        nonlocal seen
        assert await said(api, seen) == list(expected)
        seen += len(expected)
        await checked(api)

    for name, more in (("team", {}), ("second", {"approvals": 1})):
        body = {"members": ["alice", "bob"], **more}
        assert (await api.call("PUT", f"/v1/groups/{name}", token=api.admin, json=body)).status == 200
    assert (await api.push("etl.py", SOURCE, token=alice)).status == 201
    await new("ownership etl.py alice:alice 770 by alice", "release etl.py@1 by alice", "activation etl.py@1 by alice")
    assert (await api.push("etl.py", SOURCE, token=alice)).status == 200
    assert (await api.push("etl.py", b"\xff", token=alice)).status == 422
    assert (await api.push("etl.py", SOURCE + b"#", token=bob)).status == 403
    await new()
    assert (await api.push("etl.py", SOURCE + b"#2", token=alice, query="?group=team")).status == 201
    await new("release etl.py@2 by alice", "activation etl.py@2 by alice", "ownership etl.py alice:team 770 by alice")
    assert (await api.push("etl.py", SOURCE + b"#3", token=alice, query="?group=second")).status == 201
    await new("release etl.py@3 by alice, waits")
    digest = (await api.call("GET", f"{AT}/releases/3", token=alice)).json["digest"]
    assert (await post(api, "/releases/3/activate", token=alice)).status == 409
    assert (await post(api, "/releases/3/approve", {"digest": digest}, token=alice)).status == 403
    await new()
    assert (await post(api, "/releases/3/approve", {"digest": digest}, token=bob)).status == 200
    await new(
        "approval etl.py@3 by bob, enough",
        "ownership etl.py alice:second 770 by bob",
        "activation etl.py@3 by bob",
    )
    assert (await post(api, "/releases/1/activate", token=alice)).status == 200
    await new("activation etl.py@1 by alice")
    assert (await post(api, "/rollback", token=alice)).status == 200
    await new("activation etl.py@3 by alice")
    for _ in range(2):  # the second says nothing
        assert (await post(api, "/releases/1/revoke", token=alice)).status == 200
    await new("revocation etl.py@1 by alice")
    change = {"mode": "g-x"}
    assert (await api.call("PATCH", "/v1/ownership/archive/etl.py", token=alice, json=change)).status == 200
    await new("ownership etl.py alice:second 760 by alice")
    change = {"owner": "bob", "group": "team"}
    assert (await api.call("PATCH", "/v1/ownership/archive/etl.py", token=api.admin, json=change)).status == 200
    await new("ownership etl.py bob:team 760 by admin")


async def test_a_retirement_is_a_leaf(folder: str) -> None:
    async with Api(folder, retention={"keep_releases": 1, "keep_days": 1}) as api:
        for number in range(3):
            assert (await api.push("etl.py", SOURCE + b"#" * number)).status == 201
        before = len(await entries(api))
        api.clock.forward(30 * DAY)
        assert [head.number for head in await retiring.retire(api.service)] == [1, 2]
        assert await said(api, before) == ["retirement etl.py@1 by dagseal", "retirement etl.py@2 by dagseal"]
        view = await checked(api)
        assert [one.retired for one in view.archives["etl.py"].releases.values()] == [True, True, False]


async def test_many_pushes_at_once_are_one_tree(api: Api) -> None:
    for n in range(12):
        api.launcher.dags[f"a{n}.py"] = [dag_entry(f"a{n}", member=f"a{n}.py")]
    await asyncio.gather(*(api.push(f"a{n}.py", SOURCE.replace(b"etl", b"a%d" % n)) for n in range(12)))
    view = await checked(api)
    assert len(view.archives) == 12 and view.size == 1 + 3 * 12


async def test_a_checkpoint_is_of_the_last_commit_and_the_same_within_a_second(api: Api) -> None:
    one = (await api.call("GET", "/v1/log/checkpoint")).body
    assert (await api.call("GET", "/v1/log/checkpoint")).body == one
    assert (await api.push("etl.py", SOURCE)).status == 201
    two = (await api.call("GET", "/v1/log/checkpoint")).body
    assert two.split(b"\n")[1] == b"4" and one.split(b"\n")[1] == b"1"
    api.clock.forward(1)
    three = (await api.call("GET", "/v1/log/checkpoint")).body
    assert three != two and three.split(b"\n")[:3] == two.split(b"\n")[:3]


# proofs


async def proof(api: Api, number: int) -> Proof:
    answer = await api.call("GET", f"{AT}/releases/{number}/proof", token=api.admin)
    assert answer.status == 200, answer.body
    found, raw = answer.json, base64.b64decode
    return Proof(
        manifest=raw(found["manifest"]),
        entry=raw(found["entry"]),
        index=found["index"],
        path=tuple(raw(one) for one in found["path"]),
        checkpoint=found["checkpoint"].encode(),
        keys=tuple(raw(one) for one in found["keys"]),
    )


async def test_proofs_verify_and_name_what_is_on_record(api: Api) -> None:
    for number in range(1, 4):
        assert (await api.push("etl.py", SOURCE + b"#" * number)).status == 201
        for earlier in range(1, number + 1):
            found = verify(await proof(api, earlier), [api.service.keys.signing.public])
            view = (await api.call("GET", f"{AT}/releases/{earlier}", token=api.admin)).json
            assert (str(found.manifest.digest), found.manifest.number) == (view["digest"], earlier)
            assert found.checkpoint.size == len(await entries(api))
    for path in (f"{AT}/releases/9/proof", "/v1/archives/no.py/releases/1/proof"):
        assert (await api.call("GET", path, token=api.admin)).status == 404
    carol = await api.token("carol")
    assert (await api.call("GET", f"{AT}/releases/1/proof", token=carol)).status == 403
    assert (await api.call("GET", f"{AT}/releases/1/proof")).status == 401


async def grown(api: Api, size: int) -> list[bytes]:
    """So many leaves, added in transactions of many sizes, straight to the log; the entries."""
    chance, left = random.Random(6962), size - len(await entries(api))
    while left > 0:
        count = min(left, chance.choice([1, 2, 3, 255, 256, 257, 600]))
        made: list[Leaf] = [
            Owned(at=left, by="alice", archive=f"a{n % 7}.py", owner="alice", group="team", mode=0)
            for n in range(count)
        ]
        async with api.service.database.write() as tx:
            await rows.add(tx, made)
        left -= count
    return await entries(api)


async def got(api: Api, path: str) -> Answer:
    return await api.call("GET", f"/v1/log/{path}", token=api.admin)


async def test_tiles_of_every_level_and_width_are_those_of_the_leaves(api: Api) -> None:
    size = 11 * WIDTH + 77
    found = await grown(api, size)
    hashes = [merkle.leaf_hash(entry) for entry in found]
    for number in range(11):
        part = slice(number * WIDTH, (number + 1) * WIDTH)
        answer = await got(api, f"tile/{TilePath(0, number)}")
        assert answer.body == b"".join(hashes[part]) and "immutable" in answer.headers["Cache-Control"]
        assert (await got(api, f"tile/{TilePath(None, number)}")).body == tiles.bundle(found[part])
    for width in (1, 2, 76, 77):
        first = 11 * WIDTH
        assert (await got(api, f"tile/{TilePath(0, 11, width)}")).body == b"".join(hashes[first : first + width])
        answer = await got(api, f"tile/{TilePath(None, 11, width)}")
        assert tiles.entries_of(answer.body) == found[first : first + width]
    roots = [merkle.root_of(hashes[n * WIDTH : (n + 1) * WIDTH]) for n in range(11)]
    for width in (1, 2, 10, 11):
        assert (await got(api, f"tile/{TilePath(1, 0, width)}")).body == b"".join(roots[:width])
    missing = [TilePath(0, 11), TilePath(0, 11, 78), TilePath(0, 12, 1), TilePath(None, 11), TilePath(1, 0)]
    for path in (*missing, TilePath(1, 0, 12), TilePath(2, 0, 1), TilePath(7, 0, 1)):
        assert (await got(api, f"tile/{path}")).status == 404, path
    for wrong in ("0/0", "8/000", "0/000.p/256", "0/000.p/0", "0/x000/000"):
        assert (await got(api, f"tile/{wrong}")).status in (400, 404), wrong
    assert (await api.call("GET", "/v1/log/tile/0/000")).status == 401


@pytest.mark.sqlite
async def test_a_tile_of_the_second_level(api: Api) -> None:
    """65,536 leaves are long to add: their tiles' roots are written as if they had been, and the last leaf."""
    size = WIDTH * WIDTH
    roots = [merkle.leaf_hash(b"%d" % n) for n in range(WIDTH)]
    peaks = Tree(size, (merkle.root_of(roots),)).joined
    async with api.service.database.write() as tx:
        last = {"seq": size - 1, "entry": b"x", "release": None, "peaks": peaks}
        await tx.session.execute(insert(table(LeafRow)), [last])
        found = [{"number": n, "root": root} for n, root in enumerate(roots)]
        await tx.session.execute(insert(table(TileRow)), found)
    assert (await got(api, "tile/1/000")).body == b"".join(roots)
    assert (await got(api, "tile/2/000.p/1")).body == merkle.root_of(roots)
    for path in ("2/000.p/2", "3/000.p/1", "1/001.p/1"):
        assert (await got(api, f"tile/{path}")).status == 404


async def test_entries_come_by_pages(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    found = await grown(api, 700)
    monkeypatch.setattr(transparency, "MAX_ENTRIES", 300)
    read: list[bytes] = []
    pages = 0
    while len(read) < 700:
        read += tiles.entries_of((await got(api, f"entries?start={len(read)}&end=700")).body)
        pages += 1
    assert read == found and pages == 3
    assert tiles.entries_of((await got(api, "entries?start=5&end=7")).body) == found[5:7]
    assert tiles.entries_of((await got(api, "entries?start=699&end=9000")).body) == found[699:]
    monkeypatch.setattr(transparency, "MAX_ENTRIES_BYTES", 400)
    short = tiles.entries_of((await got(api, "entries?start=0&end=700")).body)
    assert 1 <= len(short) < 5 and short == found[: len(short)]
    monkeypatch.setattr(transparency, "MAX_ENTRIES_BYTES", 1)
    assert tiles.entries_of((await got(api, "entries?start=9&end=700")).body) == found[9:10]
    assert (await got(api, "entries?start=700&end=701")).status == 404
    for query in ("start=3&end=3", "start=3&end=2", "start=-1&end=2", "start=x"):
        assert (await got(api, f"entries?{query}")).status in (400, 422), query
    assert (await api.call("GET", "/v1/log/entries?start=0&end=1")).status == 401


async def test_new_blobs_come_with_the_leaves_for_workers_only(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, user = await api.token("host-1", kind="worker"), await api.token("alice")
    bodies = [SOURCE + b"# %d\n" % number for number in range(3)]
    for number, body in enumerate(bodies):
        api.launcher.dags[f"dag{number}.py"] = [dag_entry(f"dag{number}", member=f"dag{number}.py")]
        assert (await api.push(f"dag{number}.py", body)).status == 201
    found = await entries(api)

    async def asked(query: str, token: str = worker) -> tuple[list[bytes], list[bytes] | None]:
        answer = await api.call("GET", f"/v1/log/entries?{query}", token=token)
        assert answer.status == 200
        if answer.headers["Content-Type"] == "application/octet-stream":
            return tiles.entries_of(answer.body), None
        assert answer.headers["Content-Type"] == lognews.MEDIA_TYPE
        bundle, blobs = lognews.decode(answer.body)
        assert all(Digest.of(body) == digest for digest, body in blobs)
        return tiles.entries_of(bundle), [body for _, body in blobs]

    size = len(found)
    assert await asked(f"start=0&end={size}&blobs=100000") == (found, bodies)
    assert await asked(f"start=0&end={size}&blobs=100000", user) == (found, None)
    assert await asked(f"start=0&end={size}") == (found, None)
    assert await asked(f"start=0&end={size}&blobs={len(bodies[0])}") == (found, bodies[:1])
    assert await asked(f"start={size - 1}&end={size}&blobs=100000") == (found[-1:], []), "its release is not among them"
    assert (await api.call("GET", f"/v1/log/entries?start=0&end=1&blobs={2**20 + 1}", token=worker)).status == 422
    monkeypatch.setattr(log, "FEW_ENTRIES", size - 1)
    assert await asked(f"start=0&end={size}&blobs=100000") == (found, None)
    monkeypatch.undo()
    await api.service.blobs.remove(Digest.of(bodies[1]))
    assert await asked(f"start=0&end={size}&blobs=100000") == (found, [bodies[0], bodies[2]])


async def test_few_entries_are_remembered_as_they_are(api: Api) -> None:
    """Other questions in between, and an end that the log reaches only later."""
    found = await grown(api, 20)
    for start, end in ((3, 7), (3, 5), (3, 7), (4, 7), (15, 30), (15, 20), (15, 30)):
        assert tiles.entries_of((await got(api, f"entries?start={start}&end={end}")).body) == found[start:end]
    found = await grown(api, 25)
    assert tiles.entries_of((await got(api, "entries?start=15&end=30")).body) == found[15:30]


async def test_consistency_between_any_two_sizes(api: Api) -> None:
    size = 2 * WIDTH + 100
    hashes = [merkle.leaf_hash(entry) for entry in await grown(api, size)]
    chance = random.Random(9162)
    sizes = [0, 1, 2, 3, 255, 256, 257, 511, 512, 513, size - 1, size]
    pairs = [(old, new) for old in sizes for new in sizes if old <= new]
    pairs += [(min(pair), max(pair)) for pair in (chance.sample(range(size + 1), 2) for _ in range(40))]
    for old, new in pairs:
        answer = await got(api, f"consistency?old={old}&new={new}")
        path = [base64.b64decode(one) for one in answer.json["path"]]
        merkle.verify_consistency(old, new, merkle.root_of(hashes[:old]), merkle.root_of(hashes[:new]), path)
    for old, new in ((5, 4), (0, size + 1), (size + 1, size + 2)):
        assert (await got(api, f"consistency?old={old}&new={new}")).status == 404


async def test_inclusion_wherever_the_release_stands(api: Api) -> None:
    trusted = [api.service.keys.signing.public]
    for number, size in enumerate((5, 255, 256, 300, 511, 700), 1):
        await grown(api, size)
        assert (await api.push("etl.py", SOURCE + b"#" * number)).status == 201
        for earlier in range(1, number + 1):
            assert verify(await proof(api, earlier), trusted).manifest.number == earlier


# what was there before the log, and what is restored


async def everything(api: Api) -> None:
    """A release of each kind, and one that waits."""
    alice = await api.token("alice")
    await api.token("bob")
    body = {"members": ["alice", "bob"], "approvals": 1}
    assert (await api.call("PUT", "/v1/groups/team", token=api.admin, json=body)).status == 200
    api.launcher.dags["all.py"] = [dag_entry("all", member="all.py")]
    at = "/v1/archives/all.py"
    for number in range(1, 4):
        assert (await api.push("all.py", SOURCE + b"#" * number, token=alice)).status == 201
    change = {"mode": "o+r"}
    assert (await api.call("PATCH", "/v1/ownership/archive/all.py", token=alice, json=change)).status == 200
    for number in (4, 5):
        answer = await api.push("all.py", SOURCE + b"#" * number, token=alice, query="?group=team")
        assert answer.json["state"] == "pending", answer.body
    digest = (await api.call("GET", f"{at}/releases/4", token=alice)).json["digest"]
    bob, asked = api.tokens["bob"], {"digest": digest}
    assert (await api.call("POST", f"{at}/releases/4/approve", token=bob, json=asked)).status == 200
    assert (await api.call("POST", f"{at}/releases/2/revoke", token=alice)).status == 200


async def test_what_is_on_record_without_a_log_is_written_into_it_once(folder: str) -> None:
    async with Api(folder) as api:
        await everything(api)
        before = await checked(api)
        await migrate.downgrade(api.service.database, "0013")
        await migrate.upgrade(api.service.database)
        assert await entries(api) == []
        assert [(one.level, one.rule) for one in await api.fsck()] == [("warning", "log-empty")]
        settings = api.settings
    first: list[bytes] = []
    for _ in range(2):
        async with opened(settings) as service, service.database.read() as tx:
            found = await rows.entries(tx, 0, 1000)
            key = service.keys.signing.public
        assert first in ([], found)
        first = found
        view = LogView().extended(leaves.from_bytes(entry) for entry in found)
        assert view.keys == (key,) and isinstance(leaves.from_bytes(found[0]), Keyed)
        assert await fsck(settings) == []
        told, expected = view.archives["all.py"], before.archives["all.py"]
        assert (told.active, told.owner, told.group, told.mode) == (
            expected.active, expected.owner, expected.group, expected.mode
        )  # fmt: skip
        assert [(one.digest, one.waits, one.revoked, one.approved_by) for one in told.releases.values()] == [
            (one.digest, one.waits, one.revoked, one.approved_by) for one in expected.releases.values()
        ]


async def test_a_restored_log_is_the_same_to_the_byte(api: Api, target: Target) -> None:  # noqa: F811
    await filled(api)
    await everything(api)
    await checked(api)
    made = await taken(api)
    target.take_keys(api.settings)
    await restore(target.settings, io.BytesIO(made))
    assert await fsck(target.settings) == []
    async with opened(target.settings, clock=api.clock) as service:
        async with service.database.read() as tx:
            assert await rows.entries(tx, 0, 1000) == await entries(api)
        assert await service.transparency.checkpoint() == (await api.call("GET", "/v1/log/checkpoint")).body

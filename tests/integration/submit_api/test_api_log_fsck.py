"""fsck of the log: whatever is changed behind it, in its own rows or in those that it tells of, is found by name.

Seen to fail when weakened: each `damage(...)` of `submit_api.fsck_log` left out, and each pair of `_release_findings` and
`_archive_findings`.
"""

from __future__ import annotations

from typing import Any

import pytest
from api_rig import SOURCE, Api
from sqlalchemy import delete, text
from test_api_log import grown

from submit_api.registry import leaves as rows
from submit_api.registry.tables import LeafRow, LogKeyRow, TileRow
from vocabulary import leaves
from vocabulary.keys import SigningKey
from vocabulary.leaves import Keyed, Leaf, Owned
from vocabulary.tiles import WIDTH

OTHER = leaves.to_bytes(Owned(at=1, by="eve", archive="etl.py", owner="eve", group="eve", mode=0o777))
RELEASE, ARCHIVE = "log-release-disagrees", "log-archive-disagrees"
TAMPERED: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "a leaf that is no entry": (
        "UPDATE log_leaves SET entry = :x WHERE seq = 2", {"x": b"{}"}, {"log-entry", "log-peaks"}
    ),
    "another leaf in its place": (
        "UPDATE log_leaves SET entry = :x WHERE seq = 1", {"x": OTHER}, {"log-peaks", ARCHIVE}
    ),
    "a leaf that is gone": ("DELETE FROM log_leaves WHERE seq = 1", {}, {"log-gap", "log-peaks", ARCHIVE}),
    "the last leaf is gone": ("DELETE FROM log_leaves WHERE seq = 8", {}, {"log-peaks", ARCHIVE}),
    "a leaf that contradicts": (
        "UPDATE log_leaves SET seq = 1000 WHERE seq = 2", {}, {"log-gap", "log-peaks", "log-contradiction"}
    ),
    "the tree's peaks": ("UPDATE log_leaves SET peaks = :x WHERE seq = 3", {"x": bytes(64)}, {"log-peaks"}),
    "a release under another name": ("UPDATE log_leaves SET release = 'x.py@9' WHERE seq = 2", {}, {"log-index"}),
    "a release that is found under no name": ("UPDATE log_leaves SET release = NULL", {}, {"log-index"}),
    "a key on record that is none": ("INSERT INTO log_keys VALUES (1)", {}, {"log-keys"}),
    "no key on record": ("DELETE FROM log_keys", {}, {"log-keys"}),
    "a tile that is not full": ("INSERT INTO log_tiles VALUES (0, :x)", {"x": bytes(32)}, {"log-tile"}),
    "an active release": ("UPDATE archives SET active = 1", {}, {ARCHIVE, "activation-record"}),
    "an owner": ("UPDATE archives SET owner = 'eve'", {}, {ARCHIVE}),
    "a group": ('UPDATE archives SET "group" = \'eve\'', {}, {ARCHIVE}),
    "a mode": ("UPDATE archives SET mode = 511", {}, {ARCHIVE}),
    "a revocation undone": ("UPDATE releases SET revoked_at = NULL", {}, {RELEASE}),
    "a revocation": ("UPDATE releases SET revoked_at = 1 WHERE number = 1", {}, {RELEASE}),
    "a retirement": ("UPDATE releases SET retired_at = 1 WHERE number = 1", {}, {RELEASE}),
    "an approval": ("UPDATE releases SET approved_by = '[\"eve\"]' WHERE number = 1", {}, {RELEASE}),
    "one that waits": ("UPDATE releases SET approvals = 1 WHERE number = 1", {}, {RELEASE}),
    "a size": ("UPDATE releases SET size = 1 WHERE number = 1", {}, {RELEASE, "manifest-disagrees"}),
    "a manifest's digest": (
        "UPDATE releases SET manifest_digest = 'x' WHERE number = 1", {}, {RELEASE, "manifest-disagrees"}
    ),
    "a digest": (
        "UPDATE releases SET digest = :x WHERE number = 1", {"x": "sha512:" + "0" * 128},
        {RELEASE, "blob-missing", "blob-dangling", "manifest-signature"},
    ),
}  # fmt: skip


async def tampered(api: Api, statement: str, **values: Any) -> list[tuple[str, str]]:
    async with api.service.database.write() as tx:
        await tx.session.execute(text(statement), values)
    return await found(api)


async def found(api: Api) -> list[tuple[str, str]]:
    return [(finding.rule, finding.subject) for finding in await api.fsck()]


async def anew(api: Api, *made: Leaf) -> None:
    """A log of these leaves alone."""
    async with api.service.database.write() as tx:
        for row in (LeafRow, LogKeyRow, TileRow):
            await tx.session.execute(delete(row))
        await rows.add(tx, made)


@pytest.mark.parametrize("case", TAMPERED)
async def test_what_was_changed_behind_the_log_is_found(api: Api, case: str) -> None:
    """Leaves: key, ownership, release 1, activation 1, release 2, activation 2, revocation 2, release 3, activation 3."""
    for number in (1, 2, 3):
        assert (await api.push("etl.py", SOURCE + b"#" * number)).status == 201
        if number == 2:
            revoking = "/v1/archives/etl.py/releases/2/revoke"
            assert (await api.call("POST", revoking, token=api.admin)).status == 200
    assert await found(api) == []
    statement, values, expected = TAMPERED[case]
    told = await tampered(api, statement, **values)
    assert {rule for rule, _ in told} == expected, told


async def test_rows_without_leaves_and_leaves_without_rows(api: Api) -> None:
    assert (await api.push("etl.py", SOURCE)).status == 201
    async with api.service.database.write() as tx:
        await rows.add(tx, [Owned(at=1, by="eve", archive="x.py", owner="eve", group="eve", mode=0)])
    assert await found(api) == [("log-unrecorded", "x.py")]
    async with api.service.database.read() as tx:
        first, _, release, *_ = [leaves.from_bytes(entry) for entry in await rows.entries(tx, 0, 9)]
    await anew(api, first)
    assert set(await found(api)) == {("log-unlogged", "etl.py"), ("log-unlogged", "etl.py@1")}
    assert isinstance(release, leaves.Released)
    other = leaves.Released(**{name: getattr(release, name) for name in release.__slots__} | {"archive": "y.py"})
    await anew(api, first, other)
    assert ("log-unrecorded", "y.py@1") in await found(api)


async def test_a_log_of_another_key(api: Api) -> None:
    await anew(api, Keyed(at=1, key=SigningKey.generate().public, signature=None))
    assert await found(api) == [("log-key", "log")]
    await anew(api)
    assert await found(api) == [("log-empty", "log")]


async def test_wrong_tiles(api: Api) -> None:
    await grown(api, 2 * WIDTH + 3)
    before = set(await found(api))
    assert {rule for rule, _ in before} == {"log-unrecorded"}  # the archives of these leaves are nowhere
    wrong = set(await tampered(api, "UPDATE log_tiles SET root = :x WHERE number = 1", x=bytes(32)))
    assert wrong - before == {("log-tile", "tile:1")}
    more = set(await tampered(api, "INSERT INTO log_tiles VALUES (2, :x)", x=bytes(32)))
    assert more - before == {("log-tile", "tile:1"), ("log-tile", "tile:2"), ("log-tile", "log")}
    gone = set(await tampered(api, "DELETE FROM log_tiles WHERE number > 0"))
    assert gone - before == {("log-tile", "log")}

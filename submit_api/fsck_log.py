"""The transparency log against itself and against the rows that it tells of.

Everything is computed anew from the entries: the root after each transaction, the tiles' roots, and the state that follows
from the leaves. Each finding is about one leaf, tile, release or archive. Of a log that contradicts itself the rows are not
compared any more: what it says is not known then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from integrity.digests import Digest
from integrity.errors import SecurityError
from submit_api.findings import Finding, damage, warning
from submit_api.registry import archives
from submit_api.registry import leaves as rows
from submit_api.registry.database import Transaction
from submit_api.registry.leaves import Stored
from submit_api.registry.records import Archive, Release
from vocabulary import leaves, merkle
from vocabulary.keys import VerifyKey
from vocabulary.leaves import Keyed, Leaf, Released
from vocabulary.logview import LoggedArchive, LoggedRelease, LogView
from vocabulary.merkle import Tree
from vocabulary.tiles import WIDTH

_AT_ONCE = 4096


@dataclass(slots=True)
class _Walk:
    """What is computed on the way. `view` is None once a leaf was refused."""

    tree: Tree = field(default_factory=Tree)
    tile: Tree = field(default_factory=Tree)
    tiles: list[bytes] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    view: LogView | None = field(default_factory=LogView)


async def examined(tx: Transaction, key: VerifyKey) -> AsyncIterator[Finding]:
    """Every finding. `key` signs the checkpoints."""
    walk, last = _Walk(), None
    async for batch in _stored(tx):
        last = batch[-1]
        for finding in _walked(walk, batch):
            yield finding
    if last is None:
        yield warning("log-empty", "log", "no leaf is in it: the next start of the service writes what is on record")
        return
    if last.peaks is None:
        yield damage("log-peaks", f"leaf:{last.seq}", "the log ends within a transaction: its last leaf has no peaks")
    for number, root in enumerate(await rows.tile_roots(tx, 0, len(walk.tiles) + 1)):
        if number >= len(walk.tiles) or root != walk.tiles[number]:
            yield damage("log-tile", f"tile:{number}", "its root is not that of its leaves")
    _, full = await rows.count(tx)
    if full != len(walk.tiles):
        yield damage("log-tile", "log", f"{full} tiles are on record, {len(walk.tiles)} are full")
    if await rows.key_numbers(tx) != walk.keys:
        yield damage("log-keys", "log", f"the keys on record are not its leaves {walk.keys}")
    if walk.view is None:
        return
    if walk.view.keys[-1] != key:
        yield damage(
            "log-key", "log", f"its last key is not {key.key_id[:16]}…, which signs: nobody believes its checkpoints"
        )
    for finding in await _compared(tx, walk.view):
        yield finding


async def _stored(tx: Transaction) -> AsyncIterator[list[Stored]]:
    after = -1
    while batch := await rows.stored(tx, after, _AT_ONCE):
        yield batch
        after = batch[-1].seq


def _walked(walk: _Walk, batch: list[Stored]) -> Iterator[Finding]:
    parsed: list[Leaf] = []
    for one in batch:
        name = f"leaf:{one.seq}"
        if one.seq != walk.tree.size:
            yield damage("log-gap", name, f"it comes after {walk.tree.size} leaves")
        found = [merkle.leaf_hash(one.entry)]
        walk.tree, walk.tile = walk.tree.extended(found), walk.tile.extended(found)
        if walk.tile.size == WIDTH:
            walk.tiles.append(walk.tile.root)
            walk.tile = Tree()
        if one.peaks is not None and one.peaks != walk.tree.joined:
            yield damage("log-peaks", name, "the tree that it ends is not that of the leaves up to it")
        try:
            leaf = leaves.from_bytes(one.entry)
        except SecurityError as error:
            yield damage("log-entry", name, str(error))
            walk.view = None
            continue
        if isinstance(leaf, Keyed):
            walk.keys.append(one.seq)
        if one.release != _release(leaf):
            yield damage("log-index", name, f"it is on record as {one.release}, and is {_release(leaf)}")
        parsed.append(leaf)
    yield from _read(walk, batch[0].seq, parsed)


def _read(walk: _Walk, start: int, parsed: list[Leaf]) -> Iterator[Finding]:
    """All at once, since each view is a copy; one by one only to say which one is wrong."""
    if walk.view is None:
        return
    try:
        walk.view = walk.view.extended(parsed)
    except SecurityError:
        for at, leaf in enumerate(parsed, start):
            try:
                walk.view = walk.view.extended([leaf])
            except SecurityError as error:
                yield damage("log-contradiction", f"leaf:{at}", str(error))
                break
        walk.view = None


def _release(leaf: Leaf) -> str | None:
    return f"{leaf.archive}@{leaf.number}" if isinstance(leaf, Released) else None


async def _compared(tx: Transaction, view: LogView) -> list[Finding]:
    found: list[Finding] = []
    releases = {(one.archive, one.number): one for one in await archives.releases(tx)}
    logged = {
        (name, number): one for name, archive in view.archives.items() for number, one in archive.releases.items()
    }
    for key in sorted(releases.keys() | logged.keys()):
        found += _release_findings(f"{key[0]}@{key[1]}", releases.get(key), logged.get(key))
    recorded = {one.name: one for one in await archives.listed(tx)}
    for name in sorted(recorded.keys() | view.archives.keys()):
        found += _archive_findings(name, recorded.get(name), view.archives.get(name))
    return found


def _release_findings(name: str, row: Release | None, leaf: LoggedRelease | None) -> Iterator[Finding]:
    if leaf is None:
        yield damage("log-unlogged", name, "it is on record, and no leaf of the log tells of it")
    elif row is None:
        yield damage("log-unrecorded", name, f"leaf {leaf.index} of the log tells of it, and it is not on record")
    else:
        yield from _differing(
            "log-release-disagrees",
            name,
            {
                "digest": (row.digest, str(leaf.digest)),
                "size": (row.size, leaf.size),
                "manifest": (row.manifest_digest, str(leaf.manifest)),
                "author": (_shown(row.author), _shown(leaf.author)),
                "waits": (row.waits, leaf.waits),
                "approved_by": (tuple(row.approved_by), leaf.approved_by),
                "revoked": (row.revoked_at is not None, leaf.revoked),
                "retired": (row.retired_at is not None, leaf.retired),
            },
        )


def _shown(signature: bytes | None) -> str | None:
    return str(Digest.of(signature)) if signature is not None else None


def _archive_findings(name: str, row: Archive | None, leaf: LoggedArchive | None) -> Iterator[Finding]:
    if leaf is None:
        yield damage("log-unlogged", name, "it is on record, and no leaf of the log tells of it")
    elif row is None:
        yield damage("log-unrecorded", name, "the log tells of it, and it is not on record")
    else:
        yield from _differing(
            "log-archive-disagrees",
            name,
            {
                "active": (row.active, leaf.active),
                "owner": (row.owner, leaf.owner),
                "group": (row.group, leaf.group),
                "mode": (row.mode, leaf.mode),
            },
        )


def _differing(rule: str, name: str, pairs: dict[str, tuple[object, object]]) -> Iterator[Finding]:
    wrong = [f"{what} is {row}, logged {leaf}" for what, (row, leaf) in pairs.items() if row != leaf]
    if wrong:
        yield damage(rule, name, "; ".join(wrong))

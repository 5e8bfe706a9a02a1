"""The log's rows: every decision about releases as a leaf of one Merkle tree, added at the end, never changed.

Promise: a leaf is added in the transaction of what it tells of, by the functions that write that: nothing is on record and
not in the log, nor the other way round. The last leaf of each transaction keeps the peaks of the tree that it ends, and each
full tile the root of its 256 leaves; so to add, to say the root and to prove costs the same however long the log is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import String, bindparam, cast, func, insert, select

from integrity.errors import NotFoundError
from submit_api.registry.database import Transaction
from submit_api.registry.tables import ArchiveRow, LeafRow, LogKeyRow, TileRow, table
from vocabulary import leaves, merkle, tiles
from vocabulary.leaves import Keyed, Leaf, Released
from vocabulary.merkle import Tree


@dataclass(frozen=True, slots=True)
class Stored:
    """A row, as it is."""

    seq: int
    entry: bytes
    release: str | None
    peaks: bytes | None


# Made once: every agent asks these, and every submission adds such.
_ADD, _ADD_KEYS, _ADD_TILES = insert(table(LeafRow)), insert(table(LogKeyRow)), insert(table(TileRow))
_ENTRIES = (
    select(LeafRow.entry).where(LeafRow.seq >= bindparam("start"), LeafRow.seq < bindparam("end")).order_by(LeafRow.seq)
)
_LAST = select(LeafRow.seq, LeafRow.peaks).order_by(LeafRow.seq.desc()).limit(1)


async def add(tx: Transaction, found: Sequence[Leaf]) -> None:
    """In order."""
    if not found:
        return
    before = await tree(tx)
    entries = [leaves.to_bytes(leaf) for leaf in found]
    hashes = [merkle.leaf_hash(entry) for entry in entries]
    rows = [
        {"seq": seq, "entry": entry, "release": _release(leaf), "peaks": None}
        for seq, (leaf, entry) in enumerate(zip(found, entries, strict=True), before.size)
    ]
    rows[-1]["peaks"] = before.extended(hashes).joined
    await tx.session.execute(_ADD, rows)
    keys = [{"seq": seq} for seq, leaf in enumerate(found, before.size) if isinstance(leaf, Keyed)]
    if keys:
        await tx.session.execute(_ADD_KEYS, keys)
    full = [{"number": number, "root": root} for number, root in _filled(before, hashes)]
    if full:
        await tx.session.execute(_ADD_TILES, full)


def _release(leaf: Leaf) -> str | None:
    return f"{leaf.archive}@{leaf.number}" if isinstance(leaf, Released) else None


def _filled(before: Tree, hashes: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
    """Number and root of each tile that these leaves fill."""
    held = before.size % tiles.WIDTH
    part = Tree(held, before.peaks[len(before.peaks) - held.bit_count() :])
    at = 0
    while (end := at + tiles.WIDTH - part.size) <= len(hashes):
        yield (before.size + end) // tiles.WIDTH - 1, part.extended(hashes[at:end]).root
        part, at = Tree(), end


async def tree(tx: Transaction) -> Tree:
    """As it is after the last leaf."""
    row = (await tx.session.execute(_LAST)).first()
    return Tree() if row is None else Tree.from_bytes(row.seq + 1, row.peaks or b"")


async def tree_of(tx: Transaction, size: int) -> Tree | None:
    """As it was when it had so many leaves; None unless a transaction ended there."""
    if size == 0:
        return Tree()
    peaks = await tx.session.scalar(select(LeafRow.peaks).where(LeafRow.seq == size - 1))
    return None if peaks is None else Tree.from_bytes(size, peaks)


async def of_active(tx: Transaction) -> list[bytes]:
    """The entries of the active releases."""
    named = ArchiveRow.name + "@" + cast(ArchiveRow.active, String)
    query = select(LeafRow.entry).select_from(ArchiveRow).join(LeafRow, LeafRow.release == named)
    return list(await tx.session.scalars(query.where(ArchiveRow.active.is_not(None))))


async def entries(tx: Transaction, start: int, end: int) -> list[bytes]:
    """From leaf `start` to before `end`, in order."""
    return list(await tx.session.scalars(_ENTRIES, {"start": start, "end": end}))


async def stored(tx: Transaction, after: int, limit: int) -> list[Stored]:
    """The rows after leaf `after`, in order."""
    columns = (LeafRow.seq, LeafRow.entry, LeafRow.release, LeafRow.peaks)
    query = select(*columns).where(LeafRow.seq > after).order_by(LeafRow.seq).limit(limit)
    return [Stored(*row) for row in await tx.session.execute(query)]


async def of_release(tx: Transaction, archive: str, number: int) -> int:
    """Which leaf it is. Raises `NotFoundError`."""
    found = await tx.session.scalar(select(LeafRow.seq).where(LeafRow.release == f"{archive}@{number}"))
    if found is None:
        raise NotFoundError(f"{archive}@{number} is not in the log")
    return found


async def keys(tx: Transaction) -> list[bytes]:
    """The entries of the log's keys, in order."""
    query = select(LeafRow.entry).join(LogKeyRow, LogKeyRow.seq == LeafRow.seq).order_by(LeafRow.seq)
    return list(await tx.session.scalars(query))


async def key_numbers(tx: Transaction) -> list[int]:
    """Which leaves are on record as keys."""
    return list(await tx.session.scalars(select(LogKeyRow.seq).order_by(LogKeyRow.seq)))


async def tile_roots(tx: Transaction, start: int, end: int) -> list[bytes]:
    """Of full tiles `start` to before `end`."""
    query = select(TileRow.root).where(TileRow.number >= start, TileRow.number < end).order_by(TileRow.number)
    return list(await tx.session.scalars(query))


async def count(tx: Transaction) -> tuple[int, int]:
    """How many leaves and how many full tiles there are, counted."""
    found = await tx.session.scalar(select(func.count()).select_from(LeafRow))
    full = await tx.session.scalar(select(func.count()).select_from(TileRow))
    return found or 0, full or 0

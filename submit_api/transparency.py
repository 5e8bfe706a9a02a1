"""The log as others see it: signed checkpoints, tiles, entries, and proofs, over the rows of `registry.leaves`.

Promise: a checkpoint tells of commits only, so what it proves is on disk. It is signed anew when the log has grown, and once a
second at most while it has not: what hundreds of agents ask for in one second is the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from integrity.errors import NotFoundError
from submit_api.effects import MICROSECONDS, Clock
from submit_api.registry import archives, logged
from submit_api.registry import leaves as rows
from submit_api.registry.database import Database, Transaction
from submit_api.registry.records import Release
from vocabulary import checkpoints, leaves, merkle, tiles
from vocabulary.checkpoints import Checkpoint
from vocabulary.keys import SigningKey, VerifyKey
from vocabulary.leaves import Keyed
from vocabulary.logview import LogView
from vocabulary.merkle import Tree
from vocabulary.tiles import WIDTH, TilePath

MAX_ENTRIES = 4096  # of one answer
MAX_ENTRIES_BYTES = 8 * 1024 * 1024
FEW_ENTRIES = 64  # as many as are looked at in the loop, and kept for the next who asks


@dataclass(frozen=True, slots=True, kw_only=True)
class Inclusion:
    """That `entry` is leaf `index` of the log that `checkpoint` signs. `keys`: the entries of the log's keys, in order."""

    entry: bytes
    index: int
    path: list[bytes]
    checkpoint: bytes
    keys: list[bytes]


class TransparencyLog:
    """Of one database, signed by one key."""

    def __init__(self, database: Database, key: SigningKey, clock: Clock) -> None:
        self._database = database
        self._key = key
        self._clock = clock
        self._origin: str | None = None
        self._roots: list[bytes] = []
        self._made: tuple[int, int, bytes] | None = None  # at which commit and second, and the note
        self._few: tuple[int, list[bytes]] = 0, []  # the last few entries that were asked for, which never change

    async def checkpoint(self) -> bytes:
        """Of the whole log, now. Raises `NotFoundError` before `begin`."""
        note = self.at_hand()
        if note is None:
            now = self._now()
            async with self._database.glance() as tx:
                found = await rows.tree(tx)
            note = await self._sign(found)
            self._made = (*now, note)
        return note

    def at_hand(self) -> bytes | None:
        """The same, where it takes no waiting."""
        now = self._now()
        if self._made is not None and self._made[:2] == now:
            return self._made[2]
        found = self._database.at_once(rows.tree) if self._origin is not None else None
        if found is None or self._origin is None:
            return None
        self._made = (*now, self._signed(found, self._origin))
        return self._made[2]

    def _now(self) -> tuple[int, int]:
        return self._database.commits, self._clock.now_us() // MICROSECONDS

    async def entries(self, start: int, end: int) -> list[bytes]:
        """From leaf `start` to before `end`; fewer where they are many, and at least one. Raises `NotFoundError` where the log
        ends before."""
        if end - start <= FEW_ENTRIES:
            return await self._few_entries(start, end)
        async with self._database.read() as tx:
            found = await rows.entries(tx, start, min(end, start + MAX_ENTRIES))
        _require_some(found, start)
        size = 0
        for count, entry in enumerate(found):
            size += len(entry) + 2
            if size > MAX_ENTRIES_BYTES and count:
                return found[:count]
        return found

    async def _few_entries(self, start: int, end: int) -> list[bytes]:
        if self._few[0] != start or len(self._few[1]) != end - start:
            async with self._database.glance() as tx:
                found = await rows.entries(tx, start, end)
            _require_some(found, start)
            self._few = start, found
        return self._few[1]

    async def tile(self, path: TilePath) -> bytes:
        """Raises `NotFoundError` for one that is not full so far."""
        async with self._database.read() as tx:
            size = (await rows.tree(tx)).size
            level = path.level or 0
            if path.number * WIDTH + path.width > size // WIDTH**level:
                raise NotFoundError(f"the log of {size} leaves has no tile {path} yet")
            first = path.number * WIDTH
            if path.level is None:
                return tiles.bundle(await rows.entries(tx, first, first + path.width))
            if level == 0:
                return b"".join(await _hashes(tx, first, first + path.width))
            await self._learn(tx, size)
        below = WIDTH ** (level - 1)
        return b"".join(
            merkle.root_of(self._roots[at * below : (at + 1) * below]) for at in range(first, first + path.width)
        )

    async def included(self, tx: Transaction, archive: str, number: int) -> Inclusion:
        """The proof of a release, to the log as it is now. Raises `NotFoundError`."""
        index = await rows.of_release(tx, archive, number)
        whole = await rows.tree(tx)
        (entry,) = await rows.entries(tx, index, index + 1)
        of = await self._ranges(tx, whole.size, index)
        return Inclusion(
            entry=entry,
            index=index,
            path=merkle.inclusion_proof(index, whole.size, of),
            checkpoint=await self._sign(whole),
            keys=await rows.keys(tx),
        )

    async def consistent(self, old: int, new: int) -> list[bytes]:
        """The proof that the log of `old` leaves is the beginning of that of `new`. Raises `NotFoundError`."""
        async with self._database.read() as tx:
            size = (await rows.tree(tx)).size
            if not old <= new <= size:
                raise NotFoundError(f"the log has {size} leaves: there is no proof from {old} to {new}")
            return merkle.consistency_proof(old, new, await self._ranges(tx, new, old))

    async def _sign(self, found: Tree) -> bytes:
        if self._origin is None:
            async with self._database.read() as tx:
                self._origin = await origin(tx)
        return self._signed(found, self._origin)

    def _signed(self, found: Tree, origin: str) -> bytes:
        time = self._clock.now_us() // MICROSECONDS
        return checkpoints.sign(Checkpoint(origin=origin, size=found.size, root=found.root, time=time), self._key)

    async def _learn(self, tx: Transaction, size: int) -> None:
        """The roots of all tiles that are full: 32 bytes for 256 leaves."""
        self._roots += await rows.tile_roots(tx, len(self._roots), size // WIDTH)

    async def _ranges(self, tx: Transaction, size: int, near: int) -> merkle.RangeHash:
        """Roots of what a proof about leaf `near` in a log of `size` leaves asks for."""
        await self._learn(tx, size)
        held: dict[int, Sequence[bytes]] = {}
        for tile in {near // WIDTH, size // WIDTH}:
            held[tile] = await _hashes(tx, tile * WIDTH, min((tile + 1) * WIDTH, size))

        def of(start: int, end: int) -> bytes:
            if end - start < WIDTH:
                tile, first = held[start // WIDTH], start % WIDTH
                return merkle.root_of(tile[first : first + end - start])
            full = Tree().extended(self._roots[start // WIDTH : end // WIDTH])
            part = Tree().extended(held[end // WIDTH][: end % WIDTH] if end % WIDTH else ())
            return Tree(end - start, full.peaks + part.peaks).root

        return of


def _require_some(found: Sequence[bytes], start: int) -> None:
    if not found:
        raise NotFoundError(f"the log has no leaf {start} yet")


async def begin(tx: Transaction, key: SigningKey, now: int) -> None:
    """The log's first leaves where there are none: its key, then what is on record. `now` in microseconds."""
    if (await rows.tree(tx)).size:
        return
    of: dict[str, list[Release]] = {}
    for release in await archives.releases(tx):
        of.setdefault(release.archive, []).append(release)
    first = Keyed(at=now // MICROSECONDS, key=key.public, signature=None)
    await rows.add(tx, [first, *logged.so_far(await archives.listed(tx), of, now=now)])


async def chain(tx: Transaction) -> tuple[VerifyKey, ...]:
    """The log's keys, in order, each handed on by the one before. Raises `SignatureError` where one was not."""
    return LogView().extended(leaves.from_bytes(entry) for entry in await rows.keys(tx)).keys


async def origin(tx: Transaction) -> str:
    """The log's name. Raises `NotFoundError`."""
    found = await rows.entries(tx, 0, 1)
    first = leaves.from_bytes(found[0]) if found else None
    if not isinstance(first, Keyed):
        raise NotFoundError("the log is empty: start the service once, which begins it")
    return checkpoints.origin_of(first.key)


async def _hashes(tx: Transaction, start: int, end: int) -> list[bytes]:
    return [merkle.leaf_hash(entry) for entry in await rows.entries(tx, start, end)]

"""What an agent believes of the log: the rules, on bytes, without any I/O.

    a note ── announced ──► Announced ── grown, with the entries that are new ──► Update

Promise: an `Update` was checked whole, and what was known before is not changed by a refusal. A server that nobody vouches
for yet can make its reader fetch so much and no more: it is only the leaves that tell which key came after the known one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from integrity.errors import MalformedError, RollbackError, SecurityError, SignatureError
from vocabulary import checkpoints, leaves, merkle
from vocabulary.checkpoints import Checkpoint, VerifiedCheckpoint
from vocabulary.keys import VerifyKey
from vocabulary.logview import LogView
from vocabulary.merkle import Tree
from vocabulary.notes import Note

MAX_BYTES = 1024 * 1024 * 1024
MAX_UNVERIFIED_BYTES = 64 * 1024 * 1024
MAX_UNVERIFIED_LEAVES = 2**18


class ForkError(SecurityError):
    """The log's key signed two pasts: stop, keep both checkpoints, and find out who was shown which."""

    slug = "fork"


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """The log as far as it is known; `newest` is None before the first contact."""

    tree: Tree = field(default_factory=Tree)
    view: LogView = field(default_factory=LogView)
    newest: VerifiedCheckpoint | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """A checkpoint that may be followed. `verified` is None while only a key among the new leaves can have signed it."""

    note: bytes
    checkpoint: Checkpoint
    verified: VerifiedCheckpoint | None

    def max_bytes(self, known: Followed) -> int:
        """How much of entries may be fetched for it. Raises `SignatureError` where nobody vouches for so many leaves."""
        if self.verified is not None:
            return MAX_BYTES
        more = self.checkpoint.size - known.tree.size
        if more > MAX_UNVERIFIED_LEAVES:
            raise SignatureError(
                f"the checkpoint is not signed by a known key of the log, and {more} leaves are too many to look for one: pin "
                "the server's key of today in api_key"
            )
        return MAX_UNVERIFIED_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What is known from now on, and the entries that are new in it."""

    followed: Followed
    entries: Sequence[bytes] = ()


def announced(known: Followed, note: bytes, *, pinned: VerifyKey | None) -> Announced:
    """The checks, in this order; `pinned` is None for a reader who only asks whether all of it fits together:

    1 a signed note of at most 16 KiB whose text is a checkpoint, of at least one leaf, of the log that is followed;
    2 signed by the newest key that is known of the log, at first the pinned one. One that is not may be by a key that its new
      leaves hand on, if it has any: then `grown` verifies it, and `max_bytes` says how much may be fetched for that;
    3 not smaller and not older than what is known (a rollback, a replay); as large, then with the same root (a fork).

    Raises `MalformedError`, `SignatureError`, `RollbackError`, `ForkError`. Not checked here: how old it is. That is asked
    before anything is kept (`checkpoints.require_fresh`), but not of what one's own disk has kept.
    """
    if len(note) > checkpoints.MAX_BYTES:
        raise MalformedError(f"a checkpoint is at most {checkpoints.MAX_BYTES} bytes, not {len(note)}")
    found = Checkpoint.from_text(Note.from_bytes(note).text)
    if found.size == 0:
        raise MalformedError("the checkpoint is of an empty log: there is its key in it from the beginning")
    before = known.newest.checkpoint if known.newest is not None else None
    if before is not None and found.origin != before.origin:
        raise SignatureError(f"the checkpoint is of log {found.origin}, followed is {before.origin}")
    newest = known.view.keys[-1] if known.view.keys else pinned
    try:
        verified = checkpoints.verify(note, [newest] if newest is not None else [])
    except SignatureError:
        _require_handed_on(known, found, note)
        return Announced(note=note, checkpoint=found, verified=None)
    if before is not None:
        _require_later(before, found)
    return Announced(note=note, checkpoint=found, verified=verified)


def _require_handed_on(known: Followed, found: Checkpoint, note: bytes) -> None:
    """Whether another key than the newest may have signed this: a later one, in leaves that are not known yet."""
    if Note.from_bytes(note).signers(known.view.keys, found.origin):
        raise SignatureError("the checkpoint is signed by a key of the log that was handed on since")
    if found.size <= known.tree.size:
        raise SignatureError("the checkpoint is not signed by the log's key")


def _require_later(before: Checkpoint, found: Checkpoint) -> None:
    if found.size < before.size:
        raise RollbackError(
            f"the log has {found.size} leaves and had {before.size}: the server was restored from an older backup, or hides "
            "what was decided since"
        )
    if found.size == before.size and found.root != before.root:
        raise ForkError(f"the log's key signed two logs of {found.size} leaves")
    if found.time < before.time:
        raise RollbackError(
            f"the checkpoint is {before.time - found.time} s older than one that was seen: it is replayed, or the server's "
            "clock was set back"
        )


def grown(known: Followed, found: Announced, entries: Sequence[bytes], *, pinned: VerifyKey | None) -> Update:
    """The checks that follow, with the entries from where the known log ends:

    4 they are as many as the checkpoint is larger;
    5 after what is known they have the checkpoint's root: a follower has the whole tree, so this is what a consistency proof
      would show. If not: a fork, where the key that is known signed it; else forged;
    6 each is a leaf and contradicts none before it, keys are handed on by the key before (`vocabulary.logview`);
    7 the pinned key is among the log's keys, so the newest one is it, or was handed on from it;
    8 the newest key signed the checkpoint, under the name of the log's first: by 2, if that was this key under this name.

    Raises `MalformedError`, `SignatureError`, `ForkError`, and for a checkpoint that is verified only now also `RollbackError`.
    """
    stated = found.checkpoint
    if len(entries) != stated.size - known.tree.size:
        raise MalformedError(f"{len(entries)} entries are not those from {known.tree.size} to {stated.size}")
    tree = known.tree.extended(map(merkle.leaf_hash, entries))
    if tree.root != stated.root:
        if known.tree.size and found.verified is not None:
            raise ForkError(
                f"the log of {stated.size} leaves does not go on from the known one of {known.tree.size}: somebody changed its "
                "past, or its leaves on the way here"
            )
        raise SignatureError("the entries are not those that the checkpoint is of")
    read = [leaves.from_bytes(entry) for entry in entries]
    view = known.view.extended(read) if read else known.view
    if pinned is not None and pinned not in view.keys:
        raise SignatureError(
            f"the pinned key {pinned.key_id[:16]}… is none of the log's {len(view.keys)}: is api_key the key of this server?"
        )
    verified = found.verified
    if verified is None or (verified.key_id, stated.origin) != (view.keys[-1].key_id, view.origin):
        verified = checkpoints.verify(found.note, [view.keys[-1]], origin=view.origin)
    if known.newest is not None:
        _require_later(known.newest.checkpoint, stated)
    return Update(followed=Followed(tree=tree, view=view, newest=verified), entries=entries)

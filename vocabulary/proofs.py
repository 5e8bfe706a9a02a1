"""Proof files: what shows for good, and without the server, that a release was recorded, by whom, and in which log.

One canonical JSON document; binary fields are base64:

    v           1
    manifest    the release's signed envelope
    entry       its leaf of the log, and `index`, which one it is
    path        the hashes that lead from the leaf to the checkpoint's root, from the bottom up
    checkpoint  the signed note
    keys        the entries of the log's keys, in order: from the first to the one that signed the checkpoint

A reader needs one key that it trusts: the log's first, or any that came later. It trusts those that were handed on from there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from integrity import canonical
from integrity.errors import MalformedError, SignatureError
from integrity.fields import Fields, from_base64, to_base64
from vocabulary import checkpoints, envelopes, leaves, manifest, merkle
from vocabulary.checkpoints import Checkpoint
from vocabulary.keys import KeyRing, VerifyKey
from vocabulary.leaves import Keyed, Released
from vocabulary.manifest import Manifest, VerifiedManifest
from vocabulary.tiles import MAX_ENTRY_BYTES

MAX_KEYS = 1000
MAX_PROOF_BYTES = envelopes.MAX_ENVELOPE_BYTES * 4 // 3 + 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Parsed, not verified."""

    manifest: bytes = field(repr=False)
    entry: bytes
    index: int
    path: tuple[bytes, ...]
    checkpoint: bytes
    keys: tuple[bytes, ...]

    def to_bytes(self) -> bytes:
        return canonical.dump(
            {
                "v": 1,
                "manifest": to_base64(self.manifest),
                "entry": to_base64(self.entry),
                "index": self.index,
                "path": [to_base64(one) for one in self.path],
                "checkpoint": to_base64(self.checkpoint),
                "keys": [to_base64(one) for one in self.keys],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Proof:
        """Raises `MalformedError` for anything but one canonical proof."""
        found = Fields(canonical.load(data, max_bytes=MAX_PROOF_BYTES), "proof")
        found.version(1)
        proof = cls(
            manifest=found.binary("manifest", max_bytes=envelopes.MAX_ENVELOPE_BYTES),
            entry=found.binary("entry", max_bytes=MAX_ENTRY_BYTES),
            index=found.integer("index"),
            path=_listed(found, "path", most=merkle.MAX_PATH, max_bytes=merkle.HASH_BYTES),
            checkpoint=found.binary("checkpoint", max_bytes=checkpoints.MAX_BYTES),
            keys=_listed(found, "keys", most=MAX_KEYS, max_bytes=MAX_ENTRY_BYTES),
        )
        found.done()
        return proof


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedProof:
    """A release as the log has it. `signed_by` is the id of the key under the checkpoint."""

    manifest: Manifest
    leaf: Released
    index: int
    checkpoint: Checkpoint
    signed_by: str


def verify(proof: Proof, trusted: Collection[VerifyKey]) -> VerifiedProof:
    """The checks, in this order, and what each answers:

    1 `keys` begin with the log's first, each other is signed by the one before, one is trusted: another log
    2 the checkpoint is signed by the trusted key or a later one, under the name of this log: an invented log
    3 `entry` is leaf `index` below the checkpoint's root, and a release's: a release that was never recorded
    4 the manifest is signed by a key of this log, has the digest that the leaf names, and says the same of archive, number,
      bytes, owner, group and submitter: an invented manifest

    Raises `MalformedError`, `SignatureError`. Not checked: how old the checkpoint is, and so whether the release was revoked
    after it; that some bytes are these (`manifest.digest`); that others see the same log (`merkle.verify_consistency`). What a
    key's entry says of its time is not proved either, and nothing depends on it.
    """
    *_, last = steps(proof, trusted)
    if not isinstance(last, VerifiedProof):
        raise RuntimeError("the last step is the result")
    return last


def steps(proof: Proof, trusted: Collection[VerifyKey]) -> Iterator[str | VerifiedProof]:
    """Each check that holds, in words, and then the result; or the error of the first that does not hold."""
    keys = chain(proof.keys)
    origin, believed = checkpoints.origin_of(keys[0]), handed_on(keys, trusted)
    yield f"the log began with key {keys[0].key_id[:16]}…, of its keys ({len(keys)}) trusted from {believed[0].key_id[:16]}… on"
    signed = checkpoints.verify(proof.checkpoint, believed, origin=origin)
    point = signed.checkpoint
    yield f"the checkpoint of {point.size} leaves is signed by key {signed.key_id[:16]}…"
    leaf = leaves.from_bytes(proof.entry)
    if not isinstance(leaf, Released):
        raise MalformedError(f"the proof's entry is no release's, but of kind {leaf.kind}")
    merkle.verify_inclusion(merkle.leaf_hash(proof.entry), proof.index, point.size, proof.path, point.root)
    yield f"{leaf.archive}@{leaf.number} is leaf {proof.index} of the log"
    verified = manifest.verify(proof.manifest, KeyRing(list(keys)))
    leaf.manifest.require(verified.digest, f"the manifest of {leaf.archive}@{leaf.number}")
    require_same(verified, leaf)
    yield f"its manifest is signed by key {verified.key_id}, and is the one that the log names"
    yield VerifiedProof(
        manifest=verified.manifest, leaf=leaf, index=proof.index, checkpoint=point, signed_by=signed.key_id
    )


def chain(entries: Sequence[bytes]) -> tuple[VerifyKey, ...]:
    """The keys of these entries. Raises `MalformedError`, `SignatureError` unless each is signed by the one before."""
    keys: list[VerifyKey] = []
    for entry in entries:
        leaf = leaves.from_bytes(entry)
        if not isinstance(leaf, Keyed):
            raise MalformedError(f"among the log's keys is an entry of kind {leaf.kind}")
        if keys:
            leaf.require_signed(checkpoints.origin_of(keys[0]), keys[-1])
        elif leaf.signature is not None:
            raise MalformedError("the log's first key is signed by nobody")
        keys.append(leaf.key)
    if not keys:
        raise MalformedError("a log has at least one key")
    return tuple(keys)


def handed_on(keys: Sequence[VerifyKey], trusted: Collection[VerifyKey]) -> tuple[VerifyKey, ...]:
    """Those of a log's keys to believe: the first that is trusted, and all after it. Raises `SignatureError` for none."""
    for at, key in enumerate(keys):
        if key in trusted:
            return tuple(keys[at:])
    raise SignatureError(f"the log's keys are not trusted here: none of the {len(trusted)} trusted keys is among them")


def require_same(verified: VerifiedManifest, leaf: Released) -> None:
    """Raises `SignatureError` where a manifest and its leaf say two things."""
    said = verified.manifest
    pairs = {
        "archive": (said.archive, leaf.archive),
        "number": (said.number, leaf.number),
        "digest": (said.digest, leaf.digest),
        "size": (said.size, leaf.size),
        "owner": (said.owner, leaf.owner),
        "group": (said.group, leaf.group),
        "submitter": (said.submitted_by, leaf.by),
    }
    wrong = [name for name, (one, other) in pairs.items() if one != other]
    if wrong:
        raise SignatureError(
            f"the manifest of {said.archive}@{said.number} and its leaf in the log differ in {', '.join(wrong)}"
        )


def _listed(found: Fields, key: str, *, most: int, max_bytes: int) -> tuple[bytes, ...]:
    items = found.items(key, max_items=most)
    if not all(isinstance(item, str) for item in items):
        raise MalformedError(f"proof: {key!r} is to be a list of base64 texts")
    return tuple(from_base64(item, f"proof: {key!r}", max_bytes=max_bytes) for item in items)

"""One folder, one log and one proof file, the same on every machine: what docs/verifying.md shows is made of these.

Keys are of fixed seeds, times stand still. The log: its key; `etl.zip@1`; a key that was handed on to; `etl.zip@2` and
more leaves, so that the release is neither first nor last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from integrity.digests import Digest
from integrity.fields import to_base64
from vocabulary import archives, authorship, checkpoints, leaves, manifest, merkle, zipwriter
from vocabulary.checkpoints import Checkpoint
from vocabulary.keys import SigningKey, VerifyKey
from vocabulary.leaves import Activated, Keyed, Leaf, Owned, Released
from vocabulary.manifest import Manifest
from vocabulary.proofs import Proof

FIRST, SECOND, MALLORY = (SigningKey(bytes([number]) * 32) for number in (1, 2, 66))
ORIGIN = checkpoints.origin_of(FIRST.public)
AT = 1_790_000_000
FILES = {"flow.py": b"import words\n", "words.py": b"hello = 'hi'\n"}
OLDER = {"flow.py": b"import words\n", "words.py": b"hello = ''\n"}


def stated(files: dict[str, bytes], number: int, **changes: object) -> Manifest:
    data = zipwriter.pack(files)
    fields: dict[str, object] = {
        "archive": "etl.zip",
        "number": number,
        "digest": Digest.of(data),
        "size": len(data),
        "members": archives.manifest_members(archives.read("etl.zip", data)),
        "owner": "ann",
        "group": "data",
        "submitted_by": "ann",
        "created_at": AT + number,
        "task_check": "task",
        "airflow_version": "3.3.2",
        "dags": (),
    }
    return Manifest(**{**fields, **changes})  # type: ignore[arg-type]


def released(said: Manifest) -> Released:
    return Released(
        at=said.created_at, by=said.submitted_by, archive=said.archive, number=said.number, digest=said.digest,
        size=said.size, manifest=Digest.of(said.to_bytes()), owner=said.owner, group=said.group, waits=False,
    )  # fmt: skip


def history(*said: Manifest, author: bytes | None = None) -> list[Leaf]:
    """Key, the first release, another key, the other releases with this author's signature, something after them."""
    first, *others = said
    return [
        Keyed(at=AT, key=FIRST.public, signature=None),
        Owned(at=AT, by="ann", archive="etl.zip", owner="ann", group="data", mode=0o750),
        released(first),
        Keyed.handed_on(ORIGIN, SECOND.public, by=FIRST, at=AT + 1),
        *(replace(released(one), author=author) for one in others),
        *(Activated(at=AT + 9, by="ann", archive="etl.zip", number=one.number) for one in said),
    ]


def proof_of(
    said: Manifest,
    listed: list[Leaf],
    *,
    size: int | None = None,
    signed_by: SigningKey = SECOND,
    manifest_by: SigningKey = FIRST,
    at: int = AT + 3600,
) -> Proof:
    """To the log of the first `size` of these leaves."""
    found = listed[:size]
    entries = [leaves.to_bytes(leaf) for leaf in found]
    hashes = [merkle.leaf_hash(entry) for entry in entries]
    index = next(at for at, leaf in enumerate(found) if isinstance(leaf, Released) and leaf.number == said.number)
    point = Checkpoint(origin=ORIGIN, size=len(found), root=merkle.root_of(hashes), time=at)
    return Proof(
        manifest=manifest.sign(said, manifest_by),
        entry=entries[index],
        index=index,
        path=tuple(merkle.inclusion_proof(index, len(found), lambda start, end: merkle.root_of(hashes[start:end]))),
        checkpoint=checkpoints.sign(point, signed_by),
        keys=tuple(entry for entry, leaf in zip(entries, found, strict=True) if isinstance(leaf, Keyed)),
    )


@dataclass(frozen=True, slots=True)
class Case:
    """What is done to the folder `etl` and the proof `etl.proof` that lie there, and what `verify` is asked besides."""

    files: dict[str, bytes]
    proof: Proof
    options: tuple[str, ...] = ()
    code: int = 1
    wrong: tuple[str, ...] = ()  # differences


ONE, TWO = stated(OLDER, 1), stated(FILES, 2)
LEAVES = history(ONE, TWO)
PROOF = proof_of(TWO, LEAVES)
ANN = SigningKey(bytes([7]) * 32)
SIGNED = proof_of(TWO, history(ONE, TWO, author=authorship.sign(ANN, archive="etl.zip", digest=TWO.digest)))
CASES = {
    "A good tree": Case(FILES, PROOF, ("--expect-owner", "ann"), code=0),
    "One flipped byte": Case(FILES | {"words.py": b"hello = 'ha'\n"}, PROOF, wrong=("changed: words.py",)),
    "An extra file": Case(FILES | {"more.py": b"x = 1\n"}, PROOF, wrong=("unexpected: more.py",)),
    "A missing file": Case({"flow.py": FILES["flow.py"]}, PROOF, wrong=("missing: words.py",)),
    "A wrong owner": Case(FILES, PROOF, ("--expect-owner", "bob")),
    "A signed release": Case(FILES, SIGNED, ("--require-author", "authors.toml"), code=0),
    "No author": Case(FILES, PROOF, ("--require-author", "authors.toml")),
    "A forged manifest": Case(FILES, proof_of(TWO, LEAVES, manifest_by=MALLORY)),
    "A forged log": Case(FILES, proof_of(TWO, LEAVES, signed_by=MALLORY)),
    "An old proof": Case(FILES, proof_of(ONE, LEAVES, size=3, signed_by=FIRST), wrong=("changed: words.py",)),
}


def lay(case: Case, folder: Path, *trusted: VerifyKey) -> None:
    (folder / "etl").mkdir(parents=True)
    for name, data in case.files.items():
        (folder / "etl" / name).write_bytes(data)
    (folder / "etl.zip").write_bytes(zipwriter.pack(case.files))
    (folder / "authors.toml").write_text(f'"etl.*" = ["{to_base64(ANN.public.raw)}"]\n')
    (folder / "etl.proof").write_bytes(case.proof.to_bytes())
    (folder / "log.pub").write_text("".join(f"{key.raw.hex()}\n" for key in trusted or (FIRST.public,)))

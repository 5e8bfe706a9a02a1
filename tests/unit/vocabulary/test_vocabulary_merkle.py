"""Merkle trees: the same roots and proofs as RFC 6962's definitions and as Go's log, and nothing else is taken for a proof.

`log_definitions` has the definitions, slow and plain; `vectors/log/go_tlog.json` what Go's own log makes of 2,000 trees;
`vectors/log/rfc6962.json` what Certificate Transparency's tests have. Seen to fail when weakened: `leaf_hash` and `node_hash`
without their first byte; `_split` that takes the power itself; `verify_inclusion` without `last`; `verify_consistency` that
does not look at the old root; `Tree.extended` with one carry less.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import random
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_definitions import Log, root_by_path, roots_by_proof

from integrity.errors import MalformedError, SecurityError, SignatureError
from vocabulary import merkle
from vocabulary.merkle import Tree

VECTORS = pathlib.Path(__file__).parents[2] / "vectors" / "log"
LARGEST, ALL_PAIRS = 2000, 130
ENTRIES = [b"leaf %d" % number for number in range(LARGEST)]
LOG = Log(ENTRIES)
HASHES = [merkle.leaf_hash(entry) for entry in ENTRIES]
GO: list[str] = json.loads((VECTORS / "go_tlog.json").read_text())["sizes"]
CT: dict[str, Any] = json.loads((VECTORS / "rfc6962.json").read_text())
SOME = [*range(1, ALL_PAIRS + 1), *sorted(random.Random(6962).sample(range(ALL_PAIRS + 1, LARGEST), 8)), LARGEST]


@cache
def of(start: int, end: int) -> bytes:
    """A range's root, by our own code; what was computed is kept."""
    return merkle.root_of(HASHES[start:end])


def agree_on_inclusion(index: int, size: int, root: bytes) -> list[bytes]:
    path = merkle.inclusion_proof(index, size, of)
    assert path == LOG.path(index, 0, size)
    merkle.verify_inclusion(HASHES[index], index, size, path, root)
    return path


def agree_on_consistency(old: int, new: int) -> list[bytes]:
    path = merkle.consistency_proof(old, new, of)
    assert path == LOG.proof(old, new)
    merkle.verify_consistency(old, new, LOG.root(0, old), LOG.root(0, new), path)
    return path


def every_pair_of(size: int) -> None:
    """Ours, the definitions' and Go's are the same, and ours is taken by the verifier."""
    root = Tree().extended(HASHES[:size]).root
    assert root == LOG.root(0, size)
    hashed = hashlib.sha256(root)
    for index in range(size):
        hashed.update(b"".join(agree_on_inclusion(index, size, root)))
    agree_on_consistency(0, size)
    for old in range(1, size + 1):
        hashed.update(b"".join(agree_on_consistency(old, size)))
    assert hashed.hexdigest()[:16] == GO[size - 1]


@pytest.mark.parametrize("size", SOME)
def test_every_proof_of_a_tree_is_that_of_the_definitions_and_of_go(size: int) -> None:
    every_pair_of(size)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_every_proof_of_every_tree_up_to_the_largest() -> None:
    assert len(GO) == LARGEST
    for size in range(1, LARGEST + 1):
        every_pair_of(size)


def test_the_trees_of_certificate_transparency() -> None:
    entries = [bytes.fromhex(entry) for entry in CT["entries"]]
    roots = [bytes.fromhex(root) for root in CT["roots"]]
    hashes = [merkle.leaf_hash(entry) for entry in entries]
    for size, root in enumerate(roots):
        assert merkle.root_of(hashes[:size]) == root
    assert len(roots) == 9 and CT["inclusion"] and CT["consistency"]
    for index, size, path in CT["inclusion"]:
        said = [bytes.fromhex(one) for one in path]
        assert merkle.inclusion_proof(index, size, lambda a, b: merkle.root_of(hashes[a:b])) == said
        merkle.verify_inclusion(hashes[index], index, size, said, roots[size])
    for old, new, path in CT["consistency"]:
        said = [bytes.fromhex(one) for one in path]
        assert merkle.consistency_proof(old, new, lambda a, b: merkle.root_of(hashes[a:b])) == said
        merkle.verify_consistency(old, new, roots[old], roots[new], said)


@given(st.lists(st.binary(max_size=20), max_size=300), st.data())
def test_a_tree_is_the_same_however_it_grew(entries: list[bytes], data: st.DataObject) -> None:
    hashes = [merkle.leaf_hash(entry) for entry in entries]
    cut = data.draw(st.integers(0, len(entries)))
    tree = Tree().extended(hashes[:cut]).extended(hashes[cut:])
    assert tree == Tree().extended(hashes) and tree.root == Log(entries).root(0, len(entries))
    assert Tree.from_bytes(tree.size, tree.joined) == tree


def test_peaks_that_are_none_are_refused() -> None:
    tree = Tree().extended(HASHES[:7])
    for size, peaks in (
        (8, tree.joined),
        (3, tree.joined),
        (7, tree.joined[:-32]),
        (7, tree.joined[:-1]),
        (7, tree.joined + b"x"),
        (-1, b""),
        (0, bytes(32)),
    ):
        with pytest.raises(MalformedError):
            Tree.from_bytes(size, peaks)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (1, 1), (-1, 5), (5, 5), (6, 5)])
def test_of_what_is_not_there_is_no_proof(index: int, size: int) -> None:
    with pytest.raises(IndexError):
        merkle.inclusion_proof(index, size, of)
    with pytest.raises(SignatureError):
        merkle.verify_inclusion(HASHES[0], index, size, [], HASHES[0])


@pytest.mark.parametrize(("old", "new"), [(1, 0), (6, 5), (-1, 5)])
def test_of_a_log_that_shrank_is_no_proof(old: int, new: int) -> None:
    with pytest.raises(IndexError):
        merkle.consistency_proof(old, new, of)
    with pytest.raises(SignatureError):
        merkle.verify_consistency(old, new, HASHES[0], HASHES[0], [])


def bent(data: st.DataObject, path: list[bytes]) -> list[bytes]:
    """Another list of hashes than this one: a bit, an order, one more or one less."""
    ways = ["more"] + (["bit", "less", "twice"] if path else []) + (["swap"] if len(set(path)) > 1 else [])
    where = data.draw(st.integers(0, max(0, len(path) - 1)))
    match data.draw(st.sampled_from(ways)):
        case "more":
            return [*path[:where], data.draw(st.binary(min_size=32, max_size=32)), *path[where:]]
        case "less":
            return path[:where] + path[where + 1 :]
        case "twice":
            return [*path[:where], path[where], *path[where:]]
        case "swap":
            made = path[::-1]
            return made if made != path else [*path[1:], path[0]]
    flipped = bytearray(path[where])
    flipped[data.draw(st.integers(0, 31))] ^= 1 << data.draw(st.integers(0, 7))
    return [*path[:where], bytes(flipped), *path[where + 1 :]]


def flip(data: st.DataObject, found: bytes) -> bytes:
    bit = data.draw(st.integers(0, len(found) * 8 - 1))
    return (int.from_bytes(found) ^ (1 << bit)).to_bytes(len(found))


@given(st.integers(1, LARGEST), st.data())
def test_whatever_is_bent_of_an_inclusion_proof_it_is_refused(size: int, data: st.DataObject) -> None:
    """Where a bent size leads to the same path, as it can, the root is another log's."""
    index = data.draw(st.integers(0, size - 1))
    leaf, root, path = HASHES[index], LOG.root(0, size), merkle.inclusion_proof(index, size, of)
    other = data.draw(st.integers(0, LARGEST + 100).filter(lambda number: number != index))
    cases = [
        (leaf, index, size, bent(data, path), root),
        (flip(data, leaf), index, size, path, root),
        (leaf, index, size, path, flip(data, root)),
        (leaf, other, size, path, root),
        (root, index, size + 1, path, root),
    ]
    for case in cases:
        if root_by_path(case[0], case[1], case[2], case[3]) == case[4] and case[1] < case[2]:
            raise AssertionError(f"the definitions take {case[1:3]}: this is no bent proof")
        with pytest.raises(SecurityError):
            merkle.verify_inclusion(*case)


@given(st.integers(1, LARGEST), st.data())
def test_whatever_is_bent_of_a_consistency_proof_it_is_refused(new: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, new))
    old_root, new_root, path = LOG.root(0, old), LOG.root(0, new), merkle.consistency_proof(old, new, of)
    cases = [
        (old, new, old_root, new_root, bent(data, path)),
        (old, new, flip(data, old_root), new_root, path),
        (old, new, old_root, flip(data, new_root), path),
        (new, old, new_root, old_root, path) if old < new else (0, new, old_root, new_root, path),
        (old, new, old_root, LOG.root(0, data.draw(st.integers(0, LARGEST).filter(lambda n: n != new))), path),
    ]
    for case in cases:
        assert roots_by_proof(case[0], case[1], case[2], case[4]) != (case[2], case[3]) or case[0] == 0
        with pytest.raises(SecurityError):
            merkle.verify_consistency(*case)


def taken(check: Any, *case: Any) -> bool:
    try:
        check(*case)
    except SignatureError:
        return False
    return True


def test_a_proof_told_of_another_size_is_taken_only_where_the_definitions_take_it() -> None:
    """Of a subtree that is a proof's one hash nobody sees how large it is: a size is to be signed beside the root."""
    seen = set()
    for new in range(1, 25):
        for old in range(1, new + 1):
            path, roots = LOG.proof(old, new), (LOG.root(0, old), LOG.root(0, new))
            for said in range(old, 34):
                ours = taken(merkle.verify_consistency, old, said, *roots, path)
                assert ours == (roots_by_proof(old, said, roots[0], path) == roots), (old, new, said)
                seen.add((ours, said == new))
        for index in range(new):
            path, leaf = LOG.path(index, 0, new), HASHES[index]
            for said in range(index + 1, 34):
                ours = taken(merkle.verify_inclusion, leaf, index, said, path, LOG.root(0, new))
                assert ours == (root_by_path(leaf, index, said, path) == LOG.root(0, new)), (index, new, said)
    assert seen == {(True, True), (True, False), (False, False)}


@given(st.integers(0, 70), st.integers(0, 70), st.lists(st.binary(min_size=32, max_size=32), max_size=8))
def test_random_hashes_prove_nothing(one: int, two: int, path: list[bytes]) -> None:
    with pytest.raises(SecurityError):
        merkle.verify_inclusion(HASHES[0], one, two, path, LOG.root(0, 71))
    with pytest.raises(SecurityError):
        merkle.verify_consistency(one, two, LOG.root(0, 71), LOG.root(0, 72), path)


@pytest.mark.parametrize("wrong", [[b""], [bytes(31)], [bytes(33)], [bytes(32)] * 64])
def test_what_is_no_list_of_hashes_is_malformed(wrong: list[bytes]) -> None:
    with pytest.raises(MalformedError):
        merkle.verify_inclusion(HASHES[0], 0, 2, wrong, HASHES[0])
    with pytest.raises(MalformedError):
        merkle.verify_consistency(1, 2, HASHES[0], HASHES[0], wrong)


def test_a_log_is_the_beginning_of_itself_and_nothing_is_that_of_all() -> None:
    root = LOG.root(0, 5)
    merkle.verify_consistency(5, 5, root, root, [])
    merkle.verify_consistency(0, 5, merkle.root_of([]), root, [])
    for case in (
        (5, 5, root, HASHES[0], []),
        (0, 5, root, root, []),
        (5, 5, root, root, [HASHES[0]]),
        (0, 0, merkle.root_of([]), merkle.root_of([]), [HASHES[0]]),
    ):
        with pytest.raises(SignatureError):
            merkle.verify_consistency(*case)

"""Proof files are read strictly, and prove one release of one log. What each check refuses: `test_cli_verification`; every bent
byte: `test_cli_golden`."""

from __future__ import annotations

from typing import Any

import pytest

from integrity import canonical
from integrity.errors import MalformedError, SignatureError
from integrity.fields import to_base64
from tests.golden_verify import FIRST, LEAVES, MALLORY, ONE, SECOND, TWO, proof_of, released
from vocabulary import proofs
from vocabulary.proofs import MAX_KEYS, MAX_PROOF_BYTES, Proof

PROOF = proof_of(TWO, LEAVES)
VALUE: dict[str, Any] = canonical.load(PROOF.to_bytes(), max_bytes=MAX_PROOF_BYTES)
WRONG: dict[str, list[Any]] = {
    "v": [0, 2, "1", None],
    "manifest": ["!", None, 1, []],
    "entry": ["!", None, 1, to_base64(bytes(65536))],
    "index": [-1, "4", None, True],
    "path": [None, "", {}, [1], [None], ["!"], [to_base64(bytes(33))], [to_base64(bytes(32))] * 64],
    "checkpoint": ["!", None, 1, to_base64(bytes(16 * 1024 + 1))],
    "keys": [None, "", {}, [1], ["!"], ["AAAA"] * (MAX_KEYS + 1)],
}


def test_what_is_written_is_read() -> None:
    assert Proof.from_bytes(PROOF.to_bytes()) == PROOF


@pytest.mark.parametrize("key", VALUE)
def test_each_field_is_needed_typed_and_alone(key: str) -> None:
    for wrong in WRONG[key]:
        with pytest.raises(MalformedError):
            Proof.from_bytes(canonical.dump(VALUE | {key: wrong}))
    with pytest.raises(MalformedError):
        Proof.from_bytes(canonical.dump({other: VALUE[other] for other in VALUE if other != key}))
    with pytest.raises(MalformedError, match="unknown fields: zz"):
        Proof.from_bytes(canonical.dump(VALUE | {"zz": 1}))


def test_what_was_proved_is_said() -> None:
    found = proofs.verify(PROOF, [FIRST.public])
    assert (found.manifest, found.leaf, found.index) == (TWO, released(TWO), LEAVES.index(released(TWO)))
    assert (found.checkpoint.size, found.signed_by) == (len(LEAVES), SECOND.public.key_id)
    assert len(list(proofs.steps(PROOF, [FIRST.public]))) == 5


@pytest.mark.parametrize("size", range(3, len(LEAVES) + 1))
def test_a_release_is_proved_to_every_log_that_has_it(size: int) -> None:
    proof = proof_of(ONE, LEAVES, size=size, signed_by=FIRST)
    assert proofs.verify(proof, [FIRST.public]).manifest == ONE
    with pytest.raises(SignatureError):
        proofs.verify(proof, [MALLORY.public])


def test_believed_is_the_first_trusted_key_and_what_comes_after() -> None:
    keys = [FIRST.public, SECOND.public]
    assert proofs.handed_on(keys, [FIRST.public]) == tuple(keys)
    assert proofs.handed_on(keys, [MALLORY.public, SECOND.public]) == (SECOND.public,)
    for nobody in ([], [MALLORY.public]):
        with pytest.raises(SignatureError):
            proofs.handed_on(keys, nobody)

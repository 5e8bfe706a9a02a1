"""The rules of `dagseal verify`: each check refuses what it is there for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dagseal.cli.verification import Evidence, judge
from integrity import archives, manifest
from integrity.digests import Digest
from integrity.keys import KeyRing, SigningKey
from integrity.manifest import Manifest, Member

KEY = SigningKey.generate()
RING = KeyRing([KEY.public])
DATA = b"x = 1\n"


def stated(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "archive": "etl.py",
        "number": 3,
        "digest": Digest.of(DATA),
        "size": len(DATA),
        "members": archives.manifest_members(archives.read("etl.py", DATA)),
        "owner": "ann",
        "group": "data",
        "submitted_by": "ann",
        "created_at": 1,
        "task_check": "task",
        "airflow_version": "3.3.2",
        "dags": (),
    }
    return Manifest(**{**fields, **changes})


def evidence(document: Manifest | None = None, key: SigningKey = KEY, **changes: Any) -> Evidence:
    release = {"number": 3, "digest": str(Digest.of(DATA)), "state": "active"}
    found = Evidence(
        name="etl.py", data=DATA, release=release, newest=release, envelope=manifest.sign(document or stated(), key)
    )
    return replace(found, **changes)


def failed(found: Evidence, ring: KeyRing | None = RING) -> int | None:
    """The number of the check that failed."""
    checks = judge(found, ring)
    assert all(check.ok for check in checks[:-1])
    assert [check.number for check in checks] == sorted(check.number for check in checks)
    return None if checks[-1].ok else checks[-1].number


def test_what_was_submitted_is_verified_by_six_checks() -> None:
    assert [check.number for check in judge(evidence(), RING)] == [1, 2, 3, 4, 5, 6]
    assert failed(evidence()) is None


def test_without_a_key_the_signature_is_not_claimed_to_be_checked() -> None:
    assert [check.number for check in judge(evidence(), None)] == [1, 2, 6]


@pytest.mark.parametrize("position", range(len(DATA)))
def test_every_flipped_byte_fails(position: int) -> None:
    changed = bytearray(DATA)
    changed[position] ^= 1
    assert failed(evidence(data=bytes(changed))) in (1, 2)


def test_bytes_that_nobody_submitted() -> None:
    assert failed(evidence(release=None)) == 2
    assert failed(evidence(release=None, newest=None)) == 2


def test_a_refused_archive_fails_first() -> None:
    assert failed(evidence(data=b"PK\x03\x04")) == 1
    assert failed(evidence(data=b"")) == 1


def test_a_manifest_that_somebody_else_signed() -> None:
    assert failed(evidence(key=SigningKey.generate())) == 3
    assert failed(evidence(envelope=None)) == 3
    assert failed(evidence(envelope=b"{}")) == 3


def test_every_flipped_byte_of_the_manifest_fails() -> None:
    envelope = evidence().envelope
    assert envelope is not None
    for position in range(len(envelope)):
        changed = bytearray(envelope)
        changed[position] ^= 1
        assert failed(evidence(envelope=bytes(changed))) in (3, 4)


@pytest.mark.parametrize(
    "changes", [{"archive": "other.py"}, {"number": 2}, {"digest": Digest.of(b"y")}, {"size": len(DATA) + 1}]
)
def test_a_genuine_manifest_of_something_else(changes: dict[str, Any]) -> None:
    assert failed(evidence(stated(**changes))) == 4


def test_other_members() -> None:
    assert failed(evidence(stated(members=(Member(name="etl.py", size=1, digest=Digest.of(b"x")),)))) == 5


def test_a_revoked_release() -> None:
    release = {"number": 3, "digest": str(Digest.of(DATA)), "state": "revoked"}
    assert failed(evidence(release=release)) == 6

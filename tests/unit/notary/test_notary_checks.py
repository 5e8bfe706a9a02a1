"""Checks 1 to 6 with real keys and signatures: one field is changed at a time, and the check that answers it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from integrity.digests import Digest
from integrity.errors import (
    DigestMismatchError,
    ExpiredError,
    MalformedError,
    OutOfScopeError,
    SecurityError,
    SignatureError,
)
from notary.checks import VerifiedRequest, check_request, check_ticket
from vocabulary import envelopes, manifest, tickets
from vocabulary.keys import KeyRing, SigningKey
from vocabulary.manifest import DagEntry, Manifest, Member, TaskEntry
from vocabulary.tickets import Ticket

API, OTHER = SigningKey(b"a" * 32), SigningKey(b"o" * 32)
RING = KeyRing([API.public])
LAUNCHER = SigningKey(b"l" * 32).public.key_id
NOW = 1_000_010
BYTES = Digest.of(b"import airflow")
TASK = TaskEntry(
    task_id="load",
    digest=Digest.of(b"task"),
    operator="BashOperator",
    run_as_user="etl",
    queue="default",
    connections=("warehouse",),
    mapped=False,
)
MANIFEST = Manifest(
    archive="etl.py",
    number=3,
    digest=BYTES,
    size=14,
    members=(Member(name="etl.py", size=14, digest=BYTES),),
    owner="ann",
    group="data",
    submitted_by="ann",
    created_at=900_000,
    task_check="task",
    airflow_version="3.3.2",
    dags=(DagEntry(dag_id="etl", member="etl.py", tasks=(TASK,)),),
)


def ticket_for(stated: Manifest) -> Ticket:
    return Ticket(
        ticket_id="1" * 32,
        launch_id="2" * 32,
        audience=LAUNCHER,
        queue="default",
        archive="etl.py",
        release=3,
        digest=BYTES,
        manifest_digest=Digest.of(stated.to_bytes()),
        dag_id="etl",
        task_id="load",
        run_id="manual",
        map_index=-1,
        try_number=1,
        task_digest=TASK.digest,
        unix_user="etl",
        rule="3" * 32,
        owner="ann",
        principal="bob",
        issued_at=1_000_000,
        expires_at=1_000_060,
        timeout_seconds=60,
    )


TICKET = ticket_for(MANIFEST)


def check(
    ticket: Ticket = TICKET, stated: Manifest = MANIFEST, *, now: int = NOW, key: SigningKey = API
) -> VerifiedRequest:
    verified = check_ticket(tickets.sign(ticket, key), RING, audience=LAUNCHER, now=now)
    return check_request(verified, manifest.sign(stated, API), RING)


def test_what_agrees_passes() -> None:
    request = check()
    assert request.ticket.ticket == TICKET and request.manifest.manifest == MANIFEST
    assert request.ticket.digest == Digest.of(TICKET.to_bytes())
    assert request.manifest.digest == TICKET.manifest_digest


def test_a_release_that_is_checked_as_an_archive_has_no_task_digest() -> None:
    stated = replace(MANIFEST, task_check="archive")
    assert check(replace(ticket_for(stated), task_digest=None), stated)
    with pytest.raises(DigestMismatchError, match="task digest"):
        check(ticket_for(stated), stated)


@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_a_manifest_that_was_verified_is_known_under_these_keys_only(
    kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("notary.checks._KEPT_BYTES", kept)
    verified = check_ticket(tickets.sign(TICKET, API), RING, audience=LAUNCHER, now=NOW)
    envelope = manifest.sign(MANIFEST, API)
    for _ in range(2):
        assert check_request(verified, bytes(bytearray(envelope)), RING).manifest.manifest == MANIFEST
        with pytest.raises(SignatureError):
            check_request(verified, envelope, KeyRing([OTHER.public]))
        with pytest.raises(SecurityError):
            check_request(verified, envelope.replace(b"application/", b"application-", 1), RING)


TICKET_CHANGES: dict[str, tuple[dict[str, Any], type[SecurityError]]] = {
    "audience": ({"audience": "f" * 64}, OutOfScopeError),
    "empty audience": ({"audience": ""}, OutOfScopeError),
    "another archive": ({"archive": "elt.py"}, OutOfScopeError),
    "an older release": ({"release": 2}, OutOfScopeError),
    "a newer release": ({"release": 4}, OutOfScopeError),
    "release zero": ({"release": 0}, MalformedError),
    "other bytes": ({"digest": Digest.of(b"evil")}, DigestMismatchError),
    "another manifest": ({"manifest_digest": Digest.of(b"evil")}, DigestMismatchError),
    "another dag": ({"dag_id": "elt"}, OutOfScopeError),
    "another task": ({"task_id": "drop"}, OutOfScopeError),
    "a path for a task": ({"task_id": "../load"}, MalformedError),
    "another task digest": ({"task_digest": Digest.of(b"evil")}, DigestMismatchError),
    "no task digest": ({"task_digest": None}, DigestMismatchError),
    "another owner": ({"owner": "eve"}, OutOfScopeError),
    "a number for a user": ({"unix_user": "0"}, MalformedError),
    "a user with a path": ({"unix_user": "../etl"}, MalformedError),
    "too long a life": ({"expires_at": 1_000_000 + tickets.MAX_LIFETIME_SECONDS + 1}, MalformedError),
    "no life": ({"expires_at": 1_000_000}, MalformedError),
    "already over": ({"issued_at": 999_900, "expires_at": NOW}, ExpiredError),
    "not begun": ({"issued_at": NOW + 31, "expires_at": NOW + 90}, ExpiredError),
    "no time to run": ({"timeout_seconds": 0}, MalformedError),
}


@pytest.mark.parametrize("case", TICKET_CHANGES)
def test_a_ticket_that_the_api_signed_with_one_field_changed(case: str) -> None:
    change, error = TICKET_CHANGES[case]
    with pytest.raises(SecurityError) as raised:
        check(replace(TICKET, **change))
    assert type(raised.value) is error


@pytest.mark.parametrize(
    ("now", "fits"),
    [(999_969, False), (999_970, True), (1_000_059, True), (1_000_060, False), (2_000_000, False)],
)
def test_the_time_of_a_ticket_has_exact_ends(now: int, fits: bool) -> None:
    if fits:
        assert check(now=now)
    else:
        with pytest.raises(ExpiredError):
            check(now=now)


MANIFEST_CHANGES: dict[str, tuple[dict[str, Any], type[SecurityError]]] = {
    "archive": ({"archive": "elt.py"}, OutOfScopeError),
    "number": ({"number": 4}, OutOfScopeError),
    "owner": ({"owner": "eve"}, OutOfScopeError),
    "digest": ({"digest": Digest.of(b"evil")}, DigestMismatchError),
    "no dags": ({"dags": ()}, OutOfScopeError),
    "another dag": ({"dags": (DagEntry(dag_id="elt", member="etl.py", tasks=(TASK,)),)}, OutOfScopeError),
    "no tasks": ({"dags": (DagEntry(dag_id="etl", member="etl.py", tasks=()),)}, OutOfScopeError),
    "another task digest": (
        {"dags": (DagEntry(dag_id="etl", member="etl.py", tasks=(replace(TASK, digest=BYTES),)),)},
        DigestMismatchError,
    ),
    "archive check": ({"task_check": "archive"}, DigestMismatchError),
    "unknown check": ({"task_check": "none"}, MalformedError),
    "members out of order": (
        {"members": (Member(name="b", size=1, digest=BYTES), Member(name="a", size=1, digest=BYTES))},
        MalformedError,
    ),
}


@pytest.mark.parametrize("case", MANIFEST_CHANGES)
def test_a_manifest_that_the_ticket_means_with_one_field_changed(case: str) -> None:
    """Signed, and named by its digest in the ticket: only the field itself is wrong."""
    change, error = MANIFEST_CHANGES[case]
    stated = replace(MANIFEST, **change)
    with pytest.raises(SecurityError) as raised:
        check(ticket_for(stated), stated)
    assert type(raised.value) is error


@pytest.mark.parametrize("change", [{"created_at": 1}, {"group": "eve"}, {"submitted_by": "eve"}, {"size": 1}])
def test_any_other_manifest_than_the_tickets_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DigestMismatchError, match="the manifest is"):
        check(TICKET, replace(MANIFEST, **change))


def test_a_ticket_by_another_key_is_refused() -> None:
    with pytest.raises(SignatureError, match="trusted"):
        check(key=OTHER)


def test_a_manifest_by_another_key_is_refused() -> None:
    verified = check_ticket(tickets.sign(TICKET, API), RING, audience=LAUNCHER, now=NOW)
    with pytest.raises(SignatureError, match="trusted"):
        check_request(verified, manifest.sign(MANIFEST, OTHER), RING)


def test_a_launchers_own_key_signs_no_ticket() -> None:
    with pytest.raises(SignatureError):
        check(key=SigningKey(b"l" * 32))


SWAPS: dict[str, Callable[[], object]] = {
    "a manifest for a ticket": lambda: check_ticket(manifest.sign(MANIFEST, API), RING, audience=LAUNCHER, now=NOW),
    "a ticket for a manifest": lambda: check_request(
        check_ticket(tickets.sign(TICKET, API), RING, audience=LAUNCHER, now=NOW), tickets.sign(TICKET, API), RING
    ),
    "a ticket's bytes signed as a manifest": lambda: check_ticket(
        envelopes.sign(TICKET.to_bytes(), payload_type=manifest.PAYLOAD_TYPE, key=API), RING, audience=LAUNCHER, now=NOW
    ),
    "a manifest's bytes signed as a ticket": lambda: check_ticket(
        envelopes.sign(MANIFEST.to_bytes(), payload_type=tickets.PAYLOAD_TYPE, key=API),
        RING,
        audience=LAUNCHER,
        now=NOW,
    ),
    "nothing": lambda: check_ticket(b"", RING, audience=LAUNCHER, now=NOW),
}


@pytest.mark.parametrize("case", SWAPS)
def test_one_document_is_never_read_as_another(case: str) -> None:
    with pytest.raises(MalformedError):
        SWAPS[case]()


@pytest.mark.parametrize("which", ["ticket", "manifest"])
def test_every_flipped_bit_of_an_envelope_is_refused(which: str) -> None:
    good_ticket, good_manifest = tickets.sign(TICKET, API), manifest.sign(MANIFEST, API)
    verified = check_ticket(good_ticket, RING, audience=LAUNCHER, now=NOW)
    good = good_ticket if which == "ticket" else good_manifest
    for place in range(len(good)):
        changed = bytearray(good)
        changed[place] ^= 1 << place % 8
        with pytest.raises(SecurityError):
            if which == "ticket":
                check_ticket(bytes(changed), RING, audience=LAUNCHER, now=NOW)
            else:
                check_request(verified, bytes(changed), RING)

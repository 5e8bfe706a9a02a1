"""The five signed documents: what was signed comes back, and no other byte string does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import vocabulary_documents as examples
from hypothesis import given
from hypothesis import strategies as st

from integrity import canonical
from integrity.digests import Digest
from integrity.errors import (
    ExpiredError,
    MalformedError,
    NotFoundError,
    OutOfScopeError,
    SecurityError,
    SignatureError,
)
from launcher import isolation
from vocabulary import claims, envelopes, grants, manifest, tickets
from vocabulary.keys import KeyRing, SealingKey

TICKET, CLAIM = Digest.of(b"ticket"), Digest.of(b"claim")
SEALED = grants.seal(
    examples.secrets(),
    launch_id=examples.ID,
    ticket_digest=TICKET,
    claim_digest=CLAIM,
    to=examples.SEALING.public,
    key=examples.API,
)


def verify_ticket(envelope: bytes, now: int = examples.NOW) -> tickets.VerifiedTicket:
    return tickets.verify(envelope, examples.RING, audience=examples.LAUNCHER.public.key_id, now=now)


def open_grant(envelope: bytes, **changes: Any) -> bytes:
    wanted = {"ticket_digest": TICKET, "claim_digest": CLAIM, "key": examples.SEALING, **changes}
    return grants.open_sealed(envelope, examples.RING, **wanted)


ENVELOPES: dict[str, tuple[bytes, Callable[[bytes], Any]]] = {
    "manifest": (manifest.sign(examples.manifest(), examples.API), lambda data: manifest.verify(data, examples.RING)),
    "ticket": (tickets.sign(examples.ticket(), examples.API), verify_ticket),
    "claim": (
        claims.sign_claim(examples.claim(), examples.LAUNCHER),
        lambda data: claims.verify_claim(data, examples.LAUNCHER.public),
    ),
    "result": (
        claims.sign_result(examples.result(), examples.LAUNCHER),
        lambda data: claims.verify_result(data, examples.LAUNCHER.public),
    ),
    "grant": (SEALED, open_grant),
}
DOCUMENTS: dict[str, Any] = {
    "manifest": examples.manifest(),
    "ticket": examples.ticket(),
    "claim": examples.claim(),
    "result": examples.result(),
    "secrets": examples.secrets(),
}


@pytest.mark.parametrize("kind", ENVELOPES)
def test_every_flipped_bit_is_refused(kind: str) -> None:
    envelope, verify = ENVELOPES[kind]
    verify(envelope)
    flips = examples.Flips(envelope)
    for flipped in flips:
        with pytest.raises(SecurityError):
            verify(flipped)
    assert flips.seen == 8 * len(envelope)


@pytest.mark.parametrize("kind", ENVELOPES)
def test_every_cut_and_every_insertion_is_refused(kind: str) -> None:
    envelope, verify = ENVELOPES[kind]
    for at in range(len(envelope) + 1):
        with pytest.raises(SecurityError):
            verify(envelope[:at] + b" " + envelope[at:])
        if at < len(envelope):
            with pytest.raises(SecurityError):
                verify(envelope[:at])


@pytest.mark.parametrize("one", ENVELOPES)
@pytest.mark.parametrize("other", ENVELOPES)
def test_no_document_is_read_as_another(one: str, other: str) -> None:
    if one != other:
        with pytest.raises(SecurityError):
            ENVELOPES[one][1](ENVELOPES[other][0])


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_what_is_written_is_read(kind: str) -> None:
    document = DOCUMENTS[kind]
    payload = document.to_bytes()
    assert type(document).from_bytes(payload) == document
    assert type(document).from_bytes(payload).to_bytes() == payload


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_each_field_is_needed_typed_and_alone(kind: str) -> None:
    value = canonical.load(DOCUMENTS[kind].to_bytes(), max_bytes=1 << 20)
    read = type(DOCUMENTS[kind]).from_bytes
    for key in value:
        for wrong in ({k: v for k, v in value.items() if k != key}, value | {key: {"v": [1]}}, value | {key: -(2**40)}):
            if kind == "claim" and isinstance(wrong.get(key), dict) and key == "attestation":
                continue
            with pytest.raises(MalformedError):
                read(canonical.dump(wrong))
    with pytest.raises(MalformedError, match="unknown fields: zz"):
        read(canonical.dump(value | {"zz": 1}))
    with pytest.raises(MalformedError, match="version 2"):
        read(canonical.dump(value | {"v": 2}))


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"]))
    )
)
def test_any_secret_text_survives_the_pipe(texts: dict[str, str]) -> None:
    whole = examples.secrets(connections=texts, variables=texts, run=texts)
    assert grants.Secrets.from_bytes(whole.to_bytes()) == whole


def test_verified_values_say_what_was_signed() -> None:
    for kind, document in (
        ("manifest", examples.manifest()),
        ("ticket", examples.ticket()),
        ("claim", examples.claim()),
    ):
        envelope, verify = ENVELOPES[kind]
        verified = verify(envelope)
        assert getattr(verified, kind) == document
        assert verified.digest == Digest.of(document.to_bytes())
    verified = ENVELOPES["result"][1](ENVELOPES["result"][0])
    assert verified.result == examples.result() and verified.digest == Digest.of(examples.result().to_bytes())
    assert manifest.verify(ENVELOPES["manifest"][0], examples.RING).key_id == examples.API.public.key_id


# manifest


def test_manifest_finds_its_tasks() -> None:
    whole = examples.manifest()
    assert whole.task("etl", "load").run_as_user is None
    with pytest.raises(NotFoundError, match="has no task 'clean'"):
        whole.task("etl", "clean")
    with pytest.raises(NotFoundError, match="does not define dag 'other'"):
        whole.task("other", "load")


def test_manifest_lists_are_sorted_and_name_each_once() -> None:
    dag, member = examples.manifest().dags[0], examples.manifest().members[0]
    for wrong in (
        {"dags": (dag, dag)},
        {"members": (member, member)},
        {"members": (member, dataclasses.replace(member, name="a.py"))},
        {"dags": (dataclasses.replace(dag, tasks=dag.tasks[::-1]),)},
    ):
        with pytest.raises(MalformedError, match="sorted"):
            manifest.Manifest.from_bytes(examples.manifest(**wrong).to_bytes())


def test_manifest_states_an_isolation_floor_only_where_there_is_one() -> None:
    # The digest that this example had before there were floors: manifests that were signed then are read as they are.
    assert Digest.of(examples.manifest().to_bytes()).hex == (
        "eab2e892f919b55110377e543924f74b08cf9a06bcfe6943edcb3cd9e8dc84a9"
        "3772cf37b9232a83447fe267d8002e63b4f6efb0f9fe8a0c151da9a176c996b9"
    )
    for floor in claims.PROFILES:
        whole = examples.manifest(isolation=floor)
        assert manifest.Manifest.from_bytes(whole.to_bytes()) == whole
    value = canonical.load(examples.manifest().to_bytes(), max_bytes=1 << 20)
    for wrong in (None, "", "STRICT", "stricter", 2, ["strict"]):
        with pytest.raises(MalformedError, match="isolation"):
            manifest.Manifest.from_bytes(canonical.dump(value | {"isolation": wrong}))


def test_manifest_states_that_the_caller_is_checked_only_where_he_is() -> None:
    whole = examples.manifest(require_caller=True)
    assert manifest.Manifest.from_bytes(whole.to_bytes()) == whole
    value = canonical.load(examples.manifest().to_bytes(), max_bytes=1 << 20)
    for wrong in (None, "", "true", 1, False):
        with pytest.raises(MalformedError, match="require_caller"):
            manifest.Manifest.from_bytes(canonical.dump(value | {"require_caller": wrong}))


def test_a_task_names_the_dags_whose_xcoms_it_reads_only_where_there_are_some() -> None:
    whole = examples.manifest(
        dags=(manifest.DagEntry(dag_id="etl", member="etl.py", tasks=(examples.task(xcom_dags=("a", "b")),)),)
    )
    assert manifest.Manifest.from_bytes(whole.to_bytes()) == whole
    value = examples.task().to_json()
    assert "xcom_dags" not in value
    for wrong in ([], ["b", "a"], ["a", "a"], ["a b"], "a", None, [f"d{number:03}" for number in range(101)]):
        with pytest.raises(MalformedError):
            manifest.TaskEntry.from_json(value | {"xcom_dags": wrong})


def test_an_xcom_of_another_dag_says_so() -> None:
    whole = examples.secrets(xcoms=({**examples.secrets().xcoms[0], "dag_id": "upstream"},))
    assert grants.Secrets.from_bytes(whole.to_bytes()) == whole
    with pytest.raises(MalformedError, match="dag_id"):
        grants.Secrets.from_bytes(examples.secrets(xcoms=({**whole.xcoms[0], "dag_id": ""},)).to_bytes())


# ticket


def test_ticket_without_a_task_digest() -> None:
    whole = examples.ticket(task_digest=None)
    assert tickets.Ticket.from_bytes(whole.to_bytes()) == whole


@pytest.mark.parametrize("seconds", [0, -1, tickets.MAX_LIFETIME_SECONDS + 1])
def test_ticket_lifetime(seconds: int) -> None:
    with pytest.raises(MalformedError, match="lifetime"):
        verify_ticket(tickets.sign(examples.ticket(expires_at=examples.NOW + seconds), examples.API))


def test_ticket_time() -> None:
    envelope = ENVELOPES["ticket"][0]
    for now in (-30, 0, 59):
        verify_ticket(envelope, examples.NOW + now)
    for now, words in ((-31, "check the clocks"), (60, "launch again")):
        with pytest.raises(ExpiredError, match=words):
            verify_ticket(envelope, examples.NOW + now)


def test_ticket_of_another_launcher_or_key() -> None:
    with pytest.raises(OutOfScopeError, match="is for launcher"):
        tickets.verify(ENVELOPES["ticket"][0], examples.RING, audience=examples.OTHER.public.key_id, now=examples.NOW)
    with pytest.raises(SignatureError, match="trusted"):
        verify_ticket(tickets.sign(examples.ticket(), examples.OTHER))


# claim and result


def test_claim_needs_an_attestation_object() -> None:
    with pytest.raises(MalformedError, match="attestation"):
        claims.Claim.from_bytes(examples.claim(attestation=[]).to_bytes())


def test_profiles_stand_in_the_launchers_order_and_meet_what_is_no_higher() -> None:
    assert tuple(isolation.PROFILES) == claims.PROFILES
    met = [(one, floor) for one in claims.PROFILES for floor in claims.PROFILES if claims.meets(one, floor)]
    assert met == [
        ("minimal", "minimal"),
        ("standard", "minimal"),
        ("standard", "standard"),
        ("strict", "minimal"),
        ("strict", "standard"),
        ("strict", "strict"),
    ]


@pytest.mark.parametrize("profile", [None, "", "Strict", "strict ", "paranoid", 2, True, ["strict"], {"strict": 1}])
def test_what_is_no_profile_meets_no_floor(profile: object) -> None:
    assert not any(claims.meets(profile, floor) for floor in claims.PROFILES)


def test_claim_and_result_of_another_launcher() -> None:
    with pytest.raises(SignatureError):
        claims.verify_claim(ENVELOPES["claim"][0], examples.OTHER.public)
    with pytest.raises(SignatureError):
        claims.verify_result(ENVELOPES["result"][0], examples.OTHER.public)


# grant


def test_grant_opens_to_the_canonical_secrets() -> None:
    assert open_grant(SEALED) == examples.secrets().to_bytes()


def test_grant_for_another_ticket_claim_or_launcher() -> None:
    with pytest.raises(OutOfScopeError):
        open_grant(SEALED, ticket_digest=CLAIM)
    with pytest.raises(OutOfScopeError):
        open_grant(SEALED, claim_digest=TICKET)
    with pytest.raises(SignatureError, match="not sealed to this launcher"):
        open_grant(SEALED, key=SealingKey(b"\5" * 32))


def test_grant_moved_to_another_ticket_does_not_open() -> None:
    payload, _ = envelopes.verify(SEALED, payload_type=grants.PAYLOAD_TYPE, ring=examples.RING)
    moved = dataclasses.replace(grants.Grant.from_bytes(payload), ticket_digest=CLAIM)
    envelope = envelopes.sign(moved.to_bytes(), payload_type=grants.PAYLOAD_TYPE, key=examples.API)
    with pytest.raises(SignatureError, match="for this ticket"):
        open_grant(envelope, ticket_digest=CLAIM)


def test_grant_is_read_strictly() -> None:
    payload, _ = envelopes.verify(SEALED, payload_type=grants.PAYLOAD_TYPE, ring=examples.RING)
    value = canonical.load(payload, max_bytes=len(payload))
    for wrong in (value | {"zz": 1}, value | {"sealed": "!"}, value | {"launch_id": "1"}):
        with pytest.raises(MalformedError):
            grants.Grant.from_bytes(canonical.dump(wrong))


def test_grant_has_a_limit() -> None:
    with pytest.raises(OutOfScopeError, match="grant less"):
        grants.seal(
            examples.secrets(variables={"v": "x" * grants.MAX_SECRET_BYTES}),
            launch_id=examples.ID,
            ticket_digest=TICKET,
            claim_digest=CLAIM,
            to=examples.SEALING.public,
            key=examples.API,
        )


def test_secrets_are_not_shown() -> None:
    whole = examples.secrets()
    assert "postgres" not in repr(whole) and "1.5" not in repr(whole) and "eu" not in repr(whole).replace("queue", "")
    assert repr(examples.SEALING) == "SealingKey()" and repr(examples.API) == "SigningKey()"


# envelope


def test_envelope_has_exactly_one_trusted_signature() -> None:
    envelope = canonical.load(ENVELOPES["ticket"][0], max_bytes=1 << 20)
    for signatures, words in (([], "no signature"), (envelope["signatures"] * 2, "2 items")):
        with pytest.raises(MalformedError, match=words):
            verify_ticket(canonical.dump(envelope | {"signatures": signatures}))
    moved = [envelope["signatures"][0] | {"keyid": examples.OTHER.public.key_id}]
    both = KeyRing([examples.API.public, examples.OTHER.public])
    with pytest.raises(SignatureError):
        tickets.verify(
            canonical.dump(envelope | {"signatures": moved}),
            both,
            audience=examples.LAUNCHER.public.key_id,
            now=examples.NOW,
        )


def test_envelope_of_another_purpose_is_named() -> None:
    with pytest.raises(MalformedError, match=r"holds 'application/vnd\.dagseal\.ticket"):
        manifest.verify(ENVELOPES["ticket"][0], examples.RING)


def test_a_purpose_cannot_be_renamed() -> None:
    value = canonical.load(ENVELOPES["ticket"][0], max_bytes=1 << 20) | {"payloadType": manifest.PAYLOAD_TYPE}
    with pytest.raises(SignatureError):
        manifest.verify(canonical.dump(value), examples.RING)


def test_payload_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelopes, "MAX_PAYLOAD_BYTES", 100)
    with pytest.raises(MalformedError, match="over the limit of 100"):
        envelopes.sign(bytes(101), payload_type="t", key=examples.API)


@given(st.binary(max_size=50), st.binary(max_size=50), st.text(max_size=20), st.text(max_size=20))
def test_no_two_inputs_are_signed_alike(one: bytes, two: bytes, kind: str, other: str) -> None:
    assert (envelopes.pae(kind, one) == envelopes.pae(other, two)) == ((kind, one) == (other, two))


@given(st.binary(max_size=200))
def test_any_payload_comes_back(payload: bytes) -> None:
    envelope = envelopes.sign(payload, payload_type="t", key=examples.API)
    assert envelopes.verify(envelope, payload_type="t", ring=examples.RING) == (payload, examples.API.public.key_id)

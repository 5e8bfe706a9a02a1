"""Author signatures over HTTP: kept with the release and said in its leaf; what is none is refused, and nothing of it is kept.

Seen to fail when weakened: `accepting.check_author` and `_author` without `verify` or `key_of`; `unchanged` that does not
compare it; `logged.released` without it; `fsck_log` that does not compare it.
"""

from __future__ import annotations

import pytest
from api_rig import SOURCE, Api
from sqlalchemy import text

from integrity import canonical
from integrity.digests import Digest
from integrity.fields import from_base64, to_base64
from submit_api.registry import leaves as rows
from tests.sshsig import sshsig
from vocabulary import authorship, leaves
from vocabulary.keys import SigningKey
from vocabulary.logview import LogView

ANN, BOB = (SigningKey(bytes([number]) * 32) for number in (1, 2))
DIGEST = Digest.of(SOURCE)
OURS = authorship.sign(ANN, archive="etl.py", digest=DIGEST)
SSH = sshsig(BOB, archive="etl.py", digest=DIGEST)


async def view(api: Api) -> LogView:
    async with api.service.database.read() as tx:
        return LogView().extended([leaves.from_bytes(entry) for entry in await rows.entries(tx, 0, 2**53)])


async def test_a_signature_is_kept_with_its_release_and_another_makes_another(api: Api) -> None:
    made = []
    for signature in (OURS, OURS, SSH, SSH, None, None):
        headers = {"Author_Signature": to_base64(signature)} if signature else {}
        answer = await api.push("etl.py", SOURCE, **headers)
        made.append((answer.status, answer.json["number"], answer.json["author_key_id"]))
    ann, bob = ANN.public.key_id, BOB.public.key_id
    assert made == [(201, 1, ann), (200, 1, ann), (201, 2, bob), (200, 2, bob), (201, 3, None), (200, 3, None)]
    listed = (await api.call("GET", "/v1/archives/etl.py/releases", token=api.admin)).json["releases"]
    assert [release["author_key_id"] for release in listed] == [ann, bob, None]
    releases = (await view(api)).archives["etl.py"].releases
    assert [releases[number].author for number in (1, 2, 3)] == [OURS, SSH, None]
    submitted = [event["detail"] for event in await api.events() if event["action"] == "archive.submit"]
    assert [detail.rpartition(", ")[2] for detail in submitted[:2]] == [
        f"signed by author key {key}" for key in (ann, bob)
    ]
    assert "author" not in submitted[2]
    assert await api.fsck() == []


async def test_the_proof_of_a_release_carries_it(api: Api) -> None:
    assert (await api.push("etl.py", SOURCE, Author_Signature=to_base64(OURS))).status == 201
    answer = await api.call("GET", "/v1/archives/etl.py/releases/1/proof", token=api.admin)
    assert f'"author":"{to_base64(OURS)}"'.encode() in from_base64(answer.json["entry"], "entry", max_bytes=65535)


OTHER_NAME = authorship.sign(ANN, archive="elt.py", digest=DIGEST)
OTHER_BYTES = authorship.sign(ANN, archive="etl.py", digest=Digest.of(b"other"))
BAD = {
    "empty": ("", "this is no author's signature: "),
    "not base64": ("$$$$", "Author-Signature is not base64"),
    "no signature": (to_base64(b"{}"), "author signature lacks 'v'"),
    "too large": (to_base64(b"a" * (authorship.MAX_BYTES + 1)), "the limit is 3072"),
    "another archive": (to_base64(OTHER_NAME), "signed something else than etl.py with sha512:"),
    "other bytes": (to_base64(OTHER_BYTES), "signed something else than etl.py with sha512:"),
    "SSH, another archive": (to_base64(sshsig(ANN, archive="a.py", digest=DIGEST)), "the signature is not one of key"),
    "SSH, other bytes": (
        to_base64(sshsig(ANN, archive="etl.py", digest=Digest.of(b"other"))), "the signature is not one of key",
    ),
    "SSH, for files": (
        to_base64(sshsig(ANN, archive="etl.py", digest=DIGEST, namespace=b"file")), "its namespace is b'file'",
    ),
    "a key that did not sign": (
        to_base64(canonical.dump(canonical.load(OURS, max_bytes=3072) | {"key": to_base64(BOB.public.raw)})),
        "is not one of the 1 trusted here",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
async def test_what_is_no_signature_of_this_archive_and_these_bytes_is_refused(api: Api, case: str) -> None:
    header, said = BAD[case]
    answer = await api.push("etl.py", SOURCE, Author_Signature=header)
    assert (answer.status, answer.slug) == (422, "author-signature")
    assert said in answer.json["detail"]
    assert await api.remains() == ([], [])
    event = (await api.events())[-1]
    assert (event["action"], event["verdict"], event["object"]) == ("archive.submit", "refused", "archive:etl.py")


async def test_a_bad_one_is_refused_also_where_the_bytes_are_known(api: Api) -> None:
    assert (await api.push("etl.py", SOURCE)).status == 201
    answer = await api.push("etl.py", SOURCE, Author_Signature=to_base64(OTHER_BYTES))
    assert (answer.status, answer.slug) == (422, "author-signature")


@pytest.mark.parametrize("value", [None, SSH])
async def test_one_that_was_changed_on_record_is_found(api: Api, value: bytes | None) -> None:
    assert (await api.push("etl.py", SOURCE, Author_Signature=to_base64(OURS))).status == 201
    async with api.service.database.write() as tx:
        await tx.session.execute(text("UPDATE releases SET author = :value"), {"value": value})
    assert [(finding.rule, finding.subject) for finding in await api.fsck()] == [("log-release-disagrees", "etl.py@1")]

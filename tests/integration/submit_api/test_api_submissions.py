"""Submission over HTTP: what is accepted, what is refused and how, and that a refused upload leaves nothing."""

from __future__ import annotations

import asyncio
import hashlib
import io
import zipfile

import pytest
from api_rig import SOURCE, Api, dag_entry, refused, task_entry

from integrity.digests import Digest
from vocabulary import manifest


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


async def test_a_submission_is_recorded_signed_and_readable(api: Api) -> None:
    alice = await api.token("alice")
    answer = await api.push("etl.py", SOURCE, token=alice)
    assert answer.status == 201
    release = answer.json
    assert release["digest"] == "sha512:" + hashlib.sha512(SOURCE).hexdigest()
    assert (release["owner"], release["group"], release["number"], release["state"]) == ("alice", "alice", 1, "active")
    assert [dag["dag_id"] for dag in release["dags"]] == ["etl"]
    envelope = await api.call("GET", "/v1/archives/etl.py/releases/1/manifest", token=alice)
    verified = manifest.verify(envelope.body, api.ring)
    assert str(verified.digest) == release["manifest_digest"]
    assert [member.name for member in verified.manifest.members] == ["etl.py"]
    blob = await api.call("GET", f"/v1/blobs/sha512/{release['digest'][7:]}", token=alice)
    assert blob.body == SOURCE and blob.headers["ETag"] == f'"{release["digest"]}"'
    archive = (await api.call("GET", "/v1/archives/etl.py", token=alice)).json
    assert archive["active"] == archive["latest"] == 1 and len(archive["releases"]) == 1
    assert next(e for e in await api.events() if e["action"] == "archive.submit")["digest"] == release["digest"]
    assert await api.fsck() == []


async def test_a_zip_is_accepted_with_its_members(api: Api) -> None:
    answer = await api.push("etl.zip", zipped({"dag.py": SOURCE, "lib/__init__.py": b"", "lib/extra.py": b"x = 1\n"}))
    assert answer.status == 201, answer.body
    envelope = await api.call("GET", "/v1/archives/etl.zip/releases/1/manifest", token=api.admin)
    members = manifest.verify(envelope.body, api.ring).manifest.members
    assert [member.name for member in members] == ["dag.py", "lib/__init__.py", "lib/extra.py"]


async def test_equal_bytes_are_the_same_release_and_changed_ones_the_next(api: Api) -> None:
    assert (await api.push("etl.py", SOURCE)).status == 201
    again = await api.push("etl.py", SOURCE)
    assert (again.status, again.json["number"]) == (200, 1)
    changed = await api.push("etl.py", SOURCE + b"#\n")
    assert (changed.status, changed.json["number"]) == (201, 2)
    other_check = await api.push("etl.py", SOURCE + b"#\n", query="?task_check=archive")
    assert (other_check.status, other_check.json["number"]) == (201, 3)
    states = [
        r["state"] for r in (await api.call("GET", "/v1/archives/etl.py/releases", token=api.admin)).json["releases"]
    ]
    assert states == ["inactive", "inactive", "active"]
    assert await api.fsck() == []


async def test_a_damaged_blob_is_put_back_by_the_same_upload(api: Api) -> None:
    await api.push("etl.py", SOURCE)
    path = f"{api.settings.blobs_folder}/{api.files()[0]}"
    with open(path, "r+b") as file:
        file.write(b"X")
    assert [finding.rule for finding in await api.fsck()] == ["blob-damaged"]
    assert (await api.push("etl.py", SOURCE)).status == 200
    assert await api.fsck() == []
    assert "blob.repair" in [event["action"] for event in await api.events()]


BAD_ARCHIVES = {
    "not utf-8": ("etl.py", b"x = '\xff'\n", 422, "source-encoding"),
    "empty": ("etl.py", b"", 422, "no-dag-found"),
    "not a zip": ("etl.zip", b"PK", 415, "unsupported-media-type"),
    "bad name": ("etl.txt", SOURCE, 400, "malformed"),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
async def test_bad_archives_are_refused_and_leave_nothing(api: Api, case: str) -> None:
    name, body, status, slug = BAD_ARCHIVES[case]
    answer = await api.push(name, body)
    assert (answer.status, answer.slug) == (status, slug)
    assert await api.remains() == ([], [])
    event = (await api.events())[-1]
    assert (event["action"], event["verdict"], event["object"]) == ("archive.submit", "refused", f"archive:{name}")


async def test_a_zip_entry_that_leaves_the_archive_is_named(api: Api) -> None:
    answer = await api.push("etl.zip", zipped({"dag.py": SOURCE, "../evil.py": b""}))
    assert (answer.status, answer.slug) == (422, "zip-path-traversal")
    assert "evil.py" in answer.json["errors"][0]["entry"]
    assert await api.remains() == ([], [])


@pytest.mark.parametrize(
    ("error", "rule", "detail"),
    [
        ("invalid-archive", "import-error", "NameError: x"),
        ("invalid-archive", "reads-variable", "Variable.get('k') at import"),
        ("invalid-archive", "unstable", "task t: field bash_command"),
        ("unsafe-archive", "zip-overlap", "two entries overlap"),
    ],
)
async def test_what_the_launcher_refuses_is_told_and_leaves_nothing(
    api: Api, error: str, rule: str, detail: str
) -> None:
    api.launcher.answers["etl.py"] = refused(error, rule, detail, "etl.py")
    answer = await api.push("etl.py", SOURCE)
    assert (answer.status, answer.slug) == (422, rule)
    assert answer.json["errors"] == [{"rule": rule, "entry": "etl.py", "detail": detail}]
    assert await api.remains() == ([], [])


async def test_an_archive_without_a_dag_is_refused(api: Api) -> None:
    api.launcher.dags["etl.py"] = []
    answer = await api.push("etl.py", SOURCE)
    assert (answer.status, answer.json["errors"][0]["rule"]) == (422, "no-dag-found")
    assert await api.remains() == ([], [])


async def test_a_launcher_that_is_away_or_talks_nonsense_is_a_503(api: Api) -> None:
    api.launcher.answers["etl.py"] = b"\x00\x00\x00\x02{}"
    answer = await api.push("etl.py", SOURCE)
    assert (answer.status, answer.slug, answer.headers["Retry-After"]) == (503, "fetch", "5")
    await api.launcher.stop()
    answer = await api.push("etl.py", SOURCE)
    assert (answer.status, answer.slug) == (503, "fetch")
    assert await api.remains() == ([], [])
    await api.launcher.start()
    assert (await api.push("other.py", SOURCE)).status == 201


async def test_no_token_a_wrong_one_and_a_broken_one_are_401(api: Api) -> None:
    wrong = api.admin[:17] + ("A" * 43) + api.admin[-7:]
    for token in (None, "nonsense", wrong, api.admin[:-1]):
        answer = await api.call("PUT", "/v1/archives/etl.py", token=token, body=SOURCE)
        assert (answer.status, answer.slug) == (401, "unauthenticated")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert await api.remains() == ([], [])
    assert [e["verdict"] for e in await api.events()].count("refused") == 4


async def test_a_revoked_and_an_expired_token_are_401(api: Api) -> None:
    made = await api.call(
        "POST", "/v1/tokens", token=api.admin, json={"principal": "bob", "expires_at": api.clock.at + 10_000_000}
    )
    token, token_id = made.json["token"], made.json["token_id"]
    assert (await api.call("GET", "/v1/archives", token=token)).status == 200
    api.clock.forward(10)
    assert (await api.call("GET", "/v1/archives", token=token)).status == 401
    api.clock.forward(-10)
    assert (await api.call("DELETE", f"/v1/tokens/{token_id}", token=api.admin)).status == 204
    assert (await api.call("GET", "/v1/archives", token=token)).status == 401


async def test_only_owner_group_and_admin_push_to_an_archive(api: Api) -> None:
    alice, bob, carol = [await api.token(name) for name in ("alice", "bob", "carol")]
    await api.call("PUT", "/v1/groups/team", token=api.admin, json={"members": ["alice", "bob"]})
    assert (await api.push("etl.py", SOURCE, token=alice, query="?group=team")).status == 201
    before = await api.remains()
    answer = await api.push("etl.py", SOURCE + b"#\n", token=carol)
    assert (answer.status, answer.slug) == (403, "not-owner")
    assert await api.remains() == before
    release = await api.push("etl.py", SOURCE + b"#\n", token=bob)
    assert release.status == 201
    assert (release.json["owner"], release.json["submitted_by"], release.json["group"]) == ("alice", "bob", "team")
    moved = await api.push("etl.py", SOURCE + b"##\n", token=bob, query="?group=bob")
    assert (moved.status, moved.slug) == (403, "not-owner")
    stranger = await api.push("new.py", SOURCE, token=carol, query="?group=team")
    assert (stranger.status, stranger.slug) == (403, "not-owner")
    for path in ("/v1/archives/etl.py", "/v1/archives/etl.py/releases/1/manifest"):
        assert (await api.call("GET", path, token=carol)).slug == "not-owner"
    assert (await api.call("GET", f"/v1/blobs/sha512/{release.json['digest'][7:]}", token=carol)).status == 404
    assert (await api.call("GET", "/v1/archives", token=carol)).json == {"archives": []}
    assert (await api.call("GET", "/v1/grants", token=alice)).slug == "out-of-scope"


async def test_a_worker_cannot_push(api: Api) -> None:
    worker = await api.worker()
    answer = await api.push("etl.py", SOURCE, token=worker.token)
    assert (answer.status, answer.slug) == (403, "out-of-scope")
    assert await api.remains() == ([], [])


async def test_a_dag_id_belongs_to_one_archive(api: Api) -> None:
    assert (await api.push("etl.py", SOURCE)).status == 201
    before = await api.remains()
    api.launcher.dags["other.py"] = [dag_entry("etl", member="other.py")]
    answer = await api.push("other.py", SOURCE + b"#\n")
    assert (answer.status, answer.slug) == (409, "conflict")
    assert "etl.py" in answer.json["detail"]
    assert await api.remains() == before


async def test_a_digest_header_that_disagrees_is_refused_with_both(api: Api) -> None:
    wrong, right = Digest.of(b"other"), Digest.of(SOURCE)
    answer = await api.push("etl.py", SOURCE, Repr_Digest=wrong.repr_digest)
    assert (answer.status, answer.slug) == (422, "digest-mismatch")
    assert str(wrong) in answer.json["detail"] and str(right) in answer.json["detail"]
    assert (await api.push("etl.py", SOURCE, Repr_Digest="sha-512=:AAAA:")).slug == "malformed"
    assert await api.remains() == ([], [])
    assert (await api.push("etl.py", SOURCE, Repr_Digest=right.repr_digest)).status == 201


async def test_concurrent_pushes_of_one_name_get_different_numbers(api: Api) -> None:
    bodies = [SOURCE + f"# {n}\n".encode() for n in range(8)]
    answers = await asyncio.gather(*(api.push("etl.py", body) for body in bodies))
    assert sorted(answer.json["number"] for answer in answers) == list(range(1, 9))
    same = await asyncio.gather(*(api.push("same.py", SOURCE) for _ in range(6)))
    assert sorted(answer.status for answer in same) == [200] * 5 + [201]
    assert await api.fsck() == []


async def test_activate_and_revoke(api: Api) -> None:
    await api.push("etl.py", SOURCE)
    await api.push("etl.py", SOURCE + b"#\n")
    path = "/v1/archives/etl.py/releases"
    assert (await api.call("POST", f"{path}/1/activate", token=api.admin)).json["state"] == "active"
    assert (await api.call("POST", f"{path}/1/revoke", token=api.admin)).json["state"] == "revoked"
    assert (await api.call("GET", "/v1/archives/etl.py", token=api.admin)).json["active"] is None
    assert (await api.call("POST", f"{path}/1/activate", token=api.admin)).slug == "conflict"
    revoked = await api.push("etl.py", SOURCE)
    assert (revoked.status, revoked.slug) == (409, "conflict")
    assert (await api.call("POST", f"{path}/9/activate", token=api.admin)).slug == "not-found"
    assert (await api.call("GET", f"{path}/9", token=api.admin)).slug == "not-found"
    assert await api.fsck() == []


async def test_tasks_and_manifest_say_what_the_launcher_described(api: Api) -> None:
    tasks = (task_entry("a", connections=("db",)), task_entry("b", run_as_user=None, queue="big"))
    api.launcher.dags["etl.py"] = [dag_entry("d1", *tasks), dag_entry("d2")]
    dags = (await api.push("etl.py", SOURCE)).json["dags"]
    assert [[task["task_id"] for task in dag["tasks"]] for dag in dags] == [["a", "b"], ["t"]]
    assert dags[0]["tasks"][0]["connections"] == ["db"]


async def test_blobs_serve_ranges_and_conditions(api: Api) -> None:
    digest = (await api.push("etl.py", SOURCE)).json["digest"]
    path = f"/v1/blobs/sha512/{digest[7:]}"

    async def get(**headers: str) -> tuple[int, bytes, str | None]:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await api.call("GET", path, token=api.admin, headers=sent)
        return answer.status, answer.body, answer.headers.get("Content-Range")

    size = len(SOURCE)
    assert await get(Range="bytes=0-3") == (206, SOURCE[:4], f"bytes 0-3/{size}")
    assert await get(Range="bytes=5-") == (206, SOURCE[5:], f"bytes 5-{size - 1}/{size}")
    assert await get(Range="bytes=-4") == (206, SOURCE[-4:], f"bytes {size - 4}-{size - 1}/{size}")
    assert (await get(Range=f"bytes={size}-"))[0] == 416
    assert (await get(If_None_Match=f'"{digest}"'))[0] == 304
    assert (await api.call("GET", f"/v1/blobs/sha512/{'0' * 128}", token=api.admin)).status == 404


async def test_if_match_keeps_a_push_from_overwriting_what_its_author_never_saw(api: Api) -> None:
    early = await api.push("etl.py", SOURCE, If_Match="*")
    assert (early.status, early.slug) == (412, "precondition")
    assert await api.fsck() == []
    first = await api.push("etl.py", SOURCE)
    known = first.headers["ETag"]
    assert known == f'"{first.json["digest"]}"'
    theirs = await api.push("etl.py", SOURCE + b"# theirs\n", If_Match=known)
    assert (theirs.status, theirs.json["number"]) == (201, 2)
    mine = await api.push("etl.py", SOURCE + b"# mine\n", If_Match=known)
    assert (mine.status, mine.slug) == (412, "precondition")
    assert theirs.json["digest"] in mine.json["detail"]
    assert (await api.call("GET", "/v1/archives/etl.py", token=api.admin)).json["latest"] == 2
    assert await api.fsck() == []

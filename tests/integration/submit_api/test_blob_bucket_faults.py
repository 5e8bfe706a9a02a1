"""A bucket that is away, lies, refuses, is full, or is somebody else's: what is then said, and what is left behind."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
import tracemalloc
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from test_blob_stores import DATA, LARGE, OWNER, key, published, whole

from integrity.digests import Digest
from integrity.errors import DagsealError, DigestMismatchError, NotFoundError, SettingsError
from submit_api.blobs import BlobStore
from submit_api.blobs.opening import open_store
from submit_api.problems import status_of
from submit_api.refusals import NoSpaceError, UnavailableError
from submit_api.settings import load
from tests import s3
from tests.s3_faults import (
    ALWAYS,
    AWAY,
    BRIEF,
    CONDITIONS,
    ELSEWHERE,
    ENDLESS,
    FLIP,
    HANG,
    HOLD,
    HUGE,
    LOST,
    RANGES,
    SHORT,
    Proxy,
)


@pytest.fixture
async def proxy(bucket: s3.Bucket) -> AsyncIterator[Proxy]:
    async with Proxy(bucket.server.url) as made:
        yield made


def opened(bucket: s3.Bucket, proxy: Proxy, tmp_path: Path, owner: str = OWNER, **changes: Any) -> BlobStore:
    section = bucket.section(**{"endpoint": proxy.url, **changes})
    return open_store(load(api={"state_folder": str(tmp_path)}, blobs=section), owner)


@pytest.fixture
async def store(bucket: s3.Bucket, proxy: Proxy, tmp_path: Path) -> AsyncIterator[BlobStore]:
    made = opened(bucket, proxy, tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("fault", [AWAY, "500", "503", "429", LOST])
async def test_what_passes_is_asked_again(store: BlobStore, bucket: s3.Bucket, proxy: Proxy, fault: str) -> None:
    for method in ("PUT", "GET", "DELETE"):
        proxy.fail(method, fault, 2, "SlowDown")
    assert await published(store, DATA), "it is new, whatever was lost"
    assert bucket.keys() == [key(DATA)] and proxy.count("PUT") == 3
    await store.verify(Digest.of(DATA))
    await store.remove(Digest.of(DATA))
    assert bucket.keys() == []


@pytest.mark.parametrize("fault", [AWAY, "500", "503", "400"])
async def test_what_does_not_pass_is_unavailable(store: BlobStore, bucket: s3.Bucket, proxy: Proxy, fault: str) -> None:
    for method in ("PUT", "GET", "DELETE", "LIST"):
        proxy.fail(method, fault, code="SlowDown")
    for asked in (published(store, DATA), store.verify(Digest.of(DATA)), store.remove(Digest.of(DATA)),
                  whole(store, DATA), store.small(Digest.of(DATA), 5), store.check_writable(), store.claim()):  # fmt: skip
        with pytest.raises(UnavailableError):
            await asked
    with pytest.raises(UnavailableError):
        _ = [name async for name in store.names()]
    assert proxy.count("PUT") == 9, "three attempts of each of three"
    assert bucket.keys() == [] and await store.leftovers() == []
    proxy.heal()
    assert await published(store, DATA)


async def test_nobody_listens(bucket: s3.Bucket, proxy: Proxy, tmp_path: Path) -> None:
    store = opened(bucket, proxy, tmp_path, endpoint="http://127.0.0.1:1")
    with pytest.raises(UnavailableError):
        await published(store, DATA)
    store.close()


async def test_lost_answers_without_end_leave_at_most_what_the_next_one_finds(
    store: BlobStore, bucket: s3.Bucket, proxy: Proxy
) -> None:
    proxy.fail("PUT", LOST, 1)
    proxy.fail("PUT", AWAY)
    with pytest.raises(UnavailableError):
        await published(store, DATA)
    assert bucket.get(key(DATA)) == DATA
    proxy.heal()
    assert not await published(store, DATA)


@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
async def test_no_answer_is_waited_for_until_the_deadline_only(
    bucket: s3.Bucket, proxy: Proxy, tmp_path: Path, method: str
) -> None:
    store = opened(bucket, proxy, tmp_path, request_seconds=0.3)
    proxy.fail(method, HANG)
    asked = {
        "PUT": published(store, DATA),
        "GET": store.verify(Digest.of(DATA)),
        "DELETE": store.remove(Digest.of(DATA)),
    }
    with pytest.raises(UnavailableError, match="in time"):
        await asked.pop(method)
    for left in asked.values():
        left.close()
    await asyncio.wait_for(proxy.given_up.wait(), 10)  # the connection ends with the question
    store.close()


async def test_many_slow_answers_are_not_waited_for_either(
    bucket: s3.Bucket, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each within its own deadline, of an object that is looked at piece by piece."""
    store = opened(bucket, proxy, tmp_path, request_seconds=0.2)
    bucket.put(key(DATA), b"bad")

    async def endless(_: Digest) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(store, "verify", endless)
    with pytest.raises(UnavailableError, match="too slow"):
        await asyncio.wait_for(published(store, DATA), 30)
    store.close()


async def test_who_goes_away_ends_the_request(store: BlobStore, bucket: s3.Bucket, proxy: Proxy) -> None:
    proxy.fail("PUT", HANG)
    asking = asyncio.create_task(published(store, DATA))
    while not proxy.seen:
        await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.wait_for(proxy.given_up.wait(), 10)
    assert bucket.keys() == [] and await store.leftovers() == []


async def test_while_it_fails_uploads_are_refused_at_once(bucket: s3.Bucket, proxy: Proxy, tmp_path: Path) -> None:
    """The writer's lock is held while a bucket is asked."""
    store = opened(bucket, proxy, tmp_path, rest_seconds=60)
    await published(store, LARGE)
    proxy.fail("PUT", AWAY)
    with pytest.raises(UnavailableError):
        await published(store, DATA)
    asked = len(proxy.seen)
    with pytest.raises(UnavailableError, match="a moment ago"):
        await published(store, DATA)
    assert len(proxy.seen) == asked
    await store.verify(Digest.of(LARGE))  # reading goes on
    store.close()


@pytest.mark.parametrize("fault", [SHORT, BRIEF, ENDLESS, ELSEWHERE, RANGES])
@pytest.mark.parametrize("data", [DATA, LARGE], ids=["small", "large"])
async def test_a_body_of_another_length_is_no_blob(store: BlobStore, proxy: Proxy, fault: str, data: bytes) -> None:
    await published(store, data)
    await store.verify(Digest.of(data))
    proxy.fail("GET", fault)
    tracemalloc.start()
    for asked in (store.verify(Digest.of(data)), whole(store, data)):
        with pytest.raises(UnavailableError):
            await asked
    assert tracemalloc.get_traced_memory()[1] < 48 * 1024 * 1024
    tracemalloc.stop()
    if fault == ENDLESS:
        await asyncio.wait_for(proxy.given_up.wait(), 10)
    proxy.heal()
    proxy.fail("GET", SHORT, 1)
    assert await whole(store, data) == data


async def test_an_object_that_no_put_can_have_made_is_not_hashed_to_its_end(store: BlobStore, proxy: Proxy) -> None:
    proxy.fail("GET", HUGE)
    with pytest.raises(DigestMismatchError, match="1000000000000 bytes"):
        await store.verify(Digest.of(DATA))
    assert proxy.count("GET") == 1


async def test_bytes_changed_on_the_way_are_no_blob(store: BlobStore, bucket: s3.Bucket, proxy: Proxy) -> None:
    await published(store, DATA)
    proxy.fail("GET", FLIP, 2)
    with pytest.raises(DigestMismatchError):
        await store.verify(Digest.of(DATA))
    with pytest.raises(DigestMismatchError):
        await store.small(Digest.of(DATA), len(DATA))
    assert await store.small(Digest.of(DATA), len(DATA)) == DATA


async def test_who_replaces_a_bad_one_never_removes_a_good_one(
    store: BlobStore, bucket: s3.Bucket, proxy: Proxy
) -> None:
    """The first sees it bad and is about to remove it; the second puts a good one and acknowledges it; then the first fails."""
    bucket.put(key(DATA), b"bad")
    proxy.fail("DELETE", HOLD, 1)
    first = asyncio.create_task(published(store, DATA))
    await asyncio.wait_for(proxy.held.wait(), 10)
    second = asyncio.create_task(published(store, DATA))
    for _ in range(10):  # time enough for the second, if it did not wait
        await published(store, b"another one")
    if second.done():
        proxy.fail("PUT", AWAY)
    proxy.release.set()
    await asyncio.gather(first, second, return_exceptions=True)
    assert second.result() in (True, False) and bucket.get(key(DATA)) == DATA


async def test_a_conflict_with_another_put_is_asked_again(store: BlobStore, bucket: s3.Bucket, proxy: Proxy) -> None:
    """S3 answers 409 while another conditional PUT of the key is under way, whether or not that one ends well."""
    proxy.fail("PUT", "409", 1, "ConditionalRequestConflict")
    assert await published(store, DATA)
    proxy.fail("PUT", "409", ALWAYS, "ConditionalRequestConflict")
    with pytest.raises(UnavailableError, match="somebody else"):
        await published(store, LARGE)
    assert bucket.keys() == [key(DATA)]


DENIALS = [("403", "AccessDenied"), ("403", "SignatureDoesNotMatch"), ("401", ""), ("404", "NoSuchBucket"), ("404", "")]


@pytest.mark.parametrize(("status", "code"), DENIALS)
async def test_what_is_refused_is_not_asked_again_and_says_what_to_do(
    store: BlobStore, bucket: s3.Bucket, proxy: Proxy, status: str, code: str
) -> None:
    """Also a bucket that is not there: that is no missing blob."""
    for method in ("PUT", "GET", "DELETE"):
        proxy.fail(method, status, code=code)
    for asked in (published(store, DATA), store.verify(Digest.of(DATA)), store.small(Digest.of(DATA), 3)):
        with pytest.raises(UnavailableError, match=code or status):
            await asked
    assert (proxy.count("PUT"), proxy.count("GET")) == (1, 2)
    with pytest.raises(SettingsError, match=r"s3:GetObject, s3:PutObject, s3:DeleteObject .* s3:ListBucket"):
        await store.claim()


@pytest.mark.parametrize(("status", "code"), [("404", "NoSuchKey"), ("416", "InvalidRange"), ("301", ""), ("304", "")])
async def test_answers_that_are_none_to_this_question(store: BlobStore, proxy: Proxy, status: str, code: str) -> None:
    """A store that is no S3, or lies."""
    for method in ("PUT", "LIST"):
        proxy.fail(method, status, code=code)
    with pytest.raises(UnavailableError):
        await published(store, DATA)
    with pytest.raises((UnavailableError, SettingsError)):
        await store.claim()
    with pytest.raises(UnavailableError):
        _ = [name async for name in store.names()]


async def test_a_bucket_of_another_region_is_called_so(store: BlobStore, proxy: Proxy) -> None:
    proxy.fail("PUT", "301", code="PermanentRedirect")
    with pytest.raises(UnavailableError, match=r"another region than blobs\.region"):
        await published(store, DATA)


async def test_a_store_that_has_nothing_to_delete_may_say_so(store: BlobStore, proxy: Proxy) -> None:
    proxy.fail("DELETE", "404", code="NoSuchKey")
    await store.remove(Digest.of(DATA))
    proxy.heal()
    proxy.fail("DELETE", "404", code="NoSuchBucket")
    with pytest.raises(UnavailableError):
        await store.remove(Digest.of(DATA))


async def test_a_missing_object_is_not_found_and_not_asked_again(store: BlobStore, proxy: Proxy) -> None:
    with pytest.raises(NotFoundError):
        await store.verify(Digest.of(DATA))
    assert proxy.count("GET") == 1


@pytest.mark.parametrize(
    ("status", "code"),
    [("403", "QuotaExceeded"), ("507", "XMinioStorageFull"), ("507", ""), ("400", "InsufficientStorage")],
)
async def test_a_full_bucket_has_no_space(store: BlobStore, proxy: Proxy, status: str, code: str) -> None:
    proxy.fail("PUT", status, code=code)
    with pytest.raises(NoSpaceError) as caught:
        await published(store, DATA)
    assert status_of(caught.value) == 507 and proxy.count("PUT") == 1


async def test_a_bucket_that_replaces_objects_is_refused_at_start(
    store: BlobStore, bucket: s3.Bucket, proxy: Proxy
) -> None:
    proxy.fail("PUT", CONDITIONS)
    with pytest.raises(SettingsError, match="If-None-Match"):
        await store.claim()
    await published(store, DATA)  # and does no harm: what is put has the digest
    await published(store, DATA)
    assert bucket.get(key(DATA)) == DATA


async def test_a_prefix_is_one_service_s_own(store: BlobStore, bucket: s3.Bucket, proxy: Proxy, tmp_path: Path) -> None:
    await store.claim()
    await store.claim()
    for wrong in ("b" * 64, OWNER[:-1], OWNER + "a"):
        other = opened(bucket, proxy, tmp_path, owner=wrong)
        with pytest.raises(SettingsError, match="another dagseal's"):
            await other.claim()
        other.close()
    beside = opened(bucket, proxy, tmp_path, owner="b" * 64, url=f"s3://{bucket.name}/p/q2")
    await beside.claim()
    with beside.upload() as upload:
        await upload.write(DATA)
        await upload.finish()
        await beside.publish(upload)
    assert bucket.keys() == [], "a prefix is not the beginning of a name"
    beside.close()
    bucket.put(".dagseal-owner", b"")
    with pytest.raises(SettingsError, match="another dagseal's"):
        await store.claim()


@pytest.mark.parametrize("name", ["zz//odd", "../up", "ab/./x"])
async def test_a_key_that_is_no_path_is_named_and_ends_the_list(store: BlobStore, bucket: s3.Bucket, name: str) -> None:
    bucket.put(name, b"x")
    found = [entry async for entry in store.names()]
    assert found and found[-1][0].startswith("/"), "which fsck calls damage"
    assert name.rpartition("/")[2] == found[-1][1]


async def test_many_pages_are_listed(store: BlobStore, bucket: s3.Bucket) -> None:
    for number in range(1100):
        bucket.put(f"ab/{number:04}", b"")
    assert [name async for _, name in store.names()] == [f"{number:04}" for number in range(1100)]


async def test_an_upload_that_its_disk_changed_is_not_put(store: BlobStore, bucket: s3.Bucket, tmp_path: Path) -> None:
    with store.upload() as upload:
        await upload.write(LARGE[:-1])
        await upload.write(LARGE[-1:])
        await upload.finish()
        [temporary] = (tmp_path / "blobs").glob(".tmp-*")
        temporary.write_bytes(LARGE[:-1] + bytes([LARGE[-1] ^ 1]))
        with pytest.raises(DigestMismatchError):
            await store.publish(upload)
    assert bucket.keys() == []


async def test_a_full_local_disk_is_said_when_asked(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("submit_api.blobs.incoming.durable.open_temporary", full)
    with pytest.raises(OSError, match="No space"):
        await store.check_writable()


async def test_the_environment_weakens_nothing(
    bucket: s3.Bucket, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_UNSIGNED_PAYLOAD": "true",
        "AWS_CONDITIONAL_PUT": "disabled",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_ENDPOINT": "http://127.0.0.1:1",
        "AWS_BUCKET": "other",
        "AWS_REGION": "elsewhere",
        "AWS_ACCESS_KEY_ID": "other",
        "AWS_SECRET_ACCESS_KEY": "other",
    }.items():
        monkeypatch.setenv(name, value)
    store = opened(bucket, proxy, tmp_path)
    await published(store, DATA)
    [sent] = [headers for headers in proxy.headers if headers.get("If-None-Match") == "*"]
    assert sent["Authorization"].startswith(f"AWS4-HMAC-SHA256 Credential={s3.KEY_ID}/")
    assert "us-east-1" in sent["Authorization"] and len(sent["x-amz-content-sha256"]) == 64
    assert bucket.keys() == [key(DATA)]
    store.close()


async def test_a_certificate_of_nobody_is_refused_whatever_the_environment_says(
    bucket: s3.Bucket, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ALLOW_INVALID_CERTIFICATES", "true")
    asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(100))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=self_signed(tmp_path)) as server:
        port = server.sockets[0].getsockname()[1]
        store = opened(bucket, proxy, tmp_path, endpoint=f"https://localhost:{port}")
        with pytest.raises(UnavailableError):
            await published(store, DATA)
        store.close()
    assert [sent for sent in asked if sent] == []


def self_signed(folder: Path) -> ssl.SSLContext:
    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]),
    )
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    now = datetime.now(UTC)
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    path = folder / "pem"
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


async def test_credentials_of_the_environment_are_taken_without_a_file(
    bucket: s3.Bucket, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOFENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    store = opened(bucket, proxy, tmp_path, credentials_file="")
    await published(store, DATA)
    assert "Credential=AKIAOFENVIRONMENT/" in proxy.headers[-1]["Authorization"]
    store.close()


@pytest.mark.parametrize("where", ["http://127.0.0.1:1", "proxy"])
async def test_no_credentials_at_all_are_called_so(
    bucket: s3.Bucket, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", proxy.url if where == "proxy" else where)
    proxy.fail("PUT", "403")
    store = opened(bucket, proxy, tmp_path, credentials_file="")
    with pytest.raises(UnavailableError, match="no credentials"):
        await store.claim()
    store.close()


async def test_nothing_that_the_bucket_says_but_its_code_is_shown(store: BlobStore, proxy: Proxy) -> None:
    """S3's errors hold the id of the key and what was signed."""
    leak = f"InvalidAccessKeyId</Code><AWSAccessKeyId>{s3.KEY_ID}</AWSAccessKeyId><Code>"
    proxy.fail("PUT", "403", code=leak)
    with structlog.testing.capture_logs() as logged, pytest.raises(UnavailableError) as caught:
        await published(store, DATA)
    [line] = logged
    assert "InvalidAccessKeyId" in line["detail"] and line["asked"] == "put"
    for text in (str(line), str(caught.value), repr(store), str(load(blobs={"url": "s3://b1b/x"}))):
        assert s3.KEY_ID not in text and s3.SECRET not in text
    assert caught.value.__cause__ is None or s3.KEY_ID not in str(caught.value.__cause__)


SPOILT = {
    "readable": ("[default]\naws_access_key_id = a\naws_secret_access_key = hush\n", 0o640, "chmod 600"),
    "no section": ("aws_access_key_id = a\naws_secret_access_key = hush\n", 0o600, r"\[default\]"),
    "other section": ("[other]\naws_access_key_id = a\naws_secret_access_key = hush\n", 0o600, r"\[default\]"),
    "no secret": ("[default]\naws_access_key_id = a\n", 0o600, "aws_secret_access_key"),
    "empty": ("", 0o600, r"\[default\]"),
}


@pytest.mark.parametrize("how", SPOILT)
async def test_a_credentials_file_that_cannot_be_used_is_refused(
    bucket: s3.Bucket, proxy: Proxy, tmp_path: Path, how: str
) -> None:
    text, mode, said = SPOILT[how]
    path = tmp_path / "credentials"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(SettingsError, match=said) as caught:
        opened(bucket, proxy, tmp_path, credentials_file=str(path))
    assert "hush" not in str(caught.value)
    path.unlink()
    with pytest.raises(SettingsError, match="No such file"):
        opened(bucket, proxy, tmp_path, credentials_file=str(path))


async def test_a_credentials_file_is_read_again(bucket: s3.Bucket) -> None:
    from submit_api.blobs.credentials import FileCredentials

    ask = FileCredentials(bucket.credentials_file, lambda: 1_000_000.0)
    first = ask()
    assert (first["access_key_id"], first["secret_access_key"], first.get("token")) == (s3.KEY_ID, s3.SECRET, None)
    assert first["expires_at"] is not None and first["expires_at"].timestamp() == 1_000_360
    Path(bucket.credentials_file).write_text(
        "[default]\naws_access_key_id = new\naws_secret_access_key = %x\naws_session_token = t=\n"
    )
    second = ask()
    assert (second["access_key_id"], second["secret_access_key"], second.get("token")) == ("new", "%x", "t=")


async def test_credentials_that_ran_out_are_read_again(
    bucket: s3.Bucket, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("submit_api.blobs.credentials._GOOD_FOR", timedelta(0))
    store = opened(bucket, proxy, tmp_path)
    await published(store, DATA)
    await store.verify(Digest.of(DATA))
    Path(bucket.credentials_file).write_text("[default]\naws_access_key_id = NEW\naws_secret_access_key = s\n")
    await store.verify(Digest.of(DATA))
    assert [headers["Authorization"].split("Credential=")[1].split("/")[0] for headers in proxy.headers] == [
        s3.KEY_ID, s3.KEY_ID, "NEW"]  # fmt: skip
    store.close()


async def test_a_credentials_file_that_is_spoilt_later_is_unavailable(
    bucket: s3.Bucket, proxy: Proxy, tmp_path: Path
) -> None:
    store = opened(bucket, proxy, tmp_path)
    os.chmod(bucket.credentials_file, 0o644)
    with pytest.raises(DagsealError) as caught:
        await published(store, DATA)
    assert status_of(caught.value) == 503
    store.close()


async def test_without_obstore_it_is_said_what_to_install(
    bucket: s3.Bucket, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.delitem(sys.modules, "submit_api.blobs.bucket", raising=False)
    monkeypatch.delitem(sys.modules, "submit_api.blobs.remote", raising=False)
    with pytest.raises(SettingsError, match=r"pip install dagseal\[s3\]"):
        opened(bucket, proxy, tmp_path)


BAD_SECTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "other scheme": ({"url": "gs://bucket/x"}, "s3://bucket"),
    "no bucket": ({"url": "s3:///x"}, "s3://bucket"),
    "credentials": ({"url": "s3://key:secret@bucket/x"}, "s3://bucket"),
    "query": ({"url": "s3://bucket/x?a=b"}, "s3://bucket"),
    "dots": ({"url": "s3://bucket/a/../b"}, "s3://bucket"),
    "dot dot at its end": ({"url": "s3://bucket/a/.."}, "s3://bucket"),
    "empty part": ({"url": "s3://bucket/a//b"}, "s3://bucket"),
    "endpoint alone": ({"endpoint": "https://h"}, "set url"),
    "credentials alone": ({"credentials_file": "/x"}, "set url"),
    "plain http": ({"url": "s3://bucket", "endpoint": "http://minio:9000"}, "unsafe_http"),
    "user": ({"url": "s3://bucket", "endpoint": "https://u@h"}, "without user"),
    "password": ({"url": "s3://bucket", "endpoint": "https://:p@h"}, "without user"),
    "path": ({"url": "s3://bucket", "endpoint": "https://h/bucket"}, "bucket and prefix are in url"),
    "no host": ({"url": "s3://bucket", "endpoint": "https://"}, "https://host"),
    "no port": ({"url": "s3://bucket", "endpoint": "https://h:port"}, "not a URL"),
    "region": ({"url": "s3://bucket", "region": "x/y"}, "region"),
    "secret": ({"url": "s3://bucket", "secret_access_key": "hush"}, "secret_access_key"),
}


@pytest.mark.parametrize("what", BAD_SECTIONS)
def test_settings_that_cannot_be_used_are_refused(what: str) -> None:
    section, said = BAD_SECTIONS[what]
    with pytest.raises(SettingsError, match=said) as caught:
        load(blobs=section)
    assert "hush" not in str(caught.value) and "key:secret" not in str(caught.value)


def test_settings_that_can() -> None:
    for url, found in {
        "s3://my.bucket-1": ("my.bucket-1", ""),
        "s3://bucket/": ("bucket", ""),
        "s3://bucket/a/b_c/d.e": ("bucket", "a/b_c/d.e"),
        "s3://bucket/a/": ("bucket", "a"),
    }.items():
        section = load(blobs={"url": url}).blobs
        assert (section.bucket, section.prefix) == found
    for endpoint in ("https://minio:9000", "http://127.0.0.1:9000", "http://[::1]:9000", "http://localhost:1/"):
        load(blobs={"url": "s3://bucket", "endpoint": endpoint})
    load(blobs={"url": "s3://bucket", "endpoint": "http://minio:9000", "unsafe_http": True})

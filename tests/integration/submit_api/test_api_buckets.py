"""The whole service with its archives in a bucket: push, get, fsck, launch, retire, backup, restore; and a failing bucket."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from api_rig import SOURCE, T0, Answer, Api, DescribingPeer, dag_entry
from test_api_backups import content

from integrity.digests import Digest
from integrity.errors import ConflictError, SettingsError
from submit_api import restoring, retiring
from submit_api.backups import backup
from submit_api.blobs.local import path_of
from submit_api.bootstrap import bootstrap
from submit_api.findings import damaged
from submit_api.fsck import fsck
from submit_api.refusals import UnavailableError
from submit_api.restoring import restore
from submit_api.running import opened
from submit_api.settings import Settings, load
from tests import s3
from tests.s3_faults import AWAY, DONE, HOLD, LOST, Proxy

DAY = 86_400


@pytest.fixture
async def proxy(bucket: s3.Bucket) -> AsyncIterator[Proxy]:
    async with Proxy(bucket.server.url) as made:
        yield made


@pytest.fixture
async def api(folder: str, bucket: s3.Bucket, proxy: Proxy) -> AsyncIterator[Api]:
    section = bucket.section(endpoint=proxy.url)
    async with Api(folder, blobs=section, retention={"keep_releases": 1, "keep_days": 1}) as running:
        yield running


def key(data: bytes) -> str:
    return path_of(Digest.of(data))


async def get(api: Api, data: bytes, **headers: str) -> Answer:
    return await api.call("GET", f"/v1/blobs/sha512/{Digest.of(data).hex}", token=api.admin, headers=headers)


async def rules(api: Api) -> set[str]:
    return {finding.rule for finding in await api.fsck()}


def zipped() -> bytes:
    """More than one piece of a bucket, and nothing to be made smaller."""
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr(zipfile.ZipInfo("etl.py"), SOURCE)
        made.writestr(zipfile.ZipInfo("data.bin"), os.urandom(9 * 1024 * 1024))
    return out.getvalue()


async def test_push_get_and_fsck(api: Api, bucket: s3.Bucket) -> None:
    large = zipped()
    api.launcher.dags["big.zip"] = [dag_entry("big")]
    for name, data in (("etl.py", SOURCE), ("big.zip", large)):
        answer = await api.push(name, data)
        assert answer.status == 201, answer.body
        assert bucket.get(key(data)) == data
        assert (await api.push(name, data)).status == 200
        found = await get(api, data)
        assert (found.status, found.body) == (200, data)
        part = await get(api, data, Range="bytes=5-99")
        assert (part.status, part.body) == (206, data[5:100])
    assert (await get(api, large, Range=f"bytes=4000000-{len(large) - 2}")).body == large[4_000_000:-1]
    assert api.files() == [], "nothing of them is on local disk"
    assert await api.fsck() == []
    ready = await api.call("GET", "/readyz")
    assert (ready.status, ready.json["checks"]["blobs"]) == (200, "ok")


async def test_wrong_bytes_in_the_bucket_are_never_given_out_as_good(api: Api, bucket: s3.Bucket) -> None:
    """A small one is refused, a large one breaks off before its end; and a push of the right ones puts them back."""
    large = zipped()
    api.launcher.dags["big.zip"] = [dag_entry("big")]
    await api.push("etl.py", SOURCE)
    await api.push("big.zip", large)
    bucket.put(key(SOURCE), SOURCE.replace(b"pass", b"fail"))
    bucket.put(key(large), large[:-1] + bytes([large[-1] ^ 1]))
    answer = await get(api, SOURCE)
    assert (answer.status, answer.slug) == (422, "digest-mismatch")
    with pytest.raises(aiohttp.ClientPayloadError):
        await get(api, large)
    bucket.put(key(large), large[:-1])
    with pytest.raises(aiohttp.ClientPayloadError):
        await get(api, large)
    bucket.put(key(large), large[:5_000_000])
    with pytest.raises(aiohttp.ClientPayloadError):
        await get(api, large)
    assert (await get(api, large, Range="bytes=6000000-6000001")).slug == "digest-mismatch"
    assert await rules(api) == {"blob-damaged"}
    for name, data in (("etl.py", SOURCE), ("big.zip", large)):
        assert (await api.push(name, data)).status == 200
        assert bucket.get(key(data)) == data and (await get(api, data)).body == data
    assert await api.fsck() == []
    assert [event["action"] for event in await api.events()].count("blob.repair") == 2


async def test_fsck_of_a_bucket(api: Api, bucket: s3.Bucket, proxy: Proxy) -> None:
    await api.push("etl.py", SOURCE)
    bucket.put("ab/" + "ab" + "0" * 126, b"")
    assert await rules(api) == {"blob-dangling"} and not damaged(await api.fsck())
    bucket.put("stray", b"")
    assert await rules(api) == {"blob-dangling", "foreign-file"}
    bucket.put("zz//odd", b"")
    found = [finding for finding in await api.fsck() if finding.rule == "foreign-file"]
    assert [finding.subject for finding in found][-1] == "/p/q/zz//odd"
    for name in ("stray", "zz//odd"):
        bucket.delete(name)
    bucket.delete(key(SOURCE))
    assert await rules(api) == {"blob-dangling", "blob-missing"}
    bucket.put(key(SOURCE), SOURCE)
    for method in ("GET", "LIST"):
        for status, code in (("403", "AccessDenied"), ("404", "NoSuchBucket"), ("503", "SlowDown")):
            proxy.heal()
            proxy.fail(method, status, code=code)
            with pytest.raises(UnavailableError, match=code):  # what cannot be looked at is not called damaged
                await api.fsck()


@pytest.mark.sqlite
async def test_repair_removes_what_nothing_names(folder: str, bucket: s3.Bucket) -> None:
    async with Api(folder, blobs=bucket.section()) as api:
        await api.push("etl.py", SOURCE)
        bucket.put("ab/" + "ab" + "0" * 126, b"")
        settings = api.settings
        other = settings.model_copy(update={"blobs": load(blobs=bucket.section(url=f"s3://{bucket.name}/p")).blobs})
    assert [finding.repaired for finding in await fsck(settings, repair=True)] == [True]
    assert bucket.keys() == [key(SOURCE)]
    # The owner's object is below this prefix, and no name of a blob.
    assert {finding.rule for finding in await fsck(other)} == {"blob-missing", "foreign-file"}


async def test_a_bucket_that_goes_away_in_the_middle_of_a_push(api: Api, bucket: s3.Bucket, proxy: Proxy) -> None:
    await api.push("etl.py", SOURCE)
    before = await api.remains()
    proxy.fail("PUT", AWAY)
    for body in (SOURCE + b"#", SOURCE + b"##"):
        answer = await api.push("etl.py", body)
        assert (answer.status, answer.slug, answer.headers["Retry-After"]) == (503, "unavailable", "5")
    assert await api.remains() == before and bucket.keys() == [key(SOURCE)] and await api.fsck() == []
    ready = await api.call("GET", "/readyz")
    assert ready.status == 503 and ready.json["checks"]["blobs"].startswith("cannot be written: the bucket")
    assert (await api.call("GET", "/v1/archives", token=api.admin)).status == 200  # all else goes on
    proxy.heal()
    proxy.fail("PUT", LOST, 1)
    answer = await api.push("etl.py", SOURCE + b"#")
    assert (answer.status, answer.json["number"]) == (201, 2)
    proxy.fail("GET", AWAY)
    assert (await get(api, SOURCE)).slug == "unavailable"
    proxy.heal()
    assert (await get(api, SOURCE)).body == SOURCE and await api.fsck() == []


async def test_a_bucket_that_goes_away_in_the_middle_of_a_get(api: Api, proxy: Proxy) -> None:
    large = zipped()
    api.launcher.dags["big.zip"] = [dag_entry("big")]
    await api.push("big.zip", large)
    proxy.fail("GET", HOLD, 1)
    asking = asyncio.create_task(get(api, large))
    await asyncio.wait_for(proxy.held.wait(), 10)
    proxy.fail("GET", AWAY)
    proxy.release.set()
    answer = await asking  # of two pieces none was sent yet: the last is never sent before the digest agrees
    assert (answer.status, answer.slug) == (503, "unavailable")


async def test_a_full_bucket_is_507(api: Api, bucket: s3.Bucket, proxy: Proxy) -> None:
    proxy.fail("PUT", "507", code="XMinioStorageFull")
    answer = await api.push("etl.py", SOURCE)
    assert (answer.status, answer.slug) == (507, "no-space")
    assert await api.remains() == ([], []) and bucket.keys() == [] and await api.fsck() == []


async def test_who_leaves_in_the_middle_leaves_a_whole_release_or_none(
    api: Api, bucket: s3.Bucket, proxy: Proxy
) -> None:
    proxy.fail("PUT", HOLD, 1)
    pushing = asyncio.create_task(api.push("etl.py", SOURCE))
    await asyncio.wait_for(proxy.held.wait(), 10)
    pushing.cancel()
    proxy.release.set()
    with pytest.raises(asyncio.CancelledError):
        await pushing
    answer = await api.push("etl.py", SOURCE)
    assert answer.status in (200, 201) and answer.json["number"] == 1
    assert bucket.keys() == [key(SOURCE)] and await api.fsck() == []


async def test_a_transaction_that_fails_takes_its_object_with_it(
    api: Api, bucket: s3.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: Any) -> None:
        assert bucket.keys() == [key(SOURCE)], "the object comes before the commit"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("submit_api.registry.database.Transaction.commit", fail)
    answer = await api.push("etl.py", SOURCE)
    assert (answer.status, answer.slug) == (507, "no-space")
    assert bucket.keys() == []


async def test_no_ticket_without_the_right_bytes_and_no_refusal_while_nobody_knows(
    api: Api, bucket: s3.Bucket, proxy: Proxy
) -> None:
    await api.push("etl.py", SOURCE)
    await api.allow("admin")
    worker = await api.worker()
    launch_id = (await api.launch()).json["id"]
    for status, code in (("503", "SlowDown"), ("403", "AccessDenied"), ("404", "NoSuchBucket")):
        proxy.heal()
        proxy.fail("GET", status, code=code)
        path = f"/v1/workers/{worker.name}/take?wait_seconds=0"
        answer = await api.call("POST", path, token=worker.token, json={"queues": ["default"]})
        assert (answer.status, answer.slug) == (503, "unavailable")
        assert (await api.call("GET", f"/v1/launches/{launch_id}", token=api.admin)).json["state"] == "queued"
    proxy.heal()
    offer = await worker.take()
    assert offer is not None and (await worker.claim(offer)).status == 200
    second = (await api.launch(try_number=2)).json["id"]
    bucket.put(key(SOURCE), b"other bytes")
    assert await worker.take() is None
    ended = (await api.call("GET", f"/v1/launches/{second}", token=api.admin)).json
    assert (ended["state"], ended["error"]) == ("refused", "digest-mismatch")


async def test_retention_removes_objects(api: Api, bucket: s3.Bucket, proxy: Proxy) -> None:
    bodies = [SOURCE + b"#" * number for number in range(3)]
    for body in bodies:
        assert (await api.push("etl.py", body)).status == 201
    api.clock.forward(2 * DAY)
    proxy.fail("DELETE", AWAY)
    with pytest.raises(UnavailableError):
        await retiring.retire(api.service)
    assert len(bucket.keys()) == 3 and await api.fsck() == []  # the next start removes them
    proxy.heal()
    assert len(await retiring.sweep(api.service)) == 2
    assert bucket.keys() == [key(bodies[2])] and await api.fsck() == []


class Target:
    """Where a restore goes: with a bucket, or without."""

    def __init__(self, folder: str, api: Api, section: dict[str, Any]) -> None:
        url = f"sqlite+aiosqlite:///{folder}/new/new.db"
        self.settings: Settings = load(
            api={"state_folder": f"{folder}/new", "port": 0}, database={"url": url}, blobs=section
        )
        shutil.copytree(f"{api.settings.api.state_folder}/keys", f"{folder}/new/keys")

    async def restore(self, made: bytes) -> int:
        return (await restore(self.settings, io.BytesIO(made))).blobs


async def taken(api: Api) -> bytes:
    file = io.BytesIO()
    await backup(api.settings, file)
    return file.getvalue()


@pytest.mark.parametrize("where", ["folder", "bucket"])
async def test_a_backup_goes_from_a_bucket_into_either(
    api: Api, bucket: s3.Bucket, folder: str, tmp_path: Path, where: str
) -> None:
    large = zipped()
    api.launcher.dags["big.zip"] = [dag_entry("big")]
    await api.push("etl.py", SOURCE)
    await api.push("big.zip", large)
    made, before = await taken(api), await content(api.settings)
    there = bucket.server.make(str(tmp_path))
    target = Target(folder, api, there.section() if where == "bucket" else {})
    assert await target.restore(made) == 2
    after = await content(target.settings)
    assert after["audit_events"].pop()["action"] == "backup.restore" and after == before
    assert await fsck(target.settings) == []
    assert there.keys() == (sorted([key(SOURCE), key(large)]) if where == "bucket" else [])


@pytest.mark.sqlite
async def test_a_backup_goes_from_a_folder_into_a_bucket(folder: str, bucket: s3.Bucket) -> None:
    async with Api(folder) as api:
        await api.push("etl.py", SOURCE)
        target = Target(folder, api, bucket.section())
        assert await target.restore(await taken(api)) == 1
    assert bucket.get(key(SOURCE)) == SOURCE and await fsck(target.settings) == []


@pytest.mark.sqlite
async def test_no_backup_while_the_bucket_is_away_or_damaged(api: Api, bucket: s3.Bucket, proxy: Proxy) -> None:
    await api.push("etl.py", SOURCE)
    proxy.fail("GET", AWAY)
    with pytest.raises(UnavailableError):
        await taken(api)
    proxy.heal()
    bucket.put(key(SOURCE), b"other")
    with pytest.raises(Exception, match="stored blob"):
        await taken(api)


@pytest.mark.sqlite
async def test_a_restore_that_breaks_off_leaves_an_empty_prefix_and_is_done_again(
    api: Api, bucket: s3.Bucket, proxy: Proxy, folder: str, tmp_path: Path
) -> None:
    api.launcher.dags["other.py"] = [dag_entry("other", member="other.py")]
    await api.push("etl.py", SOURCE)
    await api.push("other.py", SOURCE + b"#")
    made, there = await taken(api), bucket.server.make(str(tmp_path))
    target = Target(folder, api, there.section(endpoint=proxy.url))
    start = len(proxy.seen)
    proxy.fail("PUT", AWAY)
    with pytest.raises(UnavailableError):
        await target.restore(made)
    assert len(proxy.seen) > start and there.keys() == []
    proxy.heal()
    there.put(key(b"x"), b"x")
    with pytest.raises(ConflictError, match="already"):
        await target.restore(made)
    assert there.get(key(b"x")) == b"x", "what was there is somebody's"
    there.delete(key(b"x"))
    assert await target.restore(made) == 2
    assert await fsck(target.settings) == []


@pytest.mark.sqlite
async def test_a_restore_that_was_killed_removes_nothing_from_another_prefix(
    api: Api, bucket: s3.Bucket, folder: str, tmp_path: Path
) -> None:
    """Its marker lets the next one remove what has no row: only where the killed one had put it."""
    await api.push("etl.py", SOURCE)
    made, first, other = await taken(api), bucket.server.make(str(tmp_path)), bucket.server.make(str(tmp_path))
    target = Target(folder, api, first.section())
    restoring._mark(target.settings)  # as it is left by one that was killed
    first.put(key(b"x"), b"x")
    other.put(key(b"x"), b"x")
    elsewhere = target.settings.model_copy(update={"blobs": load(blobs=other.section()).blobs})
    with pytest.raises(ConflictError, match=r"another blobs\.url"):
        await restore(elsewhere, io.BytesIO(made))
    assert other.get(key(b"x")) == b"x"
    assert await target.restore(made) == 1
    assert first.keys() == [key(SOURCE)] and await fsck(target.settings) == []


@pytest.mark.sqlite
async def test_a_folder_moves_into_a_bucket_by_copying_it(folder: str, bucket: s3.Bucket) -> None:
    """docs/operations.md says so: the names are the same."""
    async with Api(folder) as api:
        await api.push("etl.py", SOURCE)
        settings, names = api.settings, api.files()
    for name in names:
        bucket.put(name, (Path(settings.blobs_folder) / name).read_bytes())
        (Path(settings.blobs_folder) / name).unlink()
    moved = settings.model_copy(update={"blobs": load(blobs=bucket.section()).blobs})
    assert await fsck(moved) == []
    assert {finding.rule for finding in await fsck(settings)} == {"blob-missing"}


@pytest.mark.sqlite
async def test_nobody_works_in_the_prefix_of_another_one(folder: str, bucket: s3.Bucket) -> None:
    settings = []
    for name in ("a", "b"):
        os.makedirs(f"{folder}/{name}")
        async with Api(f"{folder}/{name}", blobs=bucket.section()) as api:
            settings.append(api.settings)
    async with opened(settings[0], sole=True):
        pass
    for again in (opened(settings[1], sole=True), opened(settings[1], sole=True)):
        with pytest.raises(SettingsError, match="another dagseal's"):
            async with again:
                pass
    with pytest.raises(SettingsError, match="another dagseal's"):
        await fsck(settings[1], repair=True)
    async with opened(settings[0], sole=True):
        pass


def config_of(folder: str, section: dict[str, Any]) -> str:
    path = f"{folder}/api.toml"
    lines = "".join(f"{name} = {value!r}\n" for name, value in section.items())
    with open(path, "w") as file:
        file.write(f'[api]\nport = 0\nstate_folder = "{folder}/state"\n[blobs]\n{lines}')
        file.write("[retention]\nkeep_releases = 1\nkeep_days = 1\n")
    return path


@pytest.mark.sqlite
async def test_the_process_starts_with_a_bucket_and_says_why_it_does_not(
    folder: str, bucket: s3.Bucket, proxy: Proxy
) -> None:
    async with Api(folder, blobs=bucket.section()) as api:
        api.clock.at = T0 - 3000 * DAY * 1_000_000
        for number in range(3):
            assert (await api.push("etl.py", SOURCE + b"#" * number)).status == 201

    async def started(**changes: Any) -> tuple[int, str]:
        command = [sys.executable, "-m", "submit_api", "--config", config_of(folder, bucket.section(**changes))]
        process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
        assert process.stderr is not None
        said = b""
        async for line in process.stderr:
            said += line
            if b'"event": "ready"' in line:
                async with asyncio.timeout(60):
                    while len(await asyncio.to_thread(bucket.keys)) > 1:  # it retires, as it serves
                        pass
                process.send_signal(signal.SIGTERM)
        return await process.wait(), said.decode()

    code, said = await started(endpoint="http://127.0.0.1:1")
    assert code == 75 and "the bucket cannot be asked now" in said
    proxy.fail("PUT", "403", code="AccessDenied")
    code, said = await started(endpoint=proxy.url)
    assert code == 2 and "s3:ListBucket" in said and "AccessDenied" in said
    proxy.heal()
    proxy.fail("PUT", "conditions")
    code, said = await started(endpoint=proxy.url)
    assert code == 2 and "If-None-Match" in said
    code, said = await started(url="s3://no-such-bucket/p")
    assert code == 2 and "NoSuchBucket" in said
    assert len(bucket.keys()) == 3
    code, said = await started()
    assert code == 0 and len(bucket.keys()) == 1, said
    for text in (s3.SECRET, s3.KEY_ID):
        assert text not in said


@pytest.mark.sqlite
@pytest.mark.parametrize("what", [HOLD, DONE])
async def test_kill_9_before_and_after_the_bucket_has_it(
    folder: str, bucket: s3.Bucket, proxy: Proxy, what: str
) -> None:
    """Nothing was acknowledged: at most bytes are left that nothing names, and the same push then ends as any other."""
    source = SOURCE + b"# padding\n" * 10_000  # too large for memory
    settings = load(config_of(folder, bucket.section(endpoint=proxy.url)))
    token = await bootstrap(settings)
    launcher = DescribingPeer(f"{folder}/l.sock")
    await launcher.start()
    command = [sys.executable, "-m", "submit_api", "--config", f"{folder}/api.toml"]
    environment = {**os.environ, "DAGSEAL__API__LAUNCHER_SOCKET": launcher.path}

    async def pushed(session: aiohttp.ClientSession, port: int) -> int:
        url, headers = f"http://127.0.0.1:{port}/v1/archives/etl.py", {"Authorization": f"Bearer {token}"}
        async with session.put(url, data=source, headers=headers) as answer:
            return answer.status

    async with aiohttp.ClientSession() as session:
        process, port = await started(command, environment)
        proxy.fail("PUT", what, 1)
        pushing = asyncio.create_task(pushed(session, port))
        await asyncio.wait_for(proxy.held.wait(), 60)
        process.kill()
        await process.wait()
        with pytest.raises(aiohttp.ClientError):
            await pushing
        assert bucket.keys() == ([key(source)] if what == DONE else [])
        found = {finding.rule for finding in await fsck(settings)}
        assert found == ({"temporary-file", "blob-dangling"} if what == DONE else {"temporary-file"})
        process, port = await started(command, environment)
        assert await pushed(session, port) == 201
        process.terminate()
        assert await process.wait() == 0
    await launcher.stop()
    assert bucket.keys() == [key(source)] and await fsck(settings) == []


async def started(command: list[str], environment: dict[str, str]) -> tuple[asyncio.subprocess.Process, int]:
    """A process that serves, and where."""
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE, env=environment)
    assert process.stderr is not None
    async for line in process.stderr:
        if b'"event": "ready"' in line:
            return process, int(json.loads(line)["port"])
    raise AssertionError("it did not start")

"""A backup of a busy service, restored elsewhere, on the same database and on the other one; and every way to spoil it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import pytest
from api_rig import SOURCE, Api, DescribingPeer, dag_entry
from test_api_migrations import REVISIONS
from test_api_storage import filled

from integrity.digests import Digest
from integrity.errors import (
    ConflictError,
    DagsealError,
    DigestMismatchError,
    FetchError,
    MalformedError,
    SettingsError,
)
from submit_api.backup_file import Head, Writer
from submit_api.backups import backup
from submit_api.blobs.local import LocalStore
from submit_api.fsck import fsck
from submit_api.refusals import UnavailableError
from submit_api.registry import archives, ledger, migrate, retention, rows, secrets
from submit_api.restoring import restore
from submit_api.running import RESTORE_MARKER, opened
from submit_api.settings import Settings, load
from tests import postgres
from tests.postgres import Server
from vocabulary.zipwriter import pack

OTHER = SOURCE.replace(b"etl", b"other")


def source(number: int) -> bytes:
    return SOURCE.replace(b"etl", f"dag{number}".encode())


class Target:
    """Where a backup goes: an empty folder and an empty database."""

    def __init__(self, folder: str, url: str) -> None:
        self.settings: Settings = load(api={"state_folder": folder, "port": 0}, database={"url": url})

    def take_keys(self, settings: Settings) -> None:
        shutil.copytree(f"{settings.api.state_folder}/keys", f"{self.settings.api.state_folder}/keys")

    async def content(self) -> dict[str, list[dict[str, Any]]]:
        return await content(self.settings)

    def files(self) -> list[str]:
        """All but the keys and the database's own."""
        top = self.settings.api.state_folder
        found = [os.path.relpath(os.path.join(at, name), top) for at, _, names in os.walk(top) for name in names]
        return sorted(name for name in found if not name.startswith(("keys/", "dagseal.db", "api.lock", "new.db")))


async def content(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table."""
    async with opened(settings, migrating=False) as service, service.database.read() as tx:
        return {table.name: [row async for row in rows.dumped(tx, table)] for table in await rows.tables(tx)}


async def empty(settings: Settings) -> bool:
    async with opened(settings, migrating=False, restoring=True) as service, service.database.read() as tx:
        return await rows.occupied(tx) is None


@pytest.fixture
def target(request: pytest.FixtureRequest, folder: str, database: str) -> Iterator[Target]:
    """On the other database than the one that is backed up: every restore here is a move as well."""
    if database == "postgresql" or postgres.why_not():
        yield Target(f"{folder}/new", f"sqlite+aiosqlite:///{folder}/new/new.db")
        return
    server: Server = request.getfixturevalue("postgres_server")
    url = server.make_empty()
    yield Target(f"{folder}/new", url)
    server.drop(url)


async def taken(api: Api, **options: bool) -> bytes:
    file = io.BytesIO()
    await backup(api.settings, file, **options)
    return file.getvalue()


async def test_a_backup_of_a_service_that_takes_uploads_is_one_state_of_it(api: Api, target: Target) -> None:
    await filled(api)
    enough = asyncio.Event()
    pushing = asyncio.create_task(push_until(api, enough))
    while not (await api.call("GET", "/v1/archives", token=api.admin)).json["archives"][1:]:
        await asyncio.sleep(0)
    made = await taken(api)
    enough.set()
    count = await pushing
    target.take_keys(api.settings)
    done = await restore(target.settings, io.BytesIO(made))
    assert await fsck(target.settings) == []
    there, here = await target.content(), await content(api.settings)
    assert 2 <= len(there["archives"]) <= len(here["archives"]) == count + 1
    releases = {(row["archive"], row["number"]): row for row in here["releases"]}
    assert all(releases[row["archive"], row["number"]] == row for row in there["releases"])
    assert done.blobs == len({row["digest"] for row in there["releases"]})


async def push_until(api: Api, enough: asyncio.Event) -> int:
    """One archive after the other; how many."""
    count = 0
    while not enough.is_set():
        name = f"many{count}.py"
        api.launcher.dags[name] = [dag_entry(f"dag{count}", member=name)]
        answer = await api.push(name, source(count))
        assert answer.status == 201, answer.body
        count += 1
    return count


async def test_everything_that_was_there_is_there_and_works(api: Api, target: Target, folder: str) -> None:
    await filled(api)
    api.launcher.dags["other.py"] = [dag_entry("other", member="other.py")]
    await api.push("other.py", OTHER)
    made = await taken(api)
    before = await content(api.settings)
    target.take_keys(api.settings)
    done = await restore(target.settings, io.BytesIO(made))
    assert (done.blobs, done.logs, done.cancelled, done.was_done) == (2, 2, 0, False)
    after = await target.content()
    assert after["audit_events"].pop()["action"] == "backup.restore"
    assert after == before
    async with opened(target.settings) as service, service.database.write() as tx:
        release = await archives.release(tx, "etl.py", 1)
        assert release is not None and (await service.manifest_of(release)).manifest.digest == Digest.of(SOURCE)
        [launch, *_] = await ledger.listed(tx, dag_id="etl", state="running", limit=9, seen_by=None)
        assert service.logs.read(launch.id, 0, 100) == b"log\n"
        [secret] = await secrets.listed(tx, "connection")
        assert b"http://h" not in secret.ciphertext
    await serves(target, api, folder)


async def serves(target: Target, old: Api, folder: str) -> None:
    """The restored service, with an administrator of before: it takes uploads, and events go on after the last one."""
    os.makedirs(f"{folder}/peer")
    fresh = Api(f"{folder}/peer")
    fresh.settings = target.settings.model_copy(
        update={"api": target.settings.api.model_copy(update={"launcher_socket": f"{folder}/peer/l.sock"})}
    )
    fresh.launcher = DescribingPeer(f"{folder}/peer/l.sock")
    async with fresh:
        answer = await fresh.push("etl.py", SOURCE + b"#\n", token=old.admin)
        assert (answer.status, answer.json["number"]) == (201, 2), answer.body
        numbers = [event["seq"] for event in await fresh.events()]
        assert numbers == sorted(set(numbers))
        assert await fresh.fsck() == []


async def test_what_was_queued_may_have_run_and_is_cancelled(api: Api, target: Target) -> None:
    await filled(api)
    launch_id = (await api.launch(try_number=7)).json["id"]
    made = await taken(api)
    target.take_keys(api.settings)
    assert (await restore(target.settings, io.BytesIO(made))).cancelled == 1
    after = await target.content()
    [row] = [row for row in after["launches"] if row["id"] == launch_id]
    assert row["state"] == "cancelled" and "may have run" in row["detail"]
    assert [event["action"] for event in after["audit_events"][-2:]] == ["launch.cancel", "backup.restore"]


async def test_a_move_keeps_what_is_queued(api: Api, target: Target) -> None:
    await filled(api)
    await api.launch(try_number=7)
    target.take_keys(api.settings)
    assert (await restore(target.settings, io.BytesIO(await taken(api)), keep_queued=True)).cancelled == 0
    assert [row["state"] for row in (await target.content())["launches"]].count("queued") == 1


async def test_the_keys_are_only_in_it_when_that_is_said(api: Api, target: Target) -> None:
    await filled(api)
    made, whole = await taken(api), await taken(api, unsafe_with_keys=True)
    keys = []
    for path in (api.settings.signing_key_file, api.settings.row_key_file):
        with open(path, "rb") as file:
            keys.append(file.read().strip())
    for key in keys:
        assert key not in made and bytes.fromhex(key.decode()) not in made and key in whole
    with pytest.raises(SettingsError, match="cannot read the key file"):
        await restore(target.settings, io.BytesIO(made))
    await restore(target.settings, io.BytesIO(whole))
    assert await fsck(target.settings) == []
    assert os.stat(target.settings.row_key_file).st_mode & 0o777 == 0o600
    actions = [(event["action"], event["detail"]) for event in await api.events()]
    assert [detail for action, detail in actions if action == "backup.create"] == ["without keys", "with the keys"]


def cut(made: bytes) -> bytes:
    return made[: len(made) // 2]


def unsigned(made: bytes) -> bytes:
    return rewritten(made, lambda name, data: None if name == "end.json" else data)


def changed_row(made: bytes) -> bytes:
    return rewritten(
        made, lambda name, data: data.replace(b'"admin":false', b'"admin":true') if "tokens" in name else data
    )


def changed_blob(made: bytes) -> bytes:
    return rewritten(made, lambda name, data: data.replace(b"pass", b"fail") if name.startswith("blobs/") else data)


def without_a_log(made: bytes) -> bytes:
    return rewritten(made, lambda name, data: None if name.startswith("logs/") else data)


def stray_member(made: bytes) -> bytes:
    return rewritten(made, lambda name, data: data, **{"../evil": b""})


def rewritten(made: bytes, change: Callable[[str, bytes], bytes | None], **more: bytes) -> bytes:
    """The same tar with other members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(made)) as old, tarfile.open(fileobj=out, mode="w") as new:
        for entry in old:
            file = old.extractfile(entry)
            assert file is not None
            data = change(entry.name, file.read())
            if data is not None:
                entry.size = len(data)
                new.addfile(entry, io.BytesIO(data))
        for name, data in more.items():
            entry = tarfile.TarInfo(name)
            new.addfile(entry, io.BytesIO(data))
    return out.getvalue()


SPOILT: dict[str, tuple[Callable[[bytes], bytes], type[DagsealError], str]] = {
    "cut": (cut, MalformedError, "cannot be read to its end|ends before its signature"),
    "unsigned": (unsigned, MalformedError, "ends before its signature"),
    "changed row": (changed_row, MalformedError, "not what was signed"),
    "changed blob": (changed_blob, DigestMismatchError, "the backup's blobs/"),
    "without a log": (without_a_log, MalformedError, "not what was signed"),
    "stray member": (stray_member, MalformedError, "has no place in one"),
    "no backup": (lambda made: b"hello" * 1000, MalformedError, "cannot be read|not a backup"),
    "empty": (lambda made: b"", MalformedError, "cannot be read|not a backup"),
}


@pytest.mark.parametrize("how", SPOILT)
async def test_a_spoilt_backup_is_refused_and_leaves_nothing(api: Api, target: Target, how: str) -> None:
    await filled(api)
    await api.token("alice")
    spoil, error, said = SPOILT[how]
    target.take_keys(api.settings)
    made = await taken(api)
    spoilt = spoil(made)
    assert spoilt != made
    with pytest.raises(error, match=said):
        await restore(target.settings, io.BytesIO(spoilt))
    assert target.files() == [] and await empty(target.settings)
    await restore(target.settings, io.BytesIO(made))
    assert await fsck(target.settings) == []


async def test_another_services_backup_or_row_key_is_refused(api: Api, target: Target, folder: str) -> None:
    await filled(api)
    made = await taken(api)
    target.take_keys(api.settings)
    for path, said in ((target.settings.row_key_file, "is not whole"), (target.settings.signing_key_file, "signed")):
        with open(path, "w") as file:
            file.write("ab" * 32 + "\n")
        with pytest.raises(DagsealError):
            await restore(target.settings, io.BytesIO(made))
        assert target.files() == [] and await empty(target.settings), said


async def test_a_target_with_anything_in_it_is_refused_and_untouched(api: Api, folder: str) -> None:
    await filled(api)
    made = await taken(api)
    before, files = await content(api.settings), api.files()
    with pytest.raises(ConflictError, match="the database is not empty"):
        await restore(api.settings, io.BytesIO(made))
    assert await content(api.settings) == before and api.files() == files
    assert await api.fsck() == []


async def test_a_folder_with_blobs_in_it_is_refused_and_untouched(api: Api, target: Target) -> None:
    await filled(api)
    made = await taken(api)
    target.take_keys(api.settings)
    shutil.copytree(api.settings.blobs_folder, target.settings.blobs_folder)
    files = target.files()
    with pytest.raises(ConflictError, match="holds archives or logs already"):
        await restore(target.settings, io.BytesIO(made))
    assert target.files() == files and await empty(target.settings)


async def test_a_database_that_is_away_costs_no_file(api: Api, target: Target, folder: str) -> None:
    await filled(api)
    made = await taken(api)
    target.take_keys(api.settings)
    shutil.copytree(api.settings.blobs_folder, target.settings.blobs_folder)
    files = target.files()
    away = target.settings.database.model_copy(update={"url": f"postgresql://nobody@/d?host={folder}"})
    with pytest.raises(UnavailableError, match="does not answer"):
        await restore(target.settings.model_copy(update={"database": away}), io.BytesIO(made))
    assert target.files() == files


async def by_hand(api: Api, revision: str) -> bytes:
    """What a dagseal of that revision, which the tables have, would write."""
    file = io.BytesIO()
    writer = Writer(file, Head(id="0" * 32, revision=revision, made_at=1))
    async with api.service.database.read() as tx:
        for table in await rows.tables(tx):
            found = [json.dumps(row) async for row in rows.dumped(tx, table)]
            if found:
                writer.add(f"rows/{table.name}/0", "\n".join(found).encode())
    writer.add(f"blobs/{Digest.of(SOURCE).hex}", SOURCE)
    for launch_id in api.service.logs.sizes():
        writer.add(f"logs/{launch_id}", api.service.logs.read(launch_id, 0, 100))
    writer.finish(api.service.keys.signing)
    return file.getvalue()


async def test_an_older_backup_is_migrated_and_a_newer_one_refused(api: Api, target: Target) -> None:
    await filled(api)
    before = await content(api.settings)
    older = REVISIONS[-2]
    await migrate.downgrade(api.service.database, older)
    made, newer = await by_hand(api, older), await by_hand(api, "9999")
    target.take_keys(api.settings)
    with pytest.raises(SettingsError, match="revision 9999, which this dagseal does not know: take a newer one"):
        await restore(target.settings, io.BytesIO(newer))
    assert target.files() == [] and await empty(target.settings)
    await restore(target.settings, io.BytesIO(made))
    after = await target.content()
    assert after["audit_events"].pop()["action"] == "backup.restore"
    assert [row["token_id"] for row in after["tokens"]] == [row["token_id"] for row in before["tokens"]]
    assert after["releases"] == before["releases"] and after["audit_events"] == before["audit_events"]
    assert await fsck(target.settings) == []  # its log begins with what the backup held


async def test_damage_is_not_backed_up(api: Api) -> None:
    await filled(api)
    path = os.path.join(api.settings.blobs_folder, api.files()[0])
    with open(path, "r+b") as file:
        file.write(b"X")
    with pytest.raises(DigestMismatchError, match="the stored blob"):
        await taken(api)
    os.unlink(path)
    with pytest.raises(DigestMismatchError, match="which a release names"):
        await taken(api)


async def test_what_is_retired_meanwhile_is_no_damage(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(api)
    assert (await api.push("other.py", OTHER)).status == 201
    assert (await api.push("other.py", OTHER + b"# 2\n")).status == 201
    retired, read = Digest.of(OTHER), LocalStore.read

    async def late(store: LocalStore, digest: Digest, first: int, last: int) -> AsyncGenerator[bytes, None]:
        if digest == retired:
            async with api.service.database.write() as tx:
                (head,) = [head for head in await retention.kept(tx) if head.digest == str(retired)]
                await retention.retire(tx, head, api.clock.at)
            await store.remove(digest)
        async for piece in read(store, digest, first, last):
            yield piece

    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "read", late)
        with pytest.raises(FetchError, match="was retired meanwhile: make the backup again"):
            await taken(api)
    assert await taken(api)


def command(*words: str, config: str) -> list[str]:
    return [sys.executable, "-m", "dagseal.cli.app", "--config", config, *words]


def config_of(settings: Settings, path: str) -> str:
    with open(path, "w") as file:
        file.write(f"[api]\nstate_folder = {json.dumps(settings.api.state_folder)}\n[database]\n")
        file.write(f"url = {json.dumps(settings.database.url)}\n")
    return path


async def test_a_restore_that_is_killed_is_no_store_and_is_started_over(
    api: Api, target: Target, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restore reads from a pipe which stops in the middle of a blob that is too large for memory: there it is killed."""
    await filled(api)
    api.launcher.dags["big.zip"] = [dag_entry("big")]
    assert (await api.push("big.zip", pack({"big.py": SOURCE, "table.bin": os.urandom(3_000_000)}))).status == 201
    made = await taken(api)
    target.take_keys(api.settings)
    monkeypatch.delenv("DAGSEAL__DATABASE__URL", raising=False)
    config = config_of(target.settings, f"{folder}/new.toml")
    with tarfile.open(fileobj=io.BytesIO(made)) as tar:
        stop = next(entry.offset_data for entry in tar if entry.size > 3_000_000) + 2_500_000
    process = subprocess.Popen(command("restore", "-", config=config), stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(made[:stop])
    process.stdin.flush()
    while process.poll() is None and not any(name.startswith("blobs/") for name in target.files()):
        await asyncio.sleep(0.01)
    process.kill()
    process.wait(30)
    process.stdin.close()
    assert RESTORE_MARKER in target.files()
    assert [finding.rule for finding in await fsck(target.settings)] == ["restore-unfinished"]
    with pytest.raises(SettingsError, match="a restore began here and did not end"):
        async with opened(target.settings):
            pass
    assert await empty(target.settings)
    await restore(target.settings, io.BytesIO(made))
    assert await fsck(target.settings) == []
    assert RESTORE_MARKER not in target.files()


async def test_a_restore_that_was_killed_after_its_commit_is_only_finished(api: Api, target: Target) -> None:
    await filled(api)
    made, other = await taken(api), await taken(api)
    target.take_keys(api.settings)
    await restore(target.settings, io.BytesIO(made))
    before = await target.content()
    files = target.files()
    with open(f"{target.settings.api.state_folder}/{RESTORE_MARKER}", "w"):
        pass
    with pytest.raises(ConflictError, match="the database is not empty"):
        await restore(target.settings, io.BytesIO(other))
    assert (await restore(target.settings, io.BytesIO(made))).was_done
    assert target.files() == files and await target.content() == before
    assert await fsck(target.settings) == []


def test_the_commands_say_what_they_did_and_refuse_an_existing_file(folder: str, database: str) -> None:
    config = f"{folder}/old.toml"
    with open(config, "w") as file:
        file.write(f'[api]\nport = 0\nstate_folder = "{folder}/state"\n')
    bootstrap = [sys.executable, "-m", "submit_api", "--config", config, "--bootstrap"]
    subprocess.run(bootstrap, check=True, capture_output=True, timeout=60)
    out = f"{folder}/backup"
    words = command("-o", "json", "backup", "--out", out, config=config)
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "the keys are not in it" in done.stderr and json.loads(done.stdout)["rows"] == 5
    assert os.stat(out).st_mode & 0o777 == 0o600 and not os.path.exists(f"{out}.partial")
    again = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert again.returncode == 6 and "is there already" in again.stderr
    into = subprocess.run(command("restore", out, config=config), capture_output=True, text=True, timeout=60)
    assert into.returncode == 6 and "the database is not empty" in into.stderr
    away = os.environ | {"DAGSEAL__DATABASE__URL": f"postgresql://nobody@/d?host={folder}"}
    words = command("backup", "--out", "-", config=config)
    none = subprocess.run(words, capture_output=True, text=True, timeout=60, env=away)
    assert (none.returncode, none.stdout) == (75, "")
    assert "it cannot be reached" in none.stderr and "the database does not answer: try again" in none.stderr

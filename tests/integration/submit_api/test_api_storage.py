"""What lies on disk: fsck finds each kind of damage, repairs leftovers, and the tables migrate up and down."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys

import pytest
from api_rig import SOURCE, Api
from sqlalchemy import text

from integrity.errors import SettingsError
from submit_api import keyfiles
from submit_api.bootstrap import bootstrap
from submit_api.findings import DAMAGE, WARNING, damaged
from submit_api.fsck import fsck
from submit_api.running import opened, state_lock
from submit_api.settings import Settings, load
from vocabulary.claims import Xcom


async def filled(api: Api) -> None:
    """One release, one connection, one worker with a running launch that has a log and one that pushed an XCom."""
    await api.push("etl.py", SOURCE)
    await api.allow("admin")
    await api.connection("db", "http://h", to="admin")
    worker = await api.worker()
    for number in (1, 2):
        await api.launch(try_number=number)
        offer = await worker.take()
        assert offer is not None
        await worker.claimed(offer)
        await worker.post(offer["launch_id"], "log?offset=0", b"log\n", kind="application/octet-stream")
    await worker.finish(offer, xcoms=(Xcom(key="return_value", value="1"),))


async def execute(api: Api, statement: str) -> None:
    async with api.service.database.write() as tx:
        await tx.session.execute(text(statement), {"garbage": os.urandom(32)} if ":garbage" in statement else {})


def blob_path(api: Api) -> str:
    return os.path.join(api.settings.blobs_folder, api.files()[0])


def flip_blob(api: Api) -> None:
    with open(blob_path(api), "r+b") as file:
        file.write(b"X")


def shorten_logs(api: Api) -> None:
    for name in os.listdir(api.settings.logs_folder):
        os.truncate(os.path.join(api.settings.logs_folder, name), 1)


def stray_file(api: Api) -> None:
    with open(os.path.join(api.settings.blobs_folder, "stray"), "w"):
        pass


DISK_DAMAGE = {
    "blob-damaged": flip_blob,
    "blob-missing": lambda api: os.unlink(blob_path(api)),
    "log-short": shorten_logs,
    "foreign-file": stray_file,
}
TABLE_DAMAGE = {
    "manifest-signature": "UPDATE releases SET manifest = :garbage",
    "manifest-disagrees": "UPDATE releases SET owner = 'mallory'",
    "tasks-disagree": "UPDATE tasks SET digest = 'sha512:0'",
    "release-numbers": "UPDATE archives SET latest = 2",
    "active-release": "UPDATE archives SET active = 9",
    "activation-record": "UPDATE archives SET activation = 9",
    "secret-unreadable": "UPDATE secrets SET version = version + 1",
    "xcom-unreadable": "UPDATE xcoms SET key = 'other'",
    "worker-key": "UPDATE workers SET verify_key = :garbage",
    "token-row": "UPDATE tokens SET admin = TRUE WHERE kind = 'worker'",
    "launch-state": "UPDATE launches SET state = 'happy'",
}


async def test_a_filled_store_is_clean(api: Api) -> None:
    await filled(api)
    assert await api.fsck() == []


@pytest.mark.parametrize("rule", DISK_DAMAGE)
async def test_damage_on_disk_is_found(api: Api, rule: str) -> None:
    await filled(api)
    DISK_DAMAGE[rule](api)
    found = await api.fsck()
    assert {finding.rule for finding in found} == {rule}
    assert damaged(found)


@pytest.mark.parametrize("rule", TABLE_DAMAGE)
async def test_damage_in_the_database_is_found(api: Api, rule: str) -> None:
    await filled(api)
    await execute(api, TABLE_DAMAGE[rule])
    found = await api.fsck()
    assert rule in {finding.rule for finding in found}
    assert {finding.level for finding in found} == {DAMAGE}


@pytest.mark.sqlite
async def test_a_dag_of_nobody_is_found(api: Api) -> None:
    await filled(api)
    with sqlite3.connect(f"{api.settings.api.state_folder}/dagseal.db") as connection:  # foreign keys are off there
        connection.execute("DELETE FROM dags")
    rules = {finding.rule for finding in await api.fsck()}
    assert rules == {"dag-owner", "sqlite-foreign-key-check"}


async def test_leftovers_of_a_crash_are_warnings_and_are_repaired(folder: str) -> None:
    async with Api(folder) as api:
        await filled(api)
        blobs = api.settings.blobs_folder
        hexadecimal = "ab" + "0" * 126
        os.makedirs(os.path.join(blobs, "ab"), exist_ok=True)
        for path in (f"{blobs}/.tmp-x", f"{blobs}/ab/{hexadecimal}", f"{api.settings.logs_folder}/{'0' * 32}.log"):
            with open(path, "w"):
                pass
        found = await api.fsck()
        assert {finding.rule for finding in found} == {"temporary-file", "blob-dangling", "log-dangling"}
        assert {finding.level for finding in found} == {WARNING} and not damaged(found)
        settings = api.settings
    repaired = await fsck(settings, repair=True)
    assert len(repaired) == 3 and all(finding.repaired for finding in repaired)
    assert await fsck(settings) == []


async def test_repair_needs_the_service_to_be_stopped(api: Api) -> None:
    with state_lock(api.settings), pytest.raises(SettingsError, match="another process"):
        await fsck(api.settings, repair=True)


def fresh(folder: str) -> Settings:
    return load(api={"state_folder": f"{folder}/state"})


async def test_fsck_of_nothing_says_so(folder: str) -> None:
    with pytest.raises(SettingsError):
        await fsck(fresh(folder))


@pytest.mark.sqlite
async def test_sqlite_is_set_to_keep_what_it_acknowledged(api: Api) -> None:
    async with api.service.database.engine.connect() as connection:
        values = [(await connection.execute(text(f"PRAGMA {name}"))).scalar() for name in
                  ("journal_mode", "synchronous", "foreign_keys")]  # fmt: skip
    assert values == ["wal", 2, 1]


async def test_bootstrap_makes_keys_database_and_a_token_and_keeps_keys(folder: str) -> None:
    settings = fresh(folder)
    first = await bootstrap(settings)
    keys = keyfiles.load(settings)
    second = await bootstrap(settings)
    assert first != second and first.startswith("dgs_")
    again = keyfiles.load(settings)
    assert (again.signing, again.rows.listed()) == (keys.signing, keys.rows.listed())
    for path in (settings.signing_key_file, settings.row_key_file):
        assert os.stat(path).st_mode & 0o777 == 0o600
    with open(settings.verify_key_file) as file:
        assert file.read().strip() == keys.signing.public.raw.hex()
    os.chmod(settings.signing_key_file, 0o640)
    with pytest.raises(SettingsError, match="chmod 600"):
        async with opened(settings):
            pass


def test_the_process_starts_says_ready_and_ends_on_sigterm(folder: str) -> None:
    config = f"{folder}/api.toml"
    with open(config, "w") as file:
        file.write(f'[api]\nport = 0\nstate_folder = "{folder}/state"\n')
    command = [sys.executable, "-m", "submit_api", "--config", config]
    made = subprocess.run([*command, "--bootstrap"], capture_output=True, text=True, check=True, timeout=60)
    assert made.stdout.startswith("dgs_") and "dgs_" not in made.stderr
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if '"event": "ready"' in line:
                break
        second = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert second.returncode == 2 and "another process" in second.stderr
        process.terminate()
        assert process.wait(30) == 0
    with open(config, "a") as file:
        file.write("surprise = 1\n")
    wrong = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2 and "api.surprise" in wrong.stderr

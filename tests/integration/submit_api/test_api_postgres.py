"""What PostgreSQL can do to us that SQLite cannot: be away, be slow to admit it, be set up in another way, be shared."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import pytest
from api_rig import SOURCE, Api
from sqlalchemy import text

from integrity.errors import SettingsError
from submit_api.findings import WARNING
from submit_api.refusals import UnavailableError
from submit_api.registry import people
from submit_api.registry.database import Database
from submit_api.settings import DatabaseSection
from tests.postgres import Server, name_of

KILL_AT_COMMIT = (
    "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$",
    "CREATE CONSTRAINT TRIGGER die AFTER INSERT ON releases DEFERRABLE INITIALLY DEFERRED "
    "FOR EACH ROW EXECUTE FUNCTION die()",
)


@pytest.fixture
def url(postgres_server: Server) -> Iterator[str]:
    made = postgres_server.make()
    yield made
    postgres_server.drop(made)


@pytest.fixture
async def api(url: str) -> AsyncIterator[Api]:
    with tempfile.TemporaryDirectory(prefix="dagseal-") as folder:
        async with Api(folder, database={"url": url, "busy_timeout_seconds": 1}) as running:
            yield running


async def refusal(section: DatabaseSection, *, sole: bool = False) -> Exception:
    database = Database(section, sole=sole)
    try:
        async with database.write() as tx:
            await people.put_group(tx, "intruder", [], None, 1)
    except (SettingsError, UnavailableError) as error:
        return error
    finally:
        await database.close()
    raise AssertionError("it was not refused")


async def test_a_commit_waits_for_the_disk_whatever_the_role_says(postgres_server: Server, url: str) -> None:
    postgres_server.sql(f"ALTER DATABASE {name_of(url)} SET synchronous_commit = off")
    database = Database(DatabaseSection(url=url))
    async with database.write() as tx:
        assert (await tx.session.execute(text("SHOW synchronous_commit"))).scalar() == "on"
    await database.close()


async def test_a_server_that_does_not_sync_is_refused(postgres_server: Server, url: str) -> None:
    postgres_server.down()
    postgres_server.up(fsync="off")
    try:
        assert "fsync or full_page_writes off" in str(await refusal(DatabaseSection(url=url)))
    finally:
        postgres_server.down()
        postgres_server.up()
    assert postgres_server.sql("SELECT * FROM groups", name_of(url)) == []


@pytest.mark.parametrize(
    "how", ["ENCODING 'LATIN1' LOCALE 'C'", "LOCALE_PROVIDER icu ICU_LOCALE 'en' LOCALE 'C.UTF-8'"]
)
async def test_a_database_of_another_encoding_or_order_is_refused(postgres_server: Server, how: str) -> None:
    made = postgres_server.make("template0", how)
    error = await refusal(DatabaseSection(url=made))
    assert isinstance(error, SettingsError)
    assert f"CREATE DATABASE {name_of(made)} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'" in str(error)
    postgres_server.drop(made)


async def test_the_password_comes_from_a_file_that_only_its_owner_reads(postgres_server: Server, url: str) -> None:
    bare = url.replace(f":{postgres_server.password}@", "@")
    assert urlsplit(bare).password is None
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/password"
        with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(postgres_server.password + "\n")
        section = DatabaseSection(url=bare, password_file=path)
        database = Database(section)
        async with database.write() as tx:
            await people.put_group(tx, "team", [], None, 1)
        await database.close()
        os.chmod(path, 0o644)
        assert "readable by others: chmod 600 it" in str(await refusal(section))
        os.chmod(path, 0o600)
        with open(path, "w") as file:
            file.write("wrong-word\n")
        error = await refusal(section)
        assert isinstance(error, SettingsError) and "password authentication failed" in str(error)
        assert "wrong-word" not in str(error)
    assert [row["name"] for row in postgres_server.sql("SELECT name FROM groups", name_of(url))] == ["team"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://h/d?surprise=1&sslmode=never", "PostgreSQL cannot be used with database.url as it is"),
        ("mysql://h/d", "database.url is not one of"),
        ("postgresql+psycopg2://h/d", "database.url is not one of"),
    ],
)
async def test_a_url_that_cannot_be_used_is_refused_in_words(url: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        raise await refusal(DatabaseSection(url=url))


async def test_only_one_process_serves_a_database_and_it_is_named(postgres_server: Server, api: Api) -> None:
    section = api.settings.database_section
    first = Database(section, sole=True)
    async with first.write() as tx:
        await people.put_group(tx, "first", [], None, 1)
    error = await refusal(section, sole=True)
    assert isinstance(error, UnavailableError)
    assert f"another process works on this database: dagseal {os.getpid()} on " in str(error)
    await first.close()
    second = Database(section, sole=True)
    async with second.write() as tx:
        assert set(await people.groups(tx)) == {"first"}
    await second.close()


async def test_who_lost_the_database_to_another_process_writes_no_more(postgres_server: Server, api: Api) -> None:
    section = api.settings.database_section
    first, second = Database(section, sole=True), Database(section, sole=True)
    async with first.write() as tx:
        own = (await tx.session.execute(text("SELECT pg_backend_pid()"))).scalar()
    postgres_server.sql(f"SELECT pg_terminate_backend({own}, 5000)")
    async with second.write() as tx:
        await people.put_group(tx, "second", [], None, 1)
    with pytest.raises(UnavailableError, match="another process works on this database"):
        async with first.write() as tx:
            await people.put_group(tx, "first", [], None, 1)
    await second.close()
    async with first.write() as tx:  # nobody else any more
        assert set(await people.groups(tx)) == {"second"}
    await first.close()


async def test_a_transaction_that_is_cancelled_ends_as_cancelled(api: Api) -> None:
    first, second = (
        Database(api.settings.database_section.model_copy(update={"busy_timeout_seconds": 60})) for _ in "ab"
    )

    async def write() -> None:
        async with second.write():
            raise AssertionError("two writers at once")

    async with first.write() as tx:
        waiting = asyncio.create_task(write())
        query = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        while not (await tx.session.execute(query)).scalar():
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with second.write() as tx:
        assert await people.groups(tx) == {}
    for database in (first, second):
        await database.close()


async def test_a_writer_that_is_kept_waiting_too_long_is_told(api: Api) -> None:
    other = Database(api.settings.database_section)
    async with other.write() as tx:
        await people.groups(tx)
        answer = await api.call("PUT", "/v1/groups/team", token=api.admin, json={"members": []})
        assert (answer.status, answer.slug) == (503, "unavailable")
    await other.close()
    assert (await api.call("GET", "/v1/groups", token=api.admin)).json["groups"] == []


async def test_a_server_that_is_away_is_a_503_and_comes_back_by_itself(postgres_server: Server, api: Api) -> None:
    await api.push("etl.py", SOURCE)
    before = api.files()
    postgres_server.down()
    try:
        for method, path, body in (
            ("GET", "/v1/archives", None), ("PUT", "/v1/archives/etl.py", SOURCE + b"#"), ("POST", "/v1/launches", b"{}"),
        ):  # fmt: skip
            answer = await api.call(method, path, token=api.admin, body=body)
            assert (answer.status, answer.slug) == (503, "unavailable"), answer.body
            assert answer.headers["Retry-After"] == "5"
            assert answer.json["detail"] == "the database does not answer: try again"
        ready = await api.call("GET", "/readyz")
        assert ready.status == 503 and ready.json["checks"]["database"] == "cannot be read: UnavailableError"
        assert api.files() == before
    finally:
        postgres_server.up()
    assert (await api.push("etl.py", SOURCE + b"#")).status == 201
    assert (await api.call("GET", "/readyz")).status == 200
    assert await api.fsck() == []


async def test_a_connection_lost_while_an_upload_commits_leaves_at_most_a_warning(
    postgres_server: Server, api: Api, url: str
) -> None:
    for statement in KILL_AT_COMMIT:
        postgres_server.sql(statement, name_of(url))
    answer = await api.push("etl.py", SOURCE)
    assert (answer.status, answer.slug) == (503, "unavailable"), answer.body
    assert [(found.level, found.rule) for found in await api.fsck()] == [(WARNING, "blob-dangling")]
    assert (await api.call("GET", "/v1/archives", token=api.admin)).json["archives"] == []
    postgres_server.sql("DROP TRIGGER die ON releases", name_of(url))
    again = await api.push("etl.py", SOURCE)
    assert (again.status, again.json["number"]) == (201, 1)
    assert await api.fsck() == []

"""What both databases promise: one writer, snapshots, one order of text, and the same text refused."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from api_rig import SOURCE, Api
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from submit_api import identity
from submit_api.refusals import InvalidRequestError
from submit_api.registry import archives, events, people
from submit_api.registry.database import Database, Transaction
from submit_api.registry.records import Event

EVENT = Event(
    at=1, principal="p", token_id="t", address="", action="a", object="o", digest="", verdict="accepted", detail="d"
)


async def count_up(database: Database, times: int) -> None:
    """Read, then write what was read and one more."""
    for _ in range(times):
        async with database.write() as tx:
            at = (await tx.session.execute(text("SELECT latest FROM archives WHERE name = 'etl.py'"))).scalar_one()
            await asyncio.sleep(0)
            await tx.session.execute(text("UPDATE archives SET latest = :next"), {"next": at + 1})


async def test_no_write_of_two_processes_is_lost_or_fails(api: Api) -> None:
    await api.push("etl.py", SOURCE)
    other = Database(api.settings.database_section)
    await asyncio.gather(*(count_up(database, 10) for database in (api.service.database, other) for _ in range(3)))
    await other.close()
    async with api.service.database.read() as tx:
        found = await archives.find(tx, "etl.py")
    assert found is not None and found.latest == 1 + 60


async def newest(database: Database) -> int:
    async with database.read() as tx:
        return await events.newest(tx)


async def add_together(database: Database, times: int) -> None:
    """The events whose number is decided by what was read, in a transaction of one trip."""
    for _ in range(times):
        async with database.write_together() as tx:
            await tx.together(lambda tx: events.add_all(tx, [EVENT, EVENT]))


async def test_what_two_processes_do_together_with_the_database_is_one_after_the_other(api: Api) -> None:
    other = Database(api.settings.database_section)
    await asyncio.gather(*(add_together(database, 10) for database in (api.service.database, other) for _ in range(3)))
    await other.close()
    async with api.service.database.read() as tx:
        found = await events.page(tx, events.Query(), limit=1000)
    assert [event.seq for event in found if event.object == "o"] == list(range(found[-1].seq - 119, found[-1].seq + 1))


async def test_what_is_done_together_and_fails_leaves_nothing(api: Api) -> None:
    before = await newest(api.service.database)
    with pytest.raises(RuntimeError, match="unfinished"):
        async with api.service.database.write_together() as tx:
            await tx.together(lambda tx: events.add_all(tx, [EVENT]))
            raise RuntimeError("unfinished")
    assert await newest(api.service.database) == before
    await add_together(api.service.database, 1)
    assert await newest(api.service.database) == before + 2


@pytest.mark.sqlite
async def test_what_is_done_together_waits_for_nothing_else(api: Api) -> None:
    async def add_and_wait(tx: Transaction) -> None:
        await events.add_all(tx, [EVENT])
        await asyncio.sleep(0)

    before = await newest(api.service.database)
    with pytest.raises(RuntimeError, match="than its statements"):
        async with api.service.database.write_together() as tx:
            await tx.together(add_and_wait)
    assert await newest(api.service.database) == before


async def test_whose_token_another_process_revokes_is_refused_with_the_next_request(api: Api) -> None:
    token = await api.token("alice")
    for _ in range(3):
        assert (await api.call("GET", "/v1/archives", token=token)).status == 200
    other = Database(api.settings.database_section)
    async with other.write() as tx:
        await people.revoke_tokens(tx, 1, token_id=identity.read(token)[0])
    assert (await api.call("GET", "/v1/archives", token=token)).status == 401
    await other.close()


async def test_a_reader_sees_one_snapshot_and_cannot_write(api: Api) -> None:
    async with api.service.database.read() as before:
        assert await people.groups(before) == {}
        async with api.service.database.write() as tx:
            await people.put_group(tx, "team", ["alice"], None, 1)
        assert await people.groups(before) == {}
        with pytest.raises(DBAPIError, match=r"read-?only"):
            await people.put_group(before, "other", [], None, 1)
    async with api.service.database.read() as after:
        assert await people.groups(after) == {"team": ["alice"]}


async def test_who_looks_at_one_statement_cannot_write_either(api: Api) -> None:
    await api.push("etl.py", SOURCE)
    with pytest.raises(DBAPIError, match=r"read-?only"):
        async with api.service.database.glance() as tx:
            await tx.session.execute(text("UPDATE archives SET latest = 7"))
    async with api.service.database.read() as after:
        found = await archives.find(after, "etl.py")
    assert found is not None and found.latest == 1


async def test_a_transaction_that_fails_leaves_nothing(api: Api) -> None:
    with pytest.raises(ZeroDivisionError):
        async with api.service.database.write() as tx:
            await people.put_group(tx, "team", ["alice"], None, 1)
            raise ZeroDivisionError
    async with api.service.database.read() as tx:
        assert await people.groups(tx) == {}


async def test_text_is_sorted_by_code_point(api: Api) -> None:
    names = ["-b", "B", "Z", "_", "a", "a b", "a.b", "ab", "É", "é", "ﾮ", "𝒳"]
    for name in reversed(names):
        answer = await api.call("PUT", f"/v1/variables/{name}", token=api.admin, json={"value": "v"})
        assert answer.status == 201, answer.body
    listed = (await api.call("GET", "/v1/variables", token=api.admin)).json["variables"]
    assert [entry["name"] for entry in listed] == names == sorted(names)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"detail": "a\0b"}, "detail holds a NUL"),
        ({"detail": "a\udc80"}, "detail holds half of a surrogate pair"),
        ({"action": "a" * 65}, "action has 65 characters, at most 64 can be stored"),
    ],
)
async def test_text_that_one_database_cannot_hold_is_refused_by_both(
    api: Api, changes: dict[str, str], said: str
) -> None:
    before = len(await api.events())
    with pytest.raises(InvalidRequestError, match=said) as caught:
        async with api.service.database.write() as tx:
            await events.add(tx, replace(EVENT, object="first"))
            await events.add(tx, replace(EVENT, **changes))
    assert caught.value.status == 422 and "a\0b" not in str(caught.value)
    assert len(await api.events()) == before


async def test_text_of_exactly_the_columns_length_is_stored(api: Api) -> None:
    async with api.service.database.write() as tx:
        await events.add(tx, replace(EVENT, action="é" * 64))
    assert (await api.events())[-1]["action"] == "é" * 64


@pytest.mark.parametrize(
    "path", ["/v1/launches/%00", "/v1/connections/a%00b", "/v1/launches?dag_id=%00", "/v1/audit?object=launch:%00"]
)
async def test_a_nul_in_path_or_query_is_a_400(api: Api, path: str) -> None:
    answer = await api.call("GET", path, token=api.admin)
    assert (answer.status, answer.slug) == (400, "bad-request")
    assert "holds a NUL" in answer.json["detail"]


async def test_a_nul_in_the_words_of_a_launcher_is_replaced(api: Api) -> None:
    await api.push("etl.py", SOURCE)
    await api.allow("admin")
    worker = await api.worker()
    launch_id = (await api.launch()).json["id"]
    offer = await worker.take()
    assert offer is not None
    await worker.claimed(offer)
    assert (await worker.finish(offer, "failed", detail="died: \0!")).status == 200
    ended = (await api.call("GET", f"/v1/launches/{launch_id}", token=api.admin)).json
    assert (ended["state"], ended["detail"]) == ("failed", "died: \ufffd!")

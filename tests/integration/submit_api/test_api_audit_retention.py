"""Retention of the audit log: what may leave, what says so, and what fsck finds when something else left."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from api_rig import Api
from sqlalchemy import text

from dagseal.cli.app import run
from submit_api.audit_retention import remove_old

DAY = 86_400


async def filled(api: Api, days: int = 4) -> list[int]:
    """One connection a day; the numbers of their events."""
    for number in range(days):
        await api.connection(f"c{number}", "http://h")
        api.clock.forward(DAY)
    return [event["seq"] for event in await api.events() if event["action"] == "connection.write"]


async def export(api: Api, query: str = "") -> None:
    answer = await api.call("GET", f"/v1/audit?{query}", token=api.admin, headers={"Accept": "application/jsonl"})
    assert answer.status == 200


async def removals(api: Api) -> list[tuple[str, str]]:
    return [(event["object"], event["detail"]) for event in await api.events() if event["action"] == "audit.remove"]


async def numbers(api: Api) -> list[int]:
    return [event["seq"] for event in await api.events()]


def keeping(folder: str, **settings: Any) -> Api:
    return Api(folder, audit={"keep_days": 2, **settings})


async def test_all_is_kept_unless_it_is_said(api: Api) -> None:
    await filled(api)
    await export(api)
    api.clock.forward(10_000 * DAY)
    assert await remove_old(api.service) == 0
    assert (await numbers(api))[0] == 1


async def test_what_is_old_leaves_when_it_was_exported(folder: str) -> None:
    async with keeping(folder) as api:
        made = await filled(api)
        assert await remove_old(api.service) == 0, "not exported"
        await export(api, "action=connection.write")
        await export(api, "limit=3")
        await export(api, f"after={made[0]}")
        assert await remove_old(api.service) == 0, "not without gaps"
        await export(api)
        assert await remove_old(api.service) == made[1]
        assert (await numbers(api))[0] == made[1] + 1
        assert await removals(api) == [
            (f"audit:1-{made[1]}", f"{made[1]} events older than 2 days, numbers 1 to {made[1]}, exported")
        ]
        assert await remove_old(api.service) == 0
        assert await api.fsck() == []
        # A later one tells of all that is gone by then, so the first may go with the rest.
        await export(api, f"after={made[1]}")
        api.clock.forward(30 * DAY)
        newest = (await numbers(api))[-1]
        assert await remove_old(api.service) == newest - made[1] - 1, "all but the last export's own event"
        ((about, _),) = await removals(api)
        assert about == f"audit:1-{newest - 1}"
        assert await numbers(api) == [newest, newest + 1]
        assert await api.fsck() == []


async def test_what_was_not_exported_leaves_only_if_that_is_said_too(folder: str) -> None:
    async with keeping(folder, unsafe_remove_unexported=True) as api:
        made = await filled(api)
        assert await remove_old(api.service) == made[1]
        ((_, detail),) = await removals(api)
        assert detail.endswith(f"numbers 1 to {made[1]}, exported only up to 0")


async def test_an_event_of_a_clock_that_was_wrong_delays_and_loses_nothing(folder: str) -> None:
    async with keeping(folder) as api:
        await api.connection("a", "http://h")
        first = (await numbers(api))[-1]
        api.clock.forward(400 * DAY)
        await api.connection("b", "http://h")
        api.clock.forward(-400 * DAY)
        await api.connection("c", "http://h")
        await export(api)
        api.clock.forward(100 * DAY)
        assert await remove_old(api.service) == first
        assert (await numbers(api))[0] == first + 1


async def test_the_service_looks_by_itself(folder: str) -> None:
    settings = {"watch_interval_seconds": 0.01}
    async with Api(folder, audit={"keep_days": 2}, launches=settings) as api:
        await filled(api)
        await export(api)
        api.clock.forward(3600)
        async with asyncio.timeout(20):
            while not await removals(api):
                await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("DELETE FROM audit_events WHERE seq = 3", "numbers 3 to 3 are missing, and no event says why"),
        ("DELETE FROM audit_events WHERE seq < 3", "numbers 1 to 2 are missing, and no event says why"),
        ("UPDATE audit_events SET seq = seq + 100 WHERE seq = 5", "numbers 5 to 104 are missing"),
        ("UPDATE audit_events SET action = 'audit.remove', object = 'audit:1-2' WHERE seq = 4",
         "number 1 is there, but numbers 1 to 2 are said to be removed"),
    ],
)  # fmt: skip
async def test_what_left_in_another_way_is_damage(api: Api, tmp_path: Path, statement: str, says: str) -> None:
    """Found by fsck, and by who asks over HTTP."""
    await filled(api)
    token = tmp_path / "token"
    token.write_text(api.admin + "\n")
    token.chmod(0o600)
    words = ["--server", api.url, "--token-file", str(token), "audit", "verify"]
    assert await api.fsck() == []
    assert await asyncio.to_thread(run, words) == 0
    async with api.service.database.write() as tx:
        await tx.session.execute(text(statement))
    (finding,) = await api.fsck()
    assert (finding.level, finding.rule) == ("damage", "audit-gap")
    assert finding.detail.startswith(says)
    assert await asyncio.to_thread(run, words) == 1


async def test_an_export_is_verified_without_a_server(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await filled(api)
    answer = await api.call("GET", "/v1/audit", token=api.admin, headers={"Accept": "application/jsonl"})
    lines = answer.body.splitlines(keepends=True)
    path = tmp_path / "audit.jsonl"

    def verified(*kept: bytes) -> int:
        path.write_bytes(b"".join(kept))
        return run(["audit", "verify", "--export", str(path)])

    assert verified(*lines) == 0
    assert verified(*lines[3:]) == 0
    assert verified(*lines[:2], *lines[3:]) == 1
    assert "numbers 3 to 3 are missing, and no event says why" in capsys.readouterr().err
    assert verified(*lines[:2], lines[1]) == 1
    assert verified(b"no event\n") == 1
    assert verified() == 3
    assert run(["audit", "verify", "--export", str(tmp_path / "none")]) == 3

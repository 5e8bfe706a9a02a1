"""The agent against peers that speak the real protocol: every way a launch can go."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agent_host import Host, now
from agent_peers import ARCHIVE, ApiSim, LauncherSim

from integrity.digests import Digest
from vocabulary.keys import SigningKey

ID = "1" * 32


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with ApiSim(now) as api, LauncherSim(str(tmp_path / "l.sock"), api.ring, now) as launcher:
        yield Host(tmp_path, api, launcher)


async def ended(api: ApiSim, launch_id: str = ID) -> str:
    await asyncio.wait_for(api.ended[launch_id].wait(), 10)
    return api.states[launch_id]


async def until(condition: object) -> None:
    async with asyncio.timeout(10):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.001)


async def test_a_launch_from_offer_to_acknowledged_result(host: Host) -> None:
    host.api.queue.put_nowait(host.api.offer(host.launcher))
    async with host.agent():
        assert await ended(host.api) == "success"
        await until(lambda: not host.spooled())
    assert host.launcher.seen_archives == [ARCHIVE]
    assert host.api.logs[ID] == b"hello\nworld\n"
    assert host.api.results[ID].log_digest == Digest.of(host.api.logs[ID])
    assert b"sqlite://" in host.launcher.plaintexts[0]
    assert host.api.calls["blob"] == 1


async def test_the_secret_is_nowhere_on_the_agents_disk(host: Host) -> None:
    host.api.queue.put_nowait(host.api.offer(host.launcher))
    async with host.agent():
        await ended(host.api)
    for found in host.folder.rglob("*"):
        if found.is_file():
            assert b"sqlite://" not in found.read_bytes()


async def test_many_slots_one_fetch(host: Host) -> None:
    ids = [f"{number:032x}" for number in range(16)]
    for launch_id in ids:
        host.api.queue.put_nowait(host.api.offer(host.launcher, launch_id))
    async with host.agent(slots=16):
        for launch_id in ids:
            assert await ended(host.api, launch_id) == "success"
    assert host.api.calls["blob"] == 1


async def test_a_flipped_byte_is_refused_quarantined_and_fetched_again(host: Host) -> None:
    async with host.agent():
        host.api.queue.put_nowait(host.api.offer(host.launcher))
        await ended(host.api)
        data = bytearray(host.blob().read_bytes())
        data[100] ^= 1
        host.blob().write_bytes(data)
        host.api.queue.put_nowait(host.api.offer(host.launcher, "2" * 32))
        assert await ended(host.api, "2" * 32) == "refused"
        error, detail = host.api.refusals["2" * 32]
        assert error == "digest-mismatch"
        assert "quarantine" in detail
        assert len(host.launcher.seen_archives) == 1
        host.api.queue.put_nowait(host.api.offer(host.launcher, "3" * 32))
        assert await ended(host.api, "3" * 32) == "success"
    assert host.launcher.seen_archives == [ARCHIVE, ARCHIVE]
    assert len(list((host.folder / "cache" / "quarantine").iterdir())) == 1


async def test_wrong_bytes_from_the_server_are_refused_and_never_named(host: Host) -> None:
    host.api.blobs[Digest.of(ARCHIVE).hex] = ARCHIVE[:-1] + b"X"
    host.api.queue.put_nowait(host.api.offer(host.launcher))
    async with host.agent():
        assert await ended(host.api) == "refused"
    assert host.api.refusals[ID][0] == "digest-mismatch"
    assert not host.blob().exists()
    assert not list((host.folder / "cache" / "incoming").iterdir())
    assert host.launcher.seen_archives == []


@pytest.mark.parametrize(
    ("changes", "slug"),
    [
        ({"audience": "f" * 64}, "out-of-scope"),
        ({"queue": "gpu"}, "out-of-scope"),
        ({"issued_at": 100, "expires_at": 160}, "expired"),
        ({"release": 2}, "out-of-scope"),
        ({"archive": "other.py"}, "out-of-scope"),
        ({"digest": Digest.of(b"other")}, "digest-mismatch"),
        ({"manifest_digest": Digest.of(b"other")}, "digest-mismatch"),
        ({"task_digest": Digest.of(b"other")}, "digest-mismatch"),
        ({"task_digest": None}, "digest-mismatch"),
        ({"task_id": "nope"}, "not-found"),
        ({"size": 2 * 1024 * 1024}, "security"),
    ],
)
async def test_an_offer_that_does_not_agree_is_refused_before_anything_is_fetched(
    host: Host, changes: dict[str, object], slug: str
) -> None:
    host.api.queue.put_nowait(host.api.offer(host.launcher, **changes))
    async with host.agent():
        assert await ended(host.api) == "refused"
    assert host.api.refusals[ID][0] == slug
    assert "blob" not in host.api.calls


async def test_an_offer_signed_by_somebody_else_is_refused(host: Host) -> None:
    genuine, host.api.key = host.api.key, SigningKey.generate()
    trusted = host.api.ring
    host.api.ring = type(trusted)([host.api.key.public])
    offer = host.api.offer(host.launcher)
    host.api.key, host.api.ring = genuine, trusted
    host.api.queue.put_nowait(offer)
    async with host.agent():
        assert await ended(host.api) == "refused"
    assert host.api.refusals[ID][0] == "signature"


async def test_every_flipped_character_of_ticket_and_manifest_is_refused(host: Host) -> None:
    offer = host.api.offer(host.launcher)
    offers = []
    for key in ("ticket", "manifest"):
        for position in range(0, len(offer[key]), 37):
            old = offer[key][position]
            changed = offer[key][:position] + ("B" if old != "B" else "C") + offer[key][position + 1 :]
            launch_id = f"{len(offers) + 16:032x}"
            host.api.ended[launch_id] = asyncio.Event()
            offers.append({**offer, key: changed, "launch_id": launch_id})
    async with host.agent(slots=4):
        for changed_offer in offers:
            host.api.queue.put_nowait(changed_offer)
            assert await ended(host.api, changed_offer["launch_id"]) == "refused"
    assert len(offers) > 50
    assert host.launcher.seen_archives == []


async def test_an_offer_of_nonsense_does_not_stop_the_agent(host: Host) -> None:
    async with host.agent():
        for nonsense in ([], {"launch_id": 7}, {"launch_id": "../../etc"}, "x"):
            host.api.queue.put_nowait(nonsense)  # type: ignore[arg-type]
        host.api.ended[ID] = asyncio.Event()
        host.api.launcher = host.launcher
        host.api.queue.put_nowait({"launch_id": ID})
        assert await ended(host.api) == "refused"
        assert host.api.refusals[ID][0] == "malformed"
        host.api.queue.put_nowait(host.api.offer(host.launcher, "2" * 32))
        assert await ended(host.api, "2" * 32) == "success"


async def test_a_refused_claim_is_denied_and_its_signed_refusal_reported(host: Host) -> None:
    host.api.refuse_claims = True
    host.api.queue.put_nowait(host.api.offer(host.launcher))
    async with host.agent():
        assert await ended(host.api) == "refused"
    assert host.launcher.denied == ["the launch was cancelled"]
    assert host.launcher.plaintexts == []


async def test_an_api_that_is_away_for_a_while_loses_nothing(host: Host) -> None:
    host.launcher.output = [b"x" * 300_000, b"y" * 300_000]
    host.api.fail = {"take": 2, "blob": 0, "claim": 2, "log": 3, "state": 3}
    host.api.queue.put_nowait(host.api.offer(host.launcher))
    async with host.agent():
        assert await ended(host.api) == "success"
    assert host.api.logs[ID] == b"x" * 300_000 + b"y" * 300_000
    assert host.spooled() == []


async def test_a_lost_answer_does_not_double_the_log(host: Host) -> None:
    host.launcher.output = [b"one\n", b"two\n", b"three\n"]
    host.api.forget_answer = {"log": 2, "state": 1}
    host.api.queue.put_nowait(host.api.offer(host.launcher))
    async with host.agent():
        await ended(host.api)
        await until(lambda: not host.spooled())
    assert host.api.logs[ID] == b"one\ntwo\nthree\n"


async def test_a_result_survives_a_stop_while_the_api_is_away(host: Host) -> None:
    host.api.queue.put_nowait(host.api.offer(host.launcher))
    async with host.agent():
        host.launcher.hold = asyncio.Event()
        await asyncio.wait_for(host.api.running.wait(), 10)
        host.api.fail = {"log": 10_000, "state": 10_000}
        host.launcher.hold.set()
        await until(lambda: f"{ID}.result" in host.spooled())
    assert host.spooled() == [f"{ID}.log", f"{ID}.result"]
    host.api.fail = {}
    async with host.agent():
        assert await ended(host.api) == "success"
        await until(lambda: not host.spooled())
    assert host.api.logs[ID] == b"hello\nworld\n"


async def test_a_result_that_the_api_refuses_is_kept_as_evidence(host: Host) -> None:
    host.api.refuse_results = True
    host.api.queue.put_nowait(host.api.offer(host.launcher))
    async with host.agent():
        await until(lambda: os.path.exists(host.folder / "spool" / "rejected" / f"{ID}.result"))
    assert host.spooled() == []


async def test_the_log_of_a_task_whose_launcher_died_is_still_delivered(host: Host) -> None:
    host.launcher.die_after_claim = True
    host.api.queue.put_nowait(host.api.offer(host.launcher))
    async with host.agent():
        await until(lambda: host.api.logs.get(ID) == b"hello\nworld\n")
        await until(lambda: not host.spooled())
    assert ID not in host.api.results


async def test_cancel_reaches_the_launcher_by_the_heartbeat(host: Host) -> None:
    host.launcher.hold = asyncio.Event()
    host.api.queue.put_nowait(host.api.offer(host.launcher))
    async with host.agent():
        await asyncio.wait_for(host.api.running.wait(), 10)
        host.api.cancel.add(ID)
        assert await ended(host.api) == "cancelled"
    assert host.launcher.cancelled == 1


async def test_a_launch_that_the_api_gave_up_is_cancelled(host: Host) -> None:
    host.launcher.hold = asyncio.Event()
    host.api.queue.put_nowait(host.api.offer(host.launcher))
    async with host.agent():
        await asyncio.wait_for(host.api.running.wait(), 10)
        host.api.states[ID] = "lost"
        await ended(host.api)
    assert host.launcher.cancelled == 1


async def test_stopping_lets_a_running_task_end(host: Host) -> None:
    host.launcher.hold = asyncio.Event()
    host.api.queue.put_nowait(host.api.offer(host.launcher))
    async with host.agent() as place:
        await asyncio.wait_for(host.api.running.wait(), 10)
        place.stopping.set()
        host.launcher.hold.set()
        assert await ended(host.api) == "success"


async def test_stopping_cancels_what_does_not_end_in_time(host: Host) -> None:
    host.launcher.hold = asyncio.Event()
    host.api.queue.put_nowait(host.api.offer(host.launcher))
    async with host.agent(grace_seconds=0.0):
        await asyncio.wait_for(host.api.running.wait(), 10)
    assert host.launcher.cancelled == 1
    assert host.api.states[ID] == "cancelled"


async def test_a_launcher_that_speaks_nonsense_is_refused_by_name(host: Host) -> None:
    host.launcher.say_nonsense = True
    host.api.queue.put_nowait(host.api.offer(host.launcher))
    async with host.agent():
        assert await ended(host.api) == "refused"
    assert host.api.refusals[ID][0] == "malformed"


async def test_nothing_is_taken_while_the_launcher_is_away(tmp_path: Path) -> None:
    async with ApiSim(now) as api:
        launcher = LauncherSim(str(tmp_path / "l.sock"), api.ring, now)
        host = Host(tmp_path, api, launcher)
        api.queue.put_nowait(api.offer(launcher))
        async with host.agent():
            await until(lambda: len(host.log.calls) > 5)
            assert "take" not in api.calls
            async with launcher:
                assert await ended(api) == "success"


async def test_a_wrong_token_is_said_and_the_agent_keeps_trying(host: Host) -> None:
    host.api.tokens = {"Bearer other"}
    host.api.queue.put_nowait(host.api.offer(host.launcher))
    async with host.agent():
        await until(lambda: any(call.kwargs.get("slug") == "unauthorized" for call in host.log.calls))
        host.api.tokens = {"Bearer tok"}
        assert await ended(host.api) == "success"

"""The agent follows a log over HTTP, and what that means for launches."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agent_peers import ARCHIVE, ApiSim, LauncherSim
from test_agent_conversation import ID, Host, ended, now

from integrity.digests import Digest
from integrity.errors import DigestMismatchError, FetchError, NotFoundError, StaleError
from tests.logsim import (
    Log,
    LogServer,
    activated,
    approved,
    following,
    released,
    revoked,
    silent,
    stated,
)
from vocabulary import leaves
from vocabulary.keys import SigningKey
from vocabulary.leaves import Released
from vocabulary.logview import RevokedError
from worker_cache import following as module
from worker_cache.logrules import ForkError

Served = tuple[LogServer, str]


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    server = LogServer(Log())
    async with server.serving() as url:
        yield server, url


async def test_only_what_is_new_is_fetched_and_it_is_there_after_a_restart(served: Served, tmp_path: Path) -> None:
    server, url = served
    key = server.log.key.public
    server.page = 3
    for number in range(1, 4):
        server.log.push("etl.py", number)
    async with following(tmp_path / "c", url, key) as agent:
        await agent.follower.sync()
        await agent.follower.sync()
        server.log.push("etl.py", 4)
        await agent.follower.sync()
        assert agent.wanted == [{Digest.of(b"etl.py@3"): 8}, {Digest.of(b"etl.py@4"): 8}]
        assert agent.events("log followed") == [{"size": 7, "leaves": 7}, {"size": 9, "leaves": 2}]
        known = agent.follower.known
    asked = ["checkpoint", "entries 0-7", "entries 3-7", "entries 6-7", "checkpoint", "checkpoint", "entries 7-9"]
    assert server.asked == asked
    async with following(tmp_path / "c", url, key) as agent:
        assert agent.follower.known == known
        await agent.once()
        assert agent.wanted == [{Digest.of(b"etl.py@4"): 8}], "a new agent is told of all that is active"
        assert agent.follower.known.tree == server.log.tree()
    assert server.asked == [*asked, "checkpoint"]


async def test_a_time_alone_is_written_once_a_minute(served: Served, tmp_path: Path) -> None:
    server, url = served
    async with following(tmp_path / "c", url, server.log.key.public) as agent:
        await agent.follower.sync()
        first = agent.files()
        begun = agent.follower.known.newest
        assert begun is not None
        for later, same in ((59, True), (60, False)):
            agent.at = later
            server.say(server.log.note(at=begun.checkpoint.time + later))
            await agent.follower.sync()
            newest = agent.follower.known.newest
            assert newest is not None and newest.checkpoint.time == begun.checkpoint.time + later
            assert (agent.files() == first) is same


async def test_a_log_that_cannot_be_kept_is_not_known(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, url = served
    async with following(tmp_path / "c", url, server.log.key.public) as agent:
        await agent.follower.sync()
        known, files = agent.follower.known, agent.files()
        server.log.push("etl.py", 1)
        with monkeypatch.context() as broken:

            def full(*_: object) -> None:
                raise OSError(28, "no space left on device")

            broken.setattr("os.fdatasync", full)
            with pytest.raises(FetchError, match="cannot be kept"):
                await agent.follower.sync()
        files["log/leaves"] = server.log.bundle(0, 1)  # the seal was to be written over
        assert (agent.follower.known, agent.files()) == (known, files)
        await agent.follower.sync()
        assert agent.follower.known.tree == server.log.tree()


async def test_what_cannot_be_settled_is_kept_and_stops_what_comes_after(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, url = served
    async with following(tmp_path / "c", url, server.log.key.public) as agent:
        with monkeypatch.context() as broken:

            def fail(*names: object, **folders: object) -> None:
                raise OSError(5, "input/output error")

            broken.setattr("os.rename", fail)
            await agent.follower.sync()
            known, seen = agent.follower.known, server.log.tree()
            server.log.push("etl.py", 1)
            with pytest.raises(FetchError, match="cannot be kept"):
                await agent.follower.sync()
            assert (agent.follower.known, known.tree) == (known, seen)
        await agent.follower.sync()
        assert agent.follower.known.tree == server.log.tree()


async def test_what_was_kept_though_it_looked_as_if_not(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entries are sealed, and then the disk fails: only the disk can tell what is known."""
    server, url = served
    async with following(tmp_path / "c", url, server.log.key.public) as agent:
        await agent.follower.sync()
        server.log.push("etl.py", 1)
        with monkeypatch.context() as broken:
            genuine = os.fdatasync

            def fail(fd: int, *_: object) -> None:
                raise OSError(5, "input/output error")

            def synced(fd: int) -> None:
                genuine(fd)
                broken.setattr("os.ftruncate", fail)
                fail(fd)

            broken.setattr("os.fdatasync", synced)
            with pytest.raises(FetchError, match="cannot be kept"):
                await agent.follower.sync()
        server.asked.clear()
        await agent.follower.sync()
        assert server.asked == ["checkpoint"]
        assert agent.follower.known.tree == server.log.tree()


async def test_many_launches_of_what_is_not_known_yet_ask_once(served: Served, tmp_path: Path) -> None:
    server, url = served
    async with following(tmp_path / "c", url, server.log.key.public) as agent:
        await agent.follower.sync()
        release = server.log.push("etl.py", 1)
        server.asked.clear()
        await asyncio.gather(*(agent.follower.require_launchable(stated(release)) for _ in range(16)))
        assert server.asked == ["checkpoint", "entries 1-3"]
        await agent.follower.require_launchable(stated(release))
        assert len(server.asked) == 2, "what is known and fresh costs no question"


async def test_what_the_log_says_of_a_release_decides(served: Served, tmp_path: Path) -> None:
    server, url = served
    good, gone, waits = server.log.push("a.py", 1), server.log.push("b.py", 1), released("c.py", 1, waits=True)
    server.log.add(waits)
    async with following(tmp_path / "c", url, server.log.key.public) as agent:
        ask = agent.follower.require_launchable
        await ask(stated(good))
        with pytest.raises(NotFoundError, match=r"a\.py@2 is not in the log of 6 leaves"):
            await ask(stated(released("a.py", 2)))
        with pytest.raises(DigestMismatchError, match=r"the digest of a\.py@1"):
            await ask(stated(good, digest=Digest.of(b"other")))
        with pytest.raises(DigestMismatchError, match=r"the manifest of a\.py@1"):
            await ask(stated(good, manifest=Digest.of(b"other")))
        with pytest.raises(RevokedError, match="waits for approval"):
            await ask(stated(waits))
        server.log.add(approved(waits), revoked(gone))
        await ask(stated(waits))
        with pytest.raises(RevokedError, match="was revoked"):
            await ask(stated(gone))


async def test_what_is_known_is_good_until_it_is_too_old(served: Served, tmp_path: Path) -> None:
    server, url = served
    release = server.log.push("etl.py", 1)
    async with following(tmp_path / "c", "http://127.0.0.1:1", server.log.key.public) as agent:
        with pytest.raises(StaleError, match=r"nothing is known .*; asked again: .* cannot be reached"):
            await agent.follower.require_launchable(stated(release))
    async with following(tmp_path / "c", url, server.log.key.public) as agent:
        await agent.follower.sync()
    async with following(tmp_path / "c", "http://127.0.0.1:1", server.log.key.public) as agent:
        agent.at = 590
        await agent.follower.require_launchable(stated(release))
        with pytest.raises(FetchError, match="cannot be reached"):
            await agent.follower.require_launchable(stated(released("etl.py", 2)))
        agent.at = 700
        with pytest.raises(StaleError, match=r"is 70\d s old, the limit is 600 s"):
            await agent.follower.require_launchable(stated(release))


async def test_one_refusal_is_said_once(served: Served, tmp_path: Path) -> None:
    server, url = served
    server.say(b"nonsense")
    turns = iter([True] * 5 + [False])

    async def pause(seconds: float) -> bool:
        count = server.asked.count("checkpoint")
        if count == 3:
            server.checkpoint = server.true_checkpoint
        elif count == 4:
            server.say(b"nonsense")
        return next(turns)

    async with following(tmp_path / "c", url, server.log.key.public) as agent:
        await agent.follower.follow(pause, lambda: iter([0.0] * 9), seconds=0.0)
        assert [event["slug"] for event in agent.events("log not followed")] == ["malformed", "malformed"]


# launches


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with ApiSim(now) as api, LauncherSim(str(tmp_path / "l.sock"), api.ring, now) as launcher:
        yield Host(tmp_path, api, launcher)


async def launch_refused(host: Host, slug: str, text: str) -> None:
    async with host.agent():
        assert await ended(host.api) == "refused"
    assert host.api.refusals[ID][0] == slug
    assert text in host.api.refusals[ID][1]
    assert "blob" not in host.api.calls, "refused before anything is fetched"
    assert host.launcher.seen_archives == []
    assert not host.blob().exists()
    assert [call.kwargs["slug"] for call in host.log.calls if call.args == ("launch refused",)] == [slug]


def offer(host: Host) -> None:
    host.api.queue.put_nowait(host.api.offer(host.launcher))


def of_offer(host: Host) -> Released:
    """The leaf that the offer put into the log."""
    found = leaves.from_bytes(host.api.log.log.entries[-1])
    assert isinstance(found, Released)
    return found


async def test_a_release_that_is_not_in_the_log(host: Host) -> None:
    host.api.logged = False
    offer(host)
    await launch_refused(host, "not-found", "etl.py@1 is not in the log of 1 leaves")


@pytest.mark.parametrize("changes", [{"digest": Digest.of(b"other")}, {"manifest": Digest.of(b"other")}])
async def test_a_release_that_the_log_has_otherwise(host: Host, changes: dict[str, Digest]) -> None:
    offer(host)
    leaf = of_offer(host)
    host.api.log.log.entries.pop()
    host.api.log.log.add(released("etl.py", 1, **{"digest": leaf.digest, "manifest": leaf.manifest, **changes}))
    await launch_refused(host, "digest-mismatch", "not the recorded")


async def test_a_release_that_was_revoked(host: Host) -> None:
    offer(host)
    host.api.log.log.add(activated("etl.py", 1), revoked(of_offer(host)))
    await launch_refused(host, "revoked", "etl.py@1 was revoked")


async def test_a_release_that_waits(host: Host) -> None:
    offer(host)
    leaf = of_offer(host)
    host.api.log.log.entries.pop()
    host.api.log.log.add(released("etl.py", 1, digest=leaf.digest, manifest=leaf.manifest, waits=True))
    await launch_refused(host, "revoked", "waits for approval")


async def test_a_log_that_stands_still(host: Host) -> None:
    offer(host)
    host.api.log.say(host.api.log.log.note(at=now() - 601))
    await launch_refused(host, "stale", "s old, the limit is 600 s")


async def test_a_log_of_somebody_else(host: Host) -> None:
    offer(host)
    host.api.log.say(host.api.log.log.note(key=SigningKey.generate()))
    await launch_refused(host, "signature", "not signed by a key of the log")


async def test_a_fork_stops_all_launches_until_the_log_is_moved_away(host: Host) -> None:
    offer(host)
    async with host.agent() as place:
        assert await ended(host.api) == "success"
        await place.follower.sync()
        true, fork = host.api.log.log, host.api.log.log.copy(1)
        fork.push("etl.py", 1)
        host.api.log.log = fork
        with pytest.raises(ForkError):
            await place.follower.sync()
        host.api.log.log = true
        host.api.queue.put_nowait(host.api.offer(host.launcher, "2" * 32))
        assert await ended(host.api, "2" * 32) == "refused"
        assert host.api.refusals["2" * 32][0] == "fork"
    host.api.queue.put_nowait(host.api.offer(host.launcher, "3" * 32))
    async with host.agent():
        assert await ended(host.api, "3" * 32) == "refused"
        assert host.api.refusals["3" * 32][0] == "fork", "nor does a new agent forget"
    evidence = sorted((host.folder / "cache" / "log" / "evidence").iterdir())
    assert [path.suffix for path in evidence] == [".known", ".seen"]
    (host.folder / "cache" / "log").rename(host.folder / "evidence")
    host.api.queue.put_nowait(host.api.offer(host.launcher, "4" * 32))
    async with host.agent():
        assert await ended(host.api, "4" * 32) == "success"
    assert host.launcher.seen_archives == [ARCHIVE] * 2


async def test_a_slow_log_holds_no_launch_for_long(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAUNCH_SECONDS", 0.1)
    offer(host)
    host.api.log.checkpoint = silent
    await launch_refused(host, "stale", "nothing is known of the server's log yet")

"""T26 lying-log: whoever answers in the server's place, or the server itself, shows an agent another past than it has.

The malicious API is in this process, and has genuine notes and, where it says so, a genuine key. The agent's follower is the
real one. Each lie is told to an agent that knows a log already: its exact error is said in the agent's log, and what it knows,
on disk and in memory, is what it was. What launches make of it, at the real API: `test_t26_lying_proxy.py`.

Seen to fail when weakened: `logrules.announced` and `grown` without any one of their checks; `Follower._sync` that keeps
before `_require_fresh`; `Follower._fetch` without its sum; `_within` without its time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from aiohttp import web

from integrity.digests import Digest
from integrity.errors import (
    DagsealError,
    FetchError,
    MalformedError,
    NotFoundError,
    RollbackError,
    SignatureError,
    StaleError,
)
from tests.logsim import (
    QUEUES,
    Following,
    Log,
    LogServer,
    activated,
    endless,
    following,
    note,
    released,
    revoked,
    silent,
    stated,
)
from vocabulary import checkpoints, lognews, notes, tiles
from vocabulary.keys import SigningKey
from vocabulary.leaves import Keyed
from vocabulary.logview import RevokedError
from worker_cache import following as module
from worker_cache import logrules
from worker_cache.logrules import ForkError

HOUR = 3600
START = 5  # how many leaves an agent knows before it is lied to


@dataclass
class Scene:
    """`server` is the attacker's; `log` is the true one, which has gone on since the agent asked last."""

    server: LogServer
    log: Log
    agent: Following
    first: SigningKey  # the key that the agent pins

    def lie(self, told: Log, **how: object) -> None:
        """Another log, in all that is asked."""
        self.server.log = told
        self.server.say(told.note(**how))  # type: ignore[arg-type]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    log = Log()
    log.push("etl.py", 1)
    log.push("etl.py", 2)
    server = LogServer(log)
    async with server.serving() as url, following(tmp_path / "cache", url, log.key.public) as agent:
        await agent.follower.sync()
        assert agent.follower.known.tree.size == START
        log.push("etl.py", 3)
        yield Scene(server, log, agent, log.key)


Lie = Callable[[Scene], None]
LIES: dict[str, tuple[Lie, type[DagsealError], str]] = {}


def lie(kind: type[DagsealError], text: str) -> Callable[[Lie], Lie]:
    def added(told: Lie) -> Lie:
        LIES[told.__name__.replace("_", " ")] = (told, kind, text)
        return told

    return added


@lie(RollbackError, "the log has 3 leaves and had 5")
def a_rollback_to_what_was_true_once(scene: Scene) -> None:
    scene.lie(scene.log, size=3)


@lie(RollbackError, "s older than one that was seen")
def a_replay_of_an_older_checkpoint_of_the_same_leaves(scene: Scene) -> None:
    scene.lie(scene.log, size=START, at=time.time() - 60)


@lie(MalformedError, "the log's news end within")
def news_that_are_cut_off(scene: Scene) -> None:
    whole = lognews.encode(scene.log.bundle(START, len(scene.log.entries)), [(Digest.of(b"any"), b"any")])

    async def entries(request: web.Request) -> web.StreamResponse:
        return web.Response(body=whole[:-1], content_type=lognews.MEDIA_TYPE)

    scene.lie(scene.log)
    scene.server.entries = entries


@lie(StaleError, r"is 360\d s old, the limit is 600 s.*both clocks are right")
def a_freeze(scene: Scene) -> None:
    """Nothing newer than what was known an hour ago."""
    known = scene.agent.follower.known.newest
    assert known is not None
    scene.server.say(known.note)
    scene.agent.at = HOUR


@lie(StaleError, r"is 3\d\d\d s in the future: set the clock")
def a_checkpoint_of_the_next_hour(scene: Scene) -> None:
    """Fast forward: once believed, no true one would be new enough."""
    scene.lie(scene.log, at=time.time() + HOUR)


@lie(StaleError, r"is 3\d\d\d s in the future: set the clock of this host, or of the server")
def the_agents_clock_is_an_hour_slow(scene: Scene) -> None:
    scene.agent.at = -HOUR


@lie(StaleError, r"is 360\d s old.*see that the server answers, and that both clocks are right")
def the_agents_clock_is_an_hour_fast(scene: Scene) -> None:
    scene.agent.at = HOUR


@lie(SignatureError, "is of log .*, followed is")
def a_checkpoint_of_another_log(scene: Scene) -> None:
    other = Log()
    other.push("etl.py", 1)
    other.push("etl.py", 2)
    scene.lie(other)


@lie(SignatureError, "is of log .*, followed is")
def a_checkpoint_of_another_log_by_the_right_key(scene: Scene) -> None:
    other = Log(key=scene.first, origin=Log().origin)
    scene.lie(other.add(*(released(f"a{n}.py", 1) for n in range(9))))


@lie(SignatureError, "the checkpoint is not signed by")
def the_origin_is_another_than_the_signature_s(scene: Scene) -> None:
    head, _, tail = scene.log.note().rpartition(scene.log.origin.encode())
    scene.server.say(head + Log().origin.encode() + tail)


@lie(SignatureError, "the checkpoint is not signed by a key of the log that is trusted here")
def a_checkpoint_by_an_unknown_key(scene: Scene) -> None:
    scene.lie(scene.log, key=SigningKey.generate())


@lie(SignatureError, "the checkpoint is not signed by the log's key")
def an_unknown_key_and_nothing_new(scene: Scene) -> None:
    scene.lie(scene.log, size=START, key=SigningKey.generate())


@lie(SignatureError, "is not one of key")
def a_key_that_hands_itself_on(scene: Scene) -> None:
    evil, told = SigningKey.generate(), scene.log.copy()
    told.hand_on(evil, by=evil)
    scene.lie(told)


@lie(MalformedError, "signed by the key before it")
def a_key_that_nobody_hands_on(scene: Scene) -> None:
    evil, told = SigningKey.generate(), scene.log.copy()
    told.add(Keyed(at=1, key=evil.public, signature=None))
    scene.lie(told, key=evil)


@lie(SignatureError, "is not one of key")
def a_key_that_was_handed_on_in_another_log(scene: Scene) -> None:
    evil, told = SigningKey.generate(), scene.log.copy()
    told.add(Keyed.handed_on(Log().origin, evil.public, by=scene.first, at=1))
    scene.lie(told, key=evil)


@lie(SignatureError, "not signed by a key of the log that is trusted here")
def the_former_key_after_the_hand_over(scene: Scene) -> None:
    told = scene.log.copy()
    told.hand_on()
    scene.lie(told, key=scene.first)


@lie(SignatureError, "262145 leaves are too many to look for one")
def an_unknown_key_that_makes_us_fetch(scene: Scene) -> None:
    size = START + 2**18 + 1
    scene.server.say(checkpoints.sign(replace(scene.log.stated(), size=size), SigningKey.generate()))


@lie(ForkError, "does not go on from the known one of 5")
def entries_of_which_two_are_swapped(scene: Scene) -> None:
    scene.server.give(tiles.bundle(reversed(scene.log.entries[START:])))


@lie(ForkError, "does not go on from the known one of 5")
def an_entry_with_one_bit_turned(scene: Scene) -> None:
    data = bytearray(scene.log.bundle(START, 7))
    data[40] ^= 1
    scene.server.give(bytes(data))


@lie(ForkError, "does not go on from the known one of 5")
def the_entries_of_somewhere_else(scene: Scene) -> None:
    scene.server.give(scene.log.bundle(0, 2))


@lie(MalformedError, "cut off")
def entries_that_are_cut_off(scene: Scene) -> None:
    scene.server.give(scene.log.bundle(START, 7)[:-1])


@lie(MalformedError, "the server sent none, or too much")
def more_entries_than_were_asked_for(scene: Scene) -> None:
    scene.server.give(scene.log.bundle(START, 7) + scene.log.bundle(5, 6))


@lie(MalformedError, "the server sent none, or too much")
def no_entries_at_all(scene: Scene) -> None:
    scene.server.give(b"")


@lie(MalformedError, "has an empty entry")
def an_entry_of_no_bytes(scene: Scene) -> None:
    scene.server.give(b"\0\0" + scene.log.bundle(6, 7))


@lie(NotFoundError, "no such leaf")
def the_server_has_not_what_it_signs(scene: Scene) -> None:
    size = len(scene.log.entries) + 1
    scene.server.say(checkpoints.sign(replace(scene.log.stated(), size=size), scene.first))


@lie(FetchError, "the answer is longer than 8388608 bytes")
def entries_without_end(scene: Scene) -> None:
    scene.server.entries = endless


@lie(FetchError, "the answer is longer than 16384 bytes")
def a_checkpoint_without_end(scene: Scene) -> None:
    scene.server.checkpoint = endless


@lie(FetchError, "the log's checkpoint did not come within 0.2 s")
def a_checkpoint_that_does_not_come(scene: Scene) -> None:
    scene.server.checkpoint = silent


@lie(FetchError, "the log was not fetched within 0.4 s")
def entries_that_do_not_come(scene: Scene) -> None:
    scene.server.entries = silent


@lie(MalformedError, "a signed note is")
def no_note(scene: Scene) -> None:
    scene.server.say(b"<html>Please sign in</html>")


@lie(MalformedError, "four lines")
def a_note_that_is_no_checkpoint(scene: Scene) -> None:
    scene.server.say(notes.sign("a\nb\n", name=scene.log.origin, key=scene.first).to_bytes())


@lie(MalformedError, "is of an empty log")
def a_log_without_leaves(scene: Scene) -> None:
    scene.lie(scene.log, size=0)


@lie(MalformedError, "makes etl.py@1 active, which cannot be launched")
def a_revoked_release_that_becomes_active(scene: Scene) -> None:
    scene.lie(scene.log.copy().add(revoked(released("etl.py", 1)), activated("etl.py", 1)))


@lie(MalformedError, "out of turn")
def a_release_that_is_replaced(scene: Scene) -> None:
    scene.lie(scene.log.copy().add(released("etl.py", 2, data=b"other bytes")))


@lie(ForkError, "two logs of 5 leaves")
def two_logs_of_one_size(scene: Scene) -> None:
    scene.lie(scene.log.copy(3).add(released("etl.py", 2, data=b"evil"), activated("etl.py", 2)))


@lie(ForkError, "does not go on from the known one of 5: somebody changed its past")
def a_fork_after_a_common_beginning(scene: Scene) -> None:
    told = scene.log.copy(3)
    for number in range(2, 6):
        told.add(released("etl.py", number, data=b"evil"))
    scene.lie(told.add(*(activated("etl.py", n) for n in range(2, 6))))


def shorten(patch: pytest.MonkeyPatch, name: str) -> None:
    """For what never comes; all else may take its time."""
    patch.setattr(module, "CHECKPOINT_SECONDS", 0.2 if name == "a checkpoint that does not come" else 50.0)
    patch.setattr(module, "SYNC_SECONDS", 0.4 if name == "entries that do not come" else 50.0)


@pytest.mark.parametrize("name", LIES)
async def test_a_lie(scene: Scene, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told, kind, text = LIES[name]
    shorten(monkeypatch, name)
    agent, before = scene.agent, scene.agent.files()
    known, wanted = agent.follower.known, list(agent.wanted)
    scene.server.blobs = [(Digest.of(b"any"), b"any")]
    agent.offered.clear()
    told(scene)
    with pytest.raises(DagsealError, match=text) as raised:
        await agent.follower.sync()
    assert type(raised.value) is kind
    assert agent.offered == [], "what came with a lie is thrown away with it"
    await agent.once()
    assert [event["slug"] for event in agent.events("log not followed")] == [kind.slug]
    assert agent.follower.known is known
    after = agent.files()
    evidence = {path: after.pop(path) for path in set(after) - set(before)}
    assert after == before
    assert agent.wanted == [*wanted, known.view.wanted(QUEUES)], "nothing new: only what it is told at its start"
    if kind is ForkError:
        newest = known.newest
        assert newest is not None
        assert sorted(Path(path).suffix for path in evidence) == [".known", ".seen"]
        assert newest.note in evidence.values() and len(set(evidence.values())) == 2
        for data in evidence.values():
            assert checkpoints.verify(data, [scene.first.public]).checkpoint.size >= START
        assert [event["evidence"] for event in agent.events("the log forked")] == [
            next(path for path in evidence).rpartition(".")[0]
        ]
    else:
        assert not evidence


@pytest.mark.parametrize("name", [name for name, (_, kind, _) in LIES.items() if kind is not ForkError])
async def test_after_a_lie_the_truth_is_followed(scene: Scene, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No lie but a fork leaves anything behind that keeps the agent from what is true."""
    told, kind, _ = LIES[name]
    with monkeypatch.context() as short:
        shorten(short, name)
        told(scene)
        with pytest.raises(kind):
            await scene.agent.follower.sync()
    server, scene.agent.at = scene.server, 0.0
    server.log, server.checkpoint, server.entries = scene.log, server.true_checkpoint, server.true_entries
    await scene.agent.follower.sync()
    assert scene.agent.follower.known.tree == scene.log.tree()


async def test_blobs_come_with_leaves_that_are_believed(scene: Scene) -> None:
    """They are passed on as they came, before the log's word of what is wanted: who has it verifies them."""
    scene.server.blobs = [(released("etl.py", 3).digest, b"etl.py@3"), (Digest.of(b"right"), b"wrong")]
    await scene.agent.follower.sync()
    assert scene.agent.offered == scene.server.blobs
    assert scene.agent.follower.known.tree == scene.log.tree()


async def test_the_former_key_goes_on_after_the_agent_knows_the_new_one(scene: Scene) -> None:
    scene.log.hand_on()
    await scene.agent.follower.sync()
    scene.log.push("etl.py", 4)
    scene.lie(scene.log, key=scene.first)
    with pytest.raises(SignatureError, match="handed on since"):
        await scene.agent.follower.sync()
    scene.lie(scene.log)
    await scene.agent.follower.sync()
    assert scene.agent.follower.known.tree == scene.log.tree()


async def test_at_first_contact_nobody_else_is_followed(scene: Scene, tmp_path: Path) -> None:
    """Another server's whole log, which is consistent in itself; and ours, told by somebody without its key."""
    for told in (Log(), Log(key=SigningKey.generate(), entries=scene.log.entries, origin=scene.log.origin)):
        server = LogServer(told)
        async with server.serving() as url, following(tmp_path / "new", url, scene.first.public) as agent:
            with pytest.raises(SignatureError, match=r"is none of the log's 1|not signed by a key of the log"):
                await agent.follower.sync()
            assert agent.follower.known.newest is None
            assert agent.files()["log/leaves"] == b"" and "log/checkpoint" not in agent.files()


async def test_bytes_that_nobody_vouches_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few enough leaves, but large ones: it is their sum that is bounded."""
    monkeypatch.setattr(logrules, "MAX_UNVERIFIED_BYTES", 4096)
    scene.server.page = 1
    told = scene.log.copy()
    told.entries += [b"x" * 1000] * 100
    scene.lie(told, key=SigningKey.generate())
    scene.server.asked.clear()
    with pytest.raises(MalformedError, match="the server sent none, or too much"):
        await scene.agent.follower.sync()
    assert len(scene.server.asked) < 10


async def test_a_fork_is_final_here(scene: Scene, tmp_path: Path) -> None:
    """Also when the truth is told again, by an agent that was started again, and for what was launched before."""
    known = stated(released("etl.py", 2))
    await scene.agent.follower.require_launchable(known)
    two_logs_of_one_size(scene)
    with pytest.raises(ForkError):
        await scene.agent.follower.sync()
    server = scene.server
    server.log, server.checkpoint = scene.log, server.true_checkpoint
    asked = len(server.asked)
    for ask in (scene.agent.follower.sync(), scene.agent.follower.require_launchable(known)):
        with pytest.raises(ForkError, match=r"the server showed two logs, see log/evidence/fork-5-"):
            await ask
    assert len(server.asked) == asked, "nobody is asked any more"


async def test_a_rollback_stops_launches_when_what_is_known_is_too_old(scene: Scene) -> None:
    known = stated(released("etl.py", 2))
    scene.lie(scene.log, size=3, at=time.time() + 599)
    await scene.agent.follower.require_launchable(known)
    scene.agent.at = 602
    with pytest.raises(RollbackError, match="restored from an older backup"):
        await scene.agent.follower.require_launchable(known)


async def test_what_the_log_does_not_allow(scene: Scene) -> None:
    """Offered by a server whose tickets are genuine."""
    scene.log.add(revoked(released("etl.py", 3)))
    with pytest.raises(RevokedError, match=r"etl\.py@3 was revoked"):
        await scene.agent.follower.require_launchable(stated(released("etl.py", 3)))
    with pytest.raises(NotFoundError, match=r"etl\.py@4 is not in the log of 8 leaves"):
        await scene.agent.follower.require_launchable(stated(released("etl.py", 4)))


async def test_a_log_that_comes_drop_by_drop_is_given_up(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte in time, the whole never."""
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.3)

    async def drops(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for byte in note(scene.log.note()).body:  # type: ignore[union-attr]
            await answer.write(bytes([byte]))  # type: ignore[list-item]
            await asyncio.sleep(0.01)
        return answer

    scene.server.checkpoint = drops
    with pytest.raises(FetchError, match=r"did not come within 0\.3 s"):
        await scene.agent.follower.sync()

"""Two principals race: 500 uploads of one archive, and 500 archives that define one dag, against the real server.

The describer is the simulator of `api_rig`: what is raced for, the numbers, the owner and the dag, is decided in the API's one
transaction after the description, of which the launcher makes some 15 a second.

Seen to fail when weakened: `group_commit` that looks before the lock instead of behind it, which loses numbers and owners;
`recording.decide` without the look at whose the dags are.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from api_rig import SOURCE, Answer, Api, dag_entry

UPLOADS, FEWER = 500, 100
AT_ONCE = 32  # of each principal


@pytest.fixture
async def open_api(folder: str) -> AsyncIterator[Api]:
    async with Api(folder, limits={"max_uploads_per_principal": AT_ONCE}) as running:
        yield running


async def race(api: Api, names: list[str], bodies: list[bytes], tokens: list[str]) -> list[tuple[int, Answer]]:
    """Push them all, alternately by each; which token, and the answer."""
    turns = [asyncio.Semaphore(AT_ONCE) for _ in tokens]

    async def one(number: int) -> tuple[int, Answer]:
        who = number % len(tokens)
        async with turns[who]:
            return who, await api.push(names[number], bodies[number], token=tokens[who])

    return await asyncio.gather(*(one(number) for number in range(len(names))))


async def submit_events(api: Api) -> list[dict[str, object]]:
    events: list[dict[str, object]] = []
    while page := (
        await api.call("GET", f"/v1/audit?limit=1000&after={events[-1]['seq'] if events else 0}", token=api.admin)
    ).json["events"]:
        events += page
    return [event for event in events if event["action"] == "archive.submit"]


async def test_one_archive(open_api: Api) -> None:
    """Whoever is first owns it; to the other it is refused from then on. Every accepted upload has a number of its own."""
    api, people = open_api, ("alice", "bob")
    tokens = [await api.token(name) for name in people]
    bodies = [SOURCE + f"# {number}\n".encode() for number in range(FEWER)]
    started = time.monotonic()
    answers = await race(api, ["etl.py"] * FEWER, bodies, tokens)
    print(f"{FEWER} uploads of one archive in {time.monotonic() - started:.1f} s")
    won = [(who, answer.json) for who, answer in answers if answer.status == 201]
    lost = [(who, answer) for who, answer in answers if answer.status != 201]
    (winner,) = {who for who, _ in won}
    assert len(won) == FEWER // 2 and sorted(release["number"] for _, release in won) == list(range(1, len(won) + 1))
    assert {(release["owner"], release["submitted_by"]) for _, release in won} == {(people[winner],) * 2}
    assert {(who, answer.status, answer.slug) for who, answer in lost} == {(1 - winner, 403, "not-owner")}
    assert all("etl.py" in answer.json["detail"] for _, answer in lost)
    events = await submit_events(api)
    verdicts = Counter((event["principal"], event["verdict"]) for event in events)
    assert verdicts == {(people[winner], "accepted"): len(won), (people[1 - winner], "refused"): len(lost)}
    accepted = [event for event in events if event["verdict"] == "accepted"]
    assert [str(event["detail"]).partition(",")[0] for event in accepted] == [
        f"release {n + 1}" for n in range(len(won))
    ]
    digests = {release["number"]: release["digest"] for _, release in won}
    assert [event["digest"] for event in accepted] == [digests[number + 1] for number in range(len(won))]
    assert len(api.files()) == len(won) and not [name for name in api.files() if ".tmp-" in name]
    assert await api.fsck() == []


async def test_one_archive_of_a_group(open_api: Api) -> None:
    """Both may: the numbers are shared out among them, without a gap and without one twice; the owner is the first."""
    api, people = open_api, ("alice", "bob")
    assert (await api.call("PUT", "/v1/groups/data", token=api.admin, json={"members": list(people)})).status == 200
    tokens = [await api.token(name) for name in people]
    bodies = [SOURCE + f"# {number}\n".encode() for number in range(UPLOADS)]
    first = await api.push("etl.py", SOURCE, token=tokens[0], query="?group=data")
    answers = await race(api, ["etl.py"] * UPLOADS, bodies, tokens)
    assert {answer.status for _, answer in answers} == {201}
    releases = [first.json, *(answer.json for _, answer in answers)]
    assert sorted(release["number"] for release in releases) == list(range(1, UPLOADS + 2))
    assert {release["owner"] for release in releases} == {"alice"}
    assert Counter(release["submitted_by"] for release in releases) == {"alice": 251, "bob": 250}
    (archive,) = (await api.call("GET", "/v1/archives", token=tokens[1])).json["archives"]
    assert (archive["latest"], archive["owner"]) == (UPLOADS + 1, "alice")
    assert Counter(event["verdict"] for event in await submit_events(api)) == {"accepted": UPLOADS + 1}
    assert await api.fsck() == []


async def test_one_dag_id(open_api: Api) -> None:
    """500 archives define the same dag: it belongs to one of them, and the others leave nothing behind."""
    api, people = open_api, ("alice", "bob")
    tokens = [await api.token(name) for name in people]
    names = [f"etl{number}.py" for number in range(UPLOADS)]
    for name in names:
        api.launcher.dags[name] = [dag_entry("etl", member=name)]
    answers = await race(api, names, [SOURCE + f"# {name}\n".encode() for name in names], tokens)
    ((winner, won),) = [(who, answer.json) for who, answer in answers if answer.status == 201]
    lost = [answer for _, answer in answers if answer.status != 201]
    assert {(answer.status, answer.slug) for answer in lost} == {(409, "conflict")}
    assert {answer.json["detail"].partition(":")[0] for answer in lost} == {
        f"dag 'etl' belongs to archive {won['archive']}"
    }
    assert won["owner"] == people[winner]
    assert await api.remains() == (api.files(), [f"{won['archive']}@1"]) and len(api.files()) == 1
    events = await submit_events(api)
    assert Counter(event["verdict"] for event in events) == {"accepted": 1, "refused": UPLOADS - 1}
    assert {str(event["object"]) for event in events} == {f"archive:{name}" for name in names}
    assert await api.fsck() == []


async def test_the_same_bytes_by_both(open_api: Api) -> None:
    """One release: the rest are told that it is there, or that it is another's."""
    api, people = open_api, ("alice", "bob")
    tokens = [await api.token(name) for name in people]
    answers = await race(api, ["etl.py"] * 100, [SOURCE] * 100, tokens)
    found = Counter((who, answer.status) for who, answer in answers)
    (winner,) = [who for who, status in found if status == 201]
    assert found == {(winner, 201): 1, (winner, 200): 49, (1 - winner, 403): 50}
    assert await api.remains() == (api.files(), ["etl.py@1"]) and len(api.files()) == 1 and await api.fsck() == []

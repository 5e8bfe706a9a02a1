"""Workers that join with an invitation and sign from then on: over HTTP, and with the agent's own transport.

Seen to fail when weakened: `joining.join` without `_invited` behind the lock, `_require_open` without any one of its checks,
`join` that does not use the invitation up or leaves the bearer tokens; `signed.read` and `accept` without any one of their
steps; `people.worker_of_key` that finds a revoked one; `_offer_next` that does not look again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from api_rig import SOURCE, Answer, Api, WorkerPeer
from sqlalchemy import select, update

from integrity.errors import FetchError, UnauthorizedError
from submit_api import running
from submit_api.registry import invitations
from submit_api.registry.tables import Base, TokenRow, WorkerRow
from tests.signing import Hand, join_body
from vocabulary.keys import SigningKey, fingerprint
from worker_cache.client import Client
from worker_cache.signing import Signer
from worker_cache.transport import Transport

DSSE = "application/vnd.dsse+json"


class Joiner(WorkerPeer):
    """An agent that signs, with its launcher's keys."""

    def __init__(self, api: Api, name: str = "w1") -> None:
        super().__init__(api, name, "", ["default"])
        self.hand = Hand(
            server=api.service.keys.signing.public.key_id, epoch=api.service.epoch, now=lambda: api.clock.at / 1e6
        )

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.signing.public, self.sealing.public)

    async def invited(self, **changes: Any) -> str:
        body = {"queues": self.queues, "fingerprint": self.fingerprint, **changes}
        given = {key: value for key, value in body.items() if value is not None}
        answer = await self.api.call("POST", f"/v1/workers/{self.name}/invite", token=self.api.admin, json=given)
        assert answer.status == 201, answer.body
        return str(answer.json["token"])

    async def join(self, token: str, *, name: str | None = None, key: SigningKey | None = None) -> Answer:
        """`key` signs; what is shown is always the hand's."""
        shown = join_body(token, self.hand.key.public, self.signing.public, self.sealing.public)
        return await self.ask("POST", f"/v1/workers/{name or self.name}/join", json.dumps(shown).encode(), key=key)

    async def ask(
        self, method: str, target: str, body: bytes | None = None, content_type: str = "application/json", **how: Any
    ) -> Answer:
        headers = self.hand.sign(method, target, body, content_type=content_type, **how)
        return await self.api.call(method, target, body=body, headers=headers)

    async def taken(self) -> Answer:
        return await self.ask("POST", f"/v1/workers/{self.name}/take", b'{"queues": ["default"]}')

    async def take(self, wait: float = 0) -> dict[str, Any] | None:
        answer = await self.ask(
            "POST", f"/v1/workers/{self.name}/take?wait_seconds={wait}", json.dumps({"queues": self.queues}).encode()
        )
        assert answer.status in (200, 204), answer.body
        return answer.json if answer.status == 200 else None

    async def post(self, launch_id: str, what: str, body: bytes, *, kind: str = DSSE) -> Answer:
        return await self.ask("POST", f"/v1/launches/{launch_id}/{what}", body, kind)


async def rows(api: Api) -> list[Any]:
    """Every table but the audit log and the times of last use."""
    found: list[Any] = []
    async with api.service.database.read() as tx:
        for table in Base.metadata.sorted_tables:
            if table.name != "audit_events":
                shown = [column for column in table.columns if column.name != "last_used_at"]
                found.append((await tx.session.execute(select(*shown).order_by(*table.primary_key))).all())
    return found


async def refused(api: Api, answer: Answer, slug: str, why: str, *, status: int = 401) -> None:
    """Refused so, said so, and audited under nobody's name."""
    assert (answer.status, answer.slug) == (status, slug), answer.body
    assert why in answer.json["detail"], answer.json["detail"]
    last = (await api.events())[-1]
    assert (last["verdict"], last["rule"], last["principal"]) == ("refused", slug, "")


@pytest.fixture
async def worker(api: Api) -> Joiner:
    """One that has joined."""
    made = Joiner(api)
    answer = await made.join(await made.invited())
    assert answer.status == 201, answer.body
    return made


async def test_a_worker_joins_and_does_its_work_by_signed_requests(api: Api) -> None:
    worker = Joiner(api)
    token = await worker.invited(queues=["default", "big"])
    assert token.startswith("dgj_") and (await api.call("GET", "/v1/workers", token=api.admin)).json["workers"] == []
    assert token.split("_")[2].encode() not in await api.at_rest()
    joined = await worker.join(token)
    assert joined.status == 201
    assert joined.json == (await api.call("GET", "/v1/workers/w1", token=api.admin)).json
    key_id = worker.hand.key.public.key_id
    assert (joined.json["request_key_id"], joined.json["fingerprint"]) == (key_id, worker.fingerprint)
    assert joined.json["queues"] == ["big", "default"]
    await api.allow("admin")
    assert (await api.push("etl.py", SOURCE)).status == 201
    assert (await api.launch()).status == 201
    offer = await worker.take()
    assert offer is not None
    digest = offer["digest"].removeprefix("sha512:")
    assert (await worker.ask("GET", f"/v1/blobs/sha512/{digest}")).body == SOURCE
    await worker.claimed(offer)
    assert (
        await worker.post(offer["launch_id"], "log?offset=0", b"line\n", kind="application/octet-stream")
    ).status == 200
    assert (await worker.finish(offer)).json["state"] == "success"
    events = await api.events()
    assert [event["action"] for event in events if event["object"] == "worker:w1"] == ["worker.invite", "worker.join"]
    mine = [event for event in events if event["principal"] == "w1"]
    assert {event["token_id"] for event in mine} == {f"key:{key_id[:8]}"}
    assert {event["action"] for event in mine} >= {"worker.join", "launch.offer", "launch.claim", "launch.end"}
    assert all(word not in str(events) for word in token.split("_")[2:])
    assert await api.fsck() == []


async def test_an_invitation_is_good_once(api: Api, worker: Joiner) -> None:
    other = Joiner(api)
    other.signing, other.sealing = worker.signing, worker.sealing
    token = await other.invited()
    assert (await other.join(token)).status == 201
    before = await rows(api)
    again = await other.join(token)  # its answer was lost
    assert (again.status, again.json["request_key_id"]) == (200, other.hand.key.public.key_id)
    assert await rows(api) == before
    assert [event["action"] for event in await api.events()].count("worker.join") == 2
    thief = Joiner(api)
    thief.signing, thief.sealing = worker.signing, worker.sealing
    await refused(api, await thief.join(token), "join-token", "was used already")
    thief.hand.key, thief.signing = other.hand.key, SigningKey.generate()
    await refused(api, await thief.join(token), "join-token", "was used already")
    assert await rows(api) == before
    assert (await other.taken()).status == 204
    api.clock.forward(3600)  # the one who has joined may ask again for ever; it changes nothing
    assert (await other.join(token)).status == 200
    assert (await api.call("DELETE", "/v1/workers/w1", token=api.admin)).status == 204
    before = await rows(api)
    await refused(api, await other.join(token), "join-token", "invites nobody here")
    assert await rows(api) == before


async def test_an_invitation_is_for_one_worker_one_launcher_and_not_for_long(api: Api) -> None:
    worker = Joiner(api)
    token = await worker.invited()
    before = await rows(api)
    await refused(api, await worker.join(token, name="w2"), "join-token", "is for another worker than w2")
    await refused(api, await worker.join(token[:-1] + "x"), "join-token", "not a token to join with")
    made = token.split("_")
    stem = "_".join(["dgj", made[1], made[2][::-1]])
    forged = f"{stem}_{hashlib.sha512(stem.encode()).hexdigest()[:6]}"
    await refused(api, await worker.join(forged), "join-token", "invites nobody here")
    await refused(
        api, await worker.join(await api.token("admin2", admin=True)), "join-token", "not a token to join with"
    )
    before = await rows(api)
    await refused(
        api,
        await worker.join(token, key=SigningKey.generate()),
        "request-signature",
        "signs with the key that it joins",
    )
    plain = join_body(token, worker.hand.key.public, worker.signing.public, worker.sealing.public)
    unsigned = await api.call("POST", "/v1/workers/w1/join", json=plain)
    await refused(api, unsigned, "request-signature", "one field signature-input")
    launcher = worker.signing
    worker.signing = SigningKey.generate()
    await refused(
        api, await worker.join(token), "join-token", "is for another launcher than that of " + worker.fingerprint
    )
    worker.signing = launcher
    for bearer in (token, "dgj_" + "a" * 12):
        assert (await api.call("GET", "/v1/archives", token=bearer)).slug == "unauthenticated"
    assert await rows(api) == before
    api.clock.forward(899)
    assert (await worker.join(token)).status == 201
    late = Joiner(api, "w2")
    token = await late.invited(seconds=5)
    before = await rows(api)
    api.clock.forward(5)
    await refused(api, await late.join(token), "join-token", "has expired")
    assert await rows(api) == before


async def test_a_newer_invitation_takes_the_place_of_an_older(api: Api) -> None:
    worker = Joiner(api)
    first, second = await worker.invited(), await worker.invited()
    await refused(api, await worker.join(first), "join-token", "invites nobody here")
    assert (await worker.join(second)).status == 201


async def test_an_invitation_that_is_withdrawn_while_somebody_joins(api: Api) -> None:
    """It was good when it was read first; what counts is what is there behind the lock."""
    worker = Joiner(api)
    token = await worker.invited()
    async with api.service.database.write() as tx:
        joining = asyncio.create_task(worker.join(token))
        while not len(api.service.nonces):  # until it is past all but the transaction
            await asyncio.sleep(0)
        await invitations.withdraw(tx, worker.name)
    await refused(api, await joining, "join-token", "invites nobody here")
    assert (await api.call("GET", "/v1/workers", token=api.admin)).json["workers"] == []


async def test_without_a_fingerprint_an_invitation_is_called_unsafe(api: Api) -> None:
    worker = Joiner(api)
    for body in ({"queues": ["x"]}, {"queues": ["x"], "fingerprint": "0" * 64, "unsafe_any_launcher": True}):
        answer = await api.call("POST", "/v1/workers/w1/invite", token=api.admin, json=body)
        assert (answer.status, answer.slug) == (422, "invalid-request")
    token = await worker.invited(fingerprint=None, unsafe_any_launcher=True)
    assert "unsafe: any launcher" in (await api.events())[-1]["detail"]
    assert (await worker.join(token)).json["fingerprint"] == worker.fingerprint


@pytest.mark.parametrize("name", ["W!", "a b", "x" * 101])
async def test_a_worker_has_a_workers_name(api: Api, name: str) -> None:
    body = {"queues": ["x"], "fingerprint": "0" * 64}
    answer = await api.call("POST", f"/v1/workers/{name}/invite", token=api.admin, json=body)
    assert (answer.status, answer.slug) == (400, "malformed")


async def test_of_many_that_race_one_joins(api: Api) -> None:
    honest = Joiner(api)
    token = await honest.invited()
    racers = [Joiner(api) for _ in range(20)]
    for racer in racers:
        racer.signing, racer.sealing = honest.signing, honest.sealing
    answers = await asyncio.gather(*(racer.join(token) for racer in racers))
    assert Counter((answer.status, answer.json.get("type", "")[-10:]) for answer in answers) == {
        (201, ""): 1,
        (401, "join-token"): 19,
    }
    (winner,) = [racer for racer, answer in zip(racers, answers, strict=True) if answer.status == 201]
    assert [(await racer.taken()).status for racer in racers].count(204) == 1 and (await winner.taken()).status == 204
    again = Joiner(api, "w2")
    token = await again.invited()
    answers = await asyncio.gather(*(again.join(token) for _ in range(10)))
    assert Counter(answer.status for answer in answers) == {201: 1, 200: 9}
    joins = [
        event for event in await api.events() if (event["action"], event["verdict"]) == ("worker.join", "accepted")
    ]
    assert [event["object"] for event in joins] == ["worker:w1", "worker:w2"]


async def test_who_joins_again_has_new_keys_and_the_old_ones_are_refused_at_once(api: Api, worker: Joiner) -> None:
    after = Joiner(api)
    token = await after.invited()
    assert (await worker.taken()).status == 204  # until somebody joins
    assert (await after.join(token)).status == 201
    await refused(api, await worker.taken(), "request-signature", "no worker that is enrolled has key")
    assert (await after.taken()).status == 204
    joined = [event for event in await api.events() if event["action"] == "worker.join"][-1]
    was = f"in place of key {worker.hand.key.public.key_id}, launcher {worker.fingerprint}"
    assert (
        was in joined["detail"]
        and f"key {after.hand.key.public.key_id}, launcher {after.fingerprint}" in joined["detail"]
    )
    third = Joiner(api, "w3")
    third.hand.key = after.hand.key
    token = await third.invited()
    before = await rows(api)
    assert (await third.join(token)).slug == "conflict"
    assert await rows(api) == before


async def test_a_worker_with_a_token_joins_and_its_token_ends(api: Api) -> None:
    enrolled = await api.worker("w1")
    worker = Joiner(api)
    token = await worker.invited()
    assert await enrolled.take() is None
    assert (await worker.join(token)).status == 201
    body = {"queues": ["default"]}
    old = await api.call("POST", "/v1/workers/w1/take", token=enrolled.token, json=body)
    assert (old.status, old.slug) == (401, "unauthenticated") and "was revoked" in old.json["detail"]
    both = await api.call(
        "POST",
        "/v1/workers/w1/take",
        token=api.admin,
        body=b"{}",
        headers=worker.hand.sign("POST", "/v1/workers/w1/take", b"{}"),
    )
    await refused(api, both, "request-signature", "a signature and a bearer token")
    async with api.service.database.write() as tx:
        await tx.session.execute(update(TokenRow).where(TokenRow.kind == "worker").values(revoked_at=None))
        await tx.session.execute(update(WorkerRow).values(request_key_id="0" * 64))
    assert {finding.rule for finding in await api.fsck()} == {"worker-token", "worker-request-key"}


async def test_a_worker_that_is_revoked_is_refused_at_once(api: Api, worker: Joiner) -> None:
    await api.allow("admin")
    assert (await api.push("etl.py", SOURCE)).status == 201
    waiting = asyncio.create_task(worker.ask("POST", "/v1/workers/w1/take?wait_seconds=30", b'{"queues": ["default"]}'))
    while not api.service.signals.waiting("queue"):
        await asyncio.sleep(0)
    token = await worker.invited()
    assert (await api.call("DELETE", "/v1/workers/w1", token=api.admin)).status == 204
    launch = await api.launch()
    answer = await waiting
    assert (answer.status, answer.slug) == (403, "out-of-scope") and "while it waited" in answer.json["detail"]
    assert (await api.call("GET", f"/v1/launches/{launch.json['id']}", token=api.admin)).json["state"] == "queued"
    await refused(api, await worker.taken(), "request-signature", "no worker that is enrolled has key")
    await refused(api, await worker.join(token), "join-token", "invites nobody here")
    back = Joiner(api)
    assert (await back.join(await back.invited())).status == 201
    await refused(api, await worker.taken(), "request-signature", "no worker that is enrolled has key")


async def test_what_was_changed_on_the_way_or_came_twice(api: Api, worker: Joiner) -> None:
    """Each once more, with all that could be done to it, in `tests/attacks/test_t25_worker_requests.py`."""
    target, body = "/v1/workers/w1/take", b'{"queues": ["default"]}'
    before = await rows(api)
    fields = worker.hand.sign("POST", target, body)
    changed = await api.call("POST", target, body=body.replace(b"default", b"big"), headers=fields)
    assert (changed.status, changed.slug) == (422, "digest-mismatch")
    for method, where in (("POST", target + "?wait_seconds=1"), ("GET", "/v1/blobs/sha512/" + "0" * 128)):
        answer = await api.call(method, where, body=body, headers=worker.hand.sign("POST", target, body))
        await refused(api, answer, "request-signature", "did not sign this request as it came")
    bare = worker.hand.sign("POST", target) | {"Content-Type": "application/json"}
    answer = await api.call("POST", target, body=body, headers=bare)
    await refused(api, answer, "request-signature", "covers no body, and there is one")
    assert await rows(api) == before
    fields = worker.hand.sign("POST", target, body)
    assert (await api.call("POST", target, body=body, headers=fields)).status == 204
    await refused(api, await api.call("POST", target, body=body, headers=fields), "replayed-request", "good for one")


@pytest.mark.parametrize(("created", "seconds", "good"), [
    (60, 60, True), (61, 60, False), (-60, 60, True), (-61, 60, False), (-1, 1, True), (-2, 1, False), (0, 0, True),
])  # fmt: skip
async def test_the_window(api: Api, worker: Joiner, created: int, seconds: int, good: bool) -> None:
    now = api.clock.at // 1_000_000
    answer = await worker.ask(
        "POST", "/v1/workers/w1/take", b'{"queues": ["default"]}', created=now + created, seconds=seconds
    )
    if good:
        assert answer.status == 204
        return
    await refused(api, answer, "clock-skew", "it is 2027-01-15T08:00:00Z by this service's clock")
    assert {61: "2027-01-15T08:01:01Z", -61: "2027-01-15T07:58:59Z", -2: "2027-01-15T07:59:58Z"}[
        created
    ] in answer.json["detail"]


@pytest.mark.parametrize("seconds", [-1, 61])
async def test_a_signature_is_not_good_for_longer_than_the_window(api: Api, worker: Joiner, seconds: int) -> None:
    answer = await worker.ask("POST", "/v1/workers/w1/take", b'{"queues": ["default"]}', seconds=seconds)
    await refused(api, answer, "request-signature", "at most 60 seconds")


async def test_a_key_that_asks_too_much_is_told_to_wait(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "MOST_NONCES", 3)
    async with Api(folder) as api:
        worker, other = Joiner(api), Joiner(api, "w2")
        assert (await worker.join(await worker.invited())).status == 201
        assert (await other.join(await other.invited())).status == 201
        assert [(await worker.taken()).status for _ in range(4)] == [204, 204, 429, 429]
        answer = await worker.taken()
        assert (answer.slug, "Retry-After" in answer.headers) == ("too-many-requests", True)
        assert (await other.taken()).status == 204
        api.clock.forward(61)
        assert (await worker.taken()).status == 204


async def test_failed_signatures_are_throttled_and_right_ones_are_not(folder: str) -> None:
    async with Api(folder, failures={"burst": 3, "seconds_each": 10}) as api:
        worker = Joiner(api)
        assert (await worker.join(await worker.invited())).status == 201
        wrong = [await worker.ask("GET", "/v1/blobs/sha512/" + "0" * 128, key=SigningKey.generate()) for _ in range(5)]
        assert [answer.slug for answer in wrong] == ["request-signature"] * 3 + ["too-many-failures"] * 2
        assert (await worker.taken()).status == 204


@pytest.fixture
async def signer(api: Api, worker: Joiner) -> Signer:
    return Signer(lambda: worker.hand.key, api.service.keys.signing.public, lambda: api.clock.at / 1e6)


@pytest.fixture
async def client(api: Api, signer: Signer) -> AsyncIterator[Client]:
    async with Transport(api.url, None, signer=signer) as transport:
        yield Client(transport)


async def test_the_agents_own_client_signs_all_that_an_agent_asks(api: Api, worker: Joiner, client: Client) -> None:
    await api.allow("admin")
    assert (await api.push("etl.py", SOURCE)).status == 201
    assert await asyncio.gather(*(client.take("w1", ["default"], wait_seconds=0) for _ in range(5))) == [None] * 5
    assert (await api.launch()).status == 201
    offer = await client.take("w1", ["default"], wait_seconds=0)
    assert offer is not None
    envelope, _ = worker.claim_envelope(offer)
    assert b"payload" in await client.claim(offer["launch_id"], envelope)
    assert await client.append_log(offer["launch_id"], b"line\n", offset=0) == 5
    assert await client.heartbeat(offer["launch_id"]) == ("running", False)
    result = worker.result_envelope(offer, worker.ticket(offer).digest, "success")
    assert await client.result(offer["launch_id"], result) == ("success", False)


async def test_a_service_that_was_started_anew_takes_nothing_that_was_signed_for_the_one_before(folder: str) -> None:
    """Not even what that one would have accepted a moment later; and the agent goes on without anybody's doing."""
    async with Api(folder) as api:
        worker = Joiner(api)
        assert (await worker.join(await worker.invited())).status == 201
        signer = Signer(lambda: worker.hand.key, api.service.keys.signing.public, lambda: api.clock.at / 1e6)
        async with Transport(api.url, None, signer=signer) as transport:
            assert await Client(transport).take("w1", ["default"], wait_seconds=0) is None
        body = b'{"queues": ["default"]}'
        made = worker.hand.sign("POST", "/v1/workers/w1/take", body)
        assert (await api.call("POST", "/v1/workers/w1/take", body=body, headers=made)).status == 204
        unused = worker.hand.sign("POST", "/v1/workers/w1/take", body)
    async with Api(folder) as api:
        before = await rows(api)
        for headers in (made, unused):
            answer = await api.call("POST", "/v1/workers/w1/take", body=body, headers=headers)
            await refused(api, answer, "request-epoch", "another process of this service")
            assert answer.headers["Dagseal-Epoch"] == api.service.epoch != worker.hand.epoch
        assert await rows(api) == before
        async with Transport(api.url, None, signer=signer) as transport:
            client = Client(transport)  # all of them signed for the one before, and but one is the first to hear of it
            assert (
                await asyncio.gather(*(client.take("w1", ["default"], wait_seconds=0) for _ in range(5))) == [None] * 5
            )


async def test_an_agent_that_joined_anew_signs_with_its_new_key(api: Api, worker: Joiner, client: Client) -> None:
    """`Signer` reads the key again when it is refused; the request is sent once more, and only once."""
    assert await client.take("w1", ["default"], wait_seconds=0) is None
    after = Joiner(api)
    assert (await after.join(await after.invited())).status == 201
    count = len(await api.events())
    with pytest.raises(UnauthorizedError, match="no worker that is enrolled has key"):
        await client.take("w1", ["default"], wait_seconds=0)
    assert len(await api.events()) == count + 1
    worker.hand.key = after.hand.key  # what `signer` loads
    assert await client.take("w1", ["default"], wait_seconds=0) is None


async def test_an_agent_signs_for_its_own_server_only(api: Api, worker: Joiner) -> None:
    signer = Signer(lambda: worker.hand.key, SigningKey.generate().public, lambda: api.clock.at / 1e6)
    async with Transport(api.url, None, signer=signer) as transport:
        with pytest.raises(UnauthorizedError, match="signed for another server"):
            await Client(transport).take("w1", ["default"], wait_seconds=0)
        with pytest.raises(RuntimeError):
            await transport.request("POST", "/v1/x", body=_pieces())


async def _pieces() -> AsyncIterator[bytes]:
    yield b""


async def test_a_server_that_has_no_epoch_is_none(api: Api, worker: Joiner) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nDagseal-Epoch: x\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    signer = Signer(lambda: worker.hand.key, api.service.keys.signing.public, lambda: 0)
    async with server, Transport(url, None, signer=signer) as transport:
        with pytest.raises(FetchError, match="does not say its epoch"):
            await Client(transport).take("w1", ["default"], wait_seconds=0)

"""Signing in with another issuer's token: a real issuer on loopback whose keys it rotates, loses, and sends badly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from api_rig import SOURCE, Answer, Api

from integrity.errors import FetchError
from submit_api.oidc.fetching import HttpFetcher
from tests.issuer import AUDIENCE, Issuer

SHORT = {"fetch_seconds": 0.3, "max_keys_bytes": 4096}


def settings(issuer: Issuer, **changes: Any) -> dict[str, Any]:
    made = {"name": "corp", "issuer": issuer.url, "audience": AUDIENCE, "sign_in": "everybody"}
    return {**made, "unsafe_http_on_loopback": True, **changes}


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer().serving() as running:
        yield running


@pytest.fixture
async def api(folder: str, issuer: Issuer) -> AsyncIterator[Api]:
    async with Api(folder, oidc={"issuers": [settings(issuer, groups_claim="groups")], **SHORT}) as running:
        yield running


async def archives(api: Api, token: str) -> Answer:
    return await api.call("GET", "/v1/archives", token=token)


async def test_a_person_of_the_issuer_pushes_under_its_own_name(api: Api, issuer: Issuer) -> None:
    token = issuer.token(api.clock.at)
    made = await api.push("etl.py", SOURCE, token=token)
    assert made.status == 201, made.body
    assert (made.json["owner"], made.json["group"], made.json["submitted_by"]) == ("corp:ada",) * 3
    last = (await api.events())[-1]
    assert (last["principal"], last["token_id"], last["action"]) == ("corp:ada", "oidc", "archive.submit")
    assert token not in str(await api.events())
    manifest = await api.call("GET", "/v1/archives/etl.py/releases/1/manifest", token=token)
    assert manifest.status == 200
    assert issuer.asked == ["discovery", "keys"]
    assert await api.fsck() == []


async def test_a_local_namesake_is_somebody_else(api: Api, issuer: Issuer) -> None:
    ada = await api.token("ada")
    assert (await api.push("etl.py", SOURCE, token=ada)).status == 201
    before = await api.remains()
    for sub in ("ada", "corp:ada"):
        refused = await api.push("etl.py", SOURCE + b"#", token=issuer.token(api.clock.at, sub=sub))
        assert (refused.status, refused.slug) in ((403, "not-owner"), (401, "unauthenticated"))
    assert await api.remains() == before
    wanted = {"principal": "corp:ada"}
    refused = await api.call("POST", "/v1/tokens", token=api.admin, json=wanted)
    assert (refused.status, refused.slug) == (422, "invalid-request")
    assert "no ':'" in refused.json["detail"]


async def test_nobody_is_an_administrator_by_a_claim(api: Api, issuer: Issuer) -> None:
    token = issuer.token(api.clock.at, sub="admin", admin=True, scope="admin", roles=["admin"], groups=["admin"])
    refused = await api.call("POST", "/v1/tokens", token=token, json={"principal": "mallory", "admin": True})
    assert (refused.status, refused.slug) == (403, "out-of-scope")
    assert "token.create needs an administrator's token; this one is of user corp:admin" in refused.json["detail"]
    refused = await api.call("POST", "/v1/workers/admin/take", token=token, json={"queues": ["default"]})
    assert (refused.status, refused.slug) == (403, "out-of-scope")


async def test_its_groups_share_an_archive_and_are_no_local_groups(api: Api, issuer: Issuer) -> None:
    ada = issuer.token(api.clock.at, groups=["engineers"])
    assert (await api.push("etl.py", SOURCE, token=ada, query="?group=corp:@engineers")).status == 201
    bob = issuer.token(api.clock.at, sub="bob", groups=["engineers"])
    assert (await api.push("etl.py", SOURCE + b"#", token=bob)).status == 201
    eve = issuer.token(api.clock.at, sub="eve", groups=["engineers2", "corp:@engineers"])
    refused = await api.push("etl.py", SOURCE + b"##", token=eve)
    assert (refused.status, refused.slug) == (403, "not-owner")
    # a local group may have them as members
    carol = issuer.token(api.clock.at, sub="carol")
    refused = await api.push("ours.py", SOURCE + b"#o", token=carol, query="?group=team")
    assert (refused.status, refused.slug) == (403, "not-owner")
    assert (await api.call("PUT", "/v1/groups/team", token=api.admin, json={"members": ["corp:carol"]})).status == 200
    assert (await api.push("ours.py", SOURCE + b"#o", token=carol, query="?group=team")).status == 201
    # ada's own group is not one that the issuer can put somebody into
    assert (await api.push("mine.py", SOURCE + b"#m", token=ada)).status == 201
    eve = issuer.token(api.clock.at, sub="eve", groups=["ada"])
    assert (await api.push("mine.py", SOURCE + b"##", token=eve)).slug == "not-owner"
    grant = {"kind": "connection", "name": "db", "to_kind": "group", "to": "corp:@engineers"}
    await api.connection("db", "http://h")
    assert (await api.call("POST", "/v1/grants", token=api.admin, json=grant)).status == 201


async def test_a_mapped_person_is_the_local_one(folder: str, issuer: Issuer) -> None:
    mapped = settings(issuer, sign_in="mapped", principals={"Ada|1": "ada"}, scopes=["archive:push:etl"])
    async with Api(folder, oidc={"issuers": [mapped]}) as api:
        assert (await api.push("etl.py", SOURCE, token=await api.token("ada"))).status == 201
        token = issuer.token(api.clock.at, sub="Ada|1")
        assert (await api.push("etl.py", SOURCE + b"#", token=token)).json["owner"] == "ada"
        refused = await api.push("other.py", SOURCE, token=token)
        assert (refused.status, refused.slug) == (403, "out-of-scope")
        refused = await archives(api, issuer.token(api.clock.at, sub="bob"))
        assert (refused.status, refused.slug) == (401, "unauthenticated")
        assert "who is not listed here: ask an administrator to map 'sub'" in refused.json["detail"]


async def test_without_issuers_its_tokens_are_not_even_read(folder: str, issuer: Issuer) -> None:
    async with Api(folder) as api:
        refused = await archives(api, issuer.token(api.clock.at))
        assert (refused.status, refused.slug) == (401, "unauthenticated")
        assert refused.json["detail"] == "this is not a dagseal token: it is written dgs_<id>_<secret>_<checksum>"
    assert issuer.asked == []


async def test_our_tokens_go_on_as_before(api: Api, issuer: Issuer) -> None:
    assert (await archives(api, api.admin)).status == 200
    for wrong in ("dgs_x", "dgs_" + issuer.token(api.clock.at), api.admin + ".a.b"):
        refused = await archives(api, wrong)
        assert (refused.status, refused.slug) == (401, "unauthenticated")
        assert "this is not a dagseal token" in refused.json["detail"]
    assert issuer.asked == []


async def test_a_refusal_is_audited_without_the_token(api: Api, issuer: Issuer) -> None:
    token = issuer.token(api.clock.at, aud="https://pypi.org")
    refused = await api.push("etl.py", SOURCE, token=token)
    assert (refused.status, refused.slug) == (401, "unauthenticated")
    last = (await api.events())[-1]
    assert (last["principal"], last["action"], last["verdict"]) == ("", "archive.submit", "refused")
    assert f"it is to be for '{AUDIENCE}' and for nobody else (aud)" in last["detail"]
    assert not any(part in str(last) + refused.body.decode() for part in token.split("."))
    assert api.files() == []


# keys


async def test_a_rotated_key_is_found_and_the_old_one_forgotten(api: Api, issuer: Issuer) -> None:
    old = issuer.token(api.clock.at, exp=api.clock.at // 1_000_000 + 80_000)
    assert (await archives(api, old)).status == 200
    issuer.rotate("second")
    api.clock.forward(31)
    assert (await archives(api, issuer.token(api.clock.at))).status == 200
    assert issuer.asked == ["discovery", "keys"] * 2
    refused = await archives(api, old)
    assert (refused.status, refused.slug) == (401, "unauthenticated")
    assert "publishes no signing key of the id that this token names" in refused.json["detail"]


async def test_a_key_that_was_taken_back_is_forgotten_without_being_asked_for(api: Api, issuer: Issuer) -> None:
    old = issuer.token(api.clock.at, exp=api.clock.at // 1_000_000 + 80_000)
    assert (await archives(api, old)).status == 200
    issuer.rotate("second")
    api.clock.forward(3599)
    assert (await archives(api, old)).status == 200
    api.clock.forward(1)
    assert (await archives(api, old)).status == 401


async def test_random_key_ids_do_not_make_us_ask_again(api: Api, issuer: Issuer) -> None:
    tokens = [issuer.token(api.clock.at, header={"kid": f"random-{number}"}) for number in range(50)]
    answers = await asyncio.gather(*(archives(api, token) for token in tokens))
    assert {answer.status for answer in answers} <= {401, 429}
    assert issuer.asked == ["discovery", "keys"]
    api.clock.forward(31)
    await archives(api, tokens[0])
    await archives(api, tokens[1])
    assert issuer.asked == ["discovery", "keys"] * 2
    assert (await archives(api, issuer.token(api.clock.at))).status == 200


async def test_all_who_wait_share_one_fetch_and_who_leaves_does_not_end_it(folder: str, issuer: Issuer) -> None:
    issuer.mode = "slow"
    async with Api(folder, oidc={"issuers": [settings(issuer)], "fetch_seconds": 60}) as api:
        token = issuer.token(api.clock.at)
        waiting = [asyncio.create_task(archives(api, token)) for _ in range(20)]
        while "keys" not in issuer.asked:
            await asyncio.wait(waiting, timeout=0.01)
        found = [asyncio.create_task(api.service.issuers[issuer.url].keys.find("first")) for _ in range(3)]
        await asyncio.wait(found, timeout=0.01)
        waiting[0].cancel()
        found[0].cancel()
        # our own tokens do not wait for an issuer
        assert (await archives(api, api.admin)).status == 200
        issuer.waiting.set()
        assert {answer.status for answer in await asyncio.gather(*waiting[1:])} == {200}
        assert {key.kid for key in await asyncio.gather(*found[1:])} == {"first"}
    assert issuer.asked == ["discovery", "keys"]


BADLY = {
    "down": "it answered 503",
    "elsewhere": "it answered 302",
    "another issuer": "its discovery document is of another issuer",
    "no JSON": "its discovery document is not JSON",
    "foreign keys": "its discovery document names no https:// URL of its keys",
    "slow": "it did not answer within 0.3 seconds",
    "dripping": "it did not answer within 0.3 seconds",
    "endless": "it sent more than 4096 bytes",
    "coded": "what the issuer published as its keys is not JSON",
}


@pytest.mark.parametrize("mode", BADLY)
async def test_an_issuer_that_does_not_answer_well(api: Api, issuer: Issuer, mode: str) -> None:
    """503 while nothing is known of its keys, and it is asked twice a minute at most."""
    issuer.mode = mode
    fetcher = HttpFetcher(api.settings.oidc)
    with pytest.raises(FetchError, match=BADLY[mode]):
        await fetcher.fetch(api.settings.oidc.issuers[0])
    await fetcher.close()
    issuer.asked.clear()
    token = issuer.token(api.clock.at, exp=api.clock.at // 1_000_000 + 86_400)
    for _ in range(3):
        refused = await archives(api, token)
        assert (refused.status, refused.slug) == (503, "fetch"), refused.body
        assert refused.json["detail"] == "the keys of issuer corp cannot be fetched now: try again later"
        assert refused.headers["Retry-After"] == "5"
    assert issuer.asked.count("discovery") == 1


async def test_the_last_keys_stay_good_while_it_is_down_but_not_for_ever(api: Api, issuer: Issuer) -> None:
    async def fresh() -> Answer:
        return await archives(api, issuer.token(api.clock.at))

    assert (await fresh()).status == 200
    issuer.mode = "down"
    api.clock.forward(3600)
    assert (await fresh()).status == 200
    # whether an unknown key is a new one of the issuer cannot be told now
    refused = await archives(api, issuer.token(api.clock.at, header={"kid": "new"}))
    assert (refused.status, refused.slug) == (503, "fetch")
    api.clock.forward(86_399 - 3600)
    assert (await fresh()).status == 200
    api.clock.forward(1)
    assert (await fresh()).status == 503
    issuer.mode = "well"
    api.clock.forward(30)
    assert (await fresh()).status == 200


async def test_a_clock_that_was_set_back_makes_the_keys_old(api: Api, issuer: Issuer) -> None:
    assert (await archives(api, issuer.token(api.clock.at))).status == 200
    api.clock.forward(-7200)
    assert (await archives(api, issuer.token(api.clock.at))).status == 200
    assert issuer.asked == ["discovery", "keys"] * 2


async def test_a_given_url_of_the_keys_is_asked_without_discovery(folder: str, issuer: Issuer) -> None:
    async with Api(folder, oidc={"issuers": [settings(issuer, jwks_url=issuer.url + "/keys")]}) as api:
        assert (await archives(api, issuer.token(api.clock.at))).status == 200
    assert issuer.asked == ["keys"]


async def test_two_keys_of_one_id(api: Api, issuer: Issuer) -> None:
    issuer.published.append(dict(issuer.published[0]))
    issuer.add("RS256", "sane")
    refused = await archives(api, issuer.token(api.clock.at))
    assert (refused.status, refused.slug) == (401, "unauthenticated")
    assert "publishes two keys of the id that this token names" in refused.json["detail"]
    assert (await archives(api, issuer.token(api.clock.at, kid="sane"))).status == 200

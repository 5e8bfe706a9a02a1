"""Failed authentications over HTTP: 429, whom it reaches and whom it does not, and what is audited."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from api_rig import SOURCE, Answer, Api

from submit_api import identity
from submit_api.effects import SystemRandomness
from tests.issuer import AUDIENCE, GITHUB_RUN, Issuer

FEW = {"burst": 3, "seconds_each": 10}


@pytest.fixture
async def api(folder: str) -> AsyncIterator[Api]:
    async with Api(folder, failures=FEW) as running:
        yield running


@pytest.fixture
async def proxied(folder: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    """One that its clients come to through a proxy on the same host."""
    monkeypatch.setenv("DAGSEAL__API__TRUSTED_PROXIES", '["127.0.0.0/8"]')
    async with Api(folder, failures=FEW) as running:
        yield running


def unknown() -> str:
    return identity.create(SystemRandomness()).text


async def tried(api: Api, token: str | None, address: str = "") -> Answer:
    headers = {"X-Forwarded-For": address} if address else None
    return await api.call("GET", "/v1/archives", token=token, headers=headers)


async def test_too_many_failures_from_one_address(api: Api) -> None:
    before = len(await api.events())
    for token in (unknown(), None, "x"):
        assert (await tried(api, token)).status == 401
    for _ in range(5):
        refused = await api.push("etl.py", SOURCE, token=unknown())
        assert (refused.status, refused.slug) == (429, "too-many-failures")
        assert refused.headers["Retry-After"] == "10"
        assert "WWW-Authenticate" not in refused.headers
        assert refused.json["detail"] == (
            "this failed, as too much did before it from here or for this token: wait 10 seconds, and look at the token"
        )
    assert api.files() == []
    # A right token is answered at once, from the very same address.
    assert (await tried(api, api.admin)).status == 200
    new = (await api.events())[before:]
    assert [event["detail"].split(":")[0] for event in new] == ["unauthenticated"] * 3 + ["too-many-failures"]
    assert {event["address"] for event in new} == {"127.0.0.1"}
    api.clock.forward(10)
    assert (await tried(api, unknown())).status == 401
    assert (await tried(api, unknown())).status == 429


async def test_others_are_told_apart_behind_a_trusted_proxy(proxied: Api) -> None:
    for _ in range(5):
        await tried(proxied, unknown(), "198.51.100.1")
    assert (await tried(proxied, unknown(), "198.51.100.1")).status == 429
    # what the client itself wrote in front changes nothing
    assert (await tried(proxied, unknown(), "203.0.113.77, 198.51.100.1")).status == 429
    assert (await tried(proxied, unknown(), "198.51.100.2")).status == 401
    for number in range(3):
        await tried(proxied, unknown(), f"2001:db8::{number}")
    assert (await tried(proxied, unknown(), "2001:db8::ffff")).status == 429
    assert (await tried(proxied, unknown(), "2001:db8:0:1::1")).status == 401
    assert "198.51.100.2" in {event["address"] for event in await proxied.events()}


async def test_nobody_but_a_trusted_proxy_is_believed(api: Api) -> None:
    for number in range(3):
        await tried(api, unknown(), f"198.51.100.{number}")
    assert (await tried(api, unknown(), "198.51.100.77")).status == 429
    assert {event["address"] for event in await api.events() if event["verdict"] == "refused"} == {"127.0.0.1"}


async def test_one_token_id_from_many_addresses(proxied: Api) -> None:
    """Whoever knows an id cannot keep its holder out, nor try secrets from everywhere without a limit."""
    token = await proxied.token("alice")
    head, token_id, _, _ = token.split("_")
    guesses = []
    for _ in range(6):
        stem = f"{head}_{token_id}_{unknown().split('_')[2]}"
        guesses.append(f"{stem}_{identity._checksum(stem)}")
    statuses = [(await tried(proxied, guess, f"198.51.100.{at}")).status for at, guess in enumerate(guesses)]
    assert statuses == [401] * 3 + [429] * 3
    assert (await tried(proxied, token, "198.51.100.99")).status == 200
    assert (await tried(proxied, unknown(), "198.51.100.99")).status == 401
    # its holder, when it has ended, is told that and not to wait
    await proxied.call("DELETE", f"/v1/tokens/{token_id}", token=proxied.admin)
    ended = await tried(proxied, token, "198.51.100.100")
    assert (ended.status, ended.slug) == (401, "unauthenticated")
    assert f"token {token_id} was revoked" in ended.json["detail"]


async def test_what_is_not_a_failed_authentication_is_not_counted(api: Api) -> None:
    bob = await api.token("bob")
    for _ in range(6):
        assert (await api.call("GET", "/v1/audit", token=bob)).status == 403
        assert (await api.call("GET", "/nothing")).status == 404
        assert (await api.call("POST", "/v1/tokens/exchange", json={})).status == 422
    assert (await tried(api, unknown())).status == 401


async def test_tokens_of_issuers_and_exchanges_are_counted(folder: str) -> None:
    async with Issuer().serving() as issuer:
        section: dict[str, Any] = {
            "name": "ci", "issuer": issuer.url, "audience": AUDIENCE, "ci": "github", "unsafe_http_on_loopback": True,
        }  # fmt: skip
        async with Api(folder, failures=FEW, oidc={"issuers": [section]}) as api:
            true_one = issuer.token(api.clock.at, **GITHUB_RUN, jti="1")
            bad = issuer.token(api.clock.at, aud="x")
            exchange = [await api.call("POST", "/v1/tokens/exchange", json={"token": t}) for t in (true_one, bad)]
            assert [answer.slug for answer in exchange] == ["no-publisher", "unauthenticated"]
            assert (await tried(api, bad)).status == 401
            events = len(await api.events())
            assert (await tried(api, bad)).slug == "too-many-failures"
            assert (await api.call("POST", "/v1/tokens/exchange", json={"token": true_one})).slug == "too-many-failures"
            assert len(await api.events()) == events + 1
            publisher = {
                "issuer": issuer.url, "repository": "octo/etl", "workflow": "publish.yml", "principal": "ci",
                "archive_prefix": "etl",
            }  # fmt: skip
            assert (await api.call("POST", "/v1/publishers", token=api.admin, json=publisher)).status == 201
            assert (await api.call("POST", "/v1/tokens/exchange", json={"token": true_one})).status == 201


async def test_an_issuer_that_is_down_is_nobodys_failure(folder: str) -> None:
    async with Issuer().serving() as issuer:
        issuer.mode = "down"
        section = {
            "name": "corp", "issuer": issuer.url, "audience": AUDIENCE, "sign_in": "everybody",
            "unsafe_http_on_loopback": True,
        }  # fmt: skip
        async with Api(folder, failures=FEW, oidc={"issuers": [section]}) as api:
            for _ in range(6):
                assert (await tried(api, issuer.token(api.clock.at))).status == 503

"""Trusted publishing over HTTP: publishers, the exchange of a run's token, what the token can do, and what is audited."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from api_rig import SOURCE, Answer, Api
from sqlalchemy import text

from submit_api.registry import migrate
from submit_api.registry.database import Database
from submit_api.settings import DatabaseSection
from tests.issuer import AUDIENCE, GITHUB_RUN, Issuer

QUARTER = 15 * 60


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer().serving() as running:
        yield running


@pytest.fixture
async def api(folder: str, issuer: Issuer) -> AsyncIterator[Api]:
    github = {
        "name": "github", "issuer": issuer.url, "audience": AUDIENCE, "ci": "github", "unsafe_http_on_loopback": True,
    }  # fmt: skip
    corp = {"name": "corp", "issuer": "https://login.example.com", "audience": AUDIENCE, "sign_in": "everybody"}
    async with Api(folder, oidc={"issuers": [github, corp]}) as running:
        yield running


@pytest.fixture
def ids() -> Iterator[int]:
    return itertools.count(1)


async def publisher(api: Api, issuer: Issuer, /, **changes: Any) -> Answer:
    body = {
        "issuer": issuer.url, "repository": "octo/ETL", "workflow": "publish.yml", "principal": "ci",
        "archive_prefix": "etl", **changes,
    }  # fmt: skip
    return await api.call("POST", "/v1/publishers", token=api.admin, json=body)


def run_token(api: Api, issuer: Issuer, jti: Any = "jti-1", **changes: Any) -> str:
    return issuer.token(api.clock.at, **{**GITHUB_RUN, "jti": jti, **changes})


async def exchange(api: Api, token: str) -> Answer:
    return await api.call("POST", "/v1/tokens/exchange", json={"token": token})


async def tokens(api: Api) -> list[dict[str, Any]]:
    found = (await api.call("GET", "/v1/tokens", token=api.admin)).json["tokens"]
    return [token for token in found if token["principal"] == "ci"]


async def test_a_run_pushes_with_what_it_exchanged(api: Api, issuer: Issuer) -> None:
    made = await publisher(api, issuer)
    assert made.status == 201, made.body
    number = made.json["id"]
    presented = run_token(api, issuer)
    answer = await exchange(api, presented)
    assert answer.status == 201, answer.body
    assert {name: answer.json[name] for name in ("principal", "scopes", "expires_at")} == {
        "principal": "ci", "scopes": ["archive:push:etl"], "expires_at": api.clock.at + QUARTER * 1_000_000,
    }  # fmt: skip
    push = answer.json["token"]
    release = await api.push("etl_a.py", SOURCE, token=push)
    assert release.status == 201, release.body
    assert (release.json["owner"], release.json["submitted_by"]) == ("ci", "ci")
    before = await api.remains()
    assert (await api.push("other.py", SOURCE, token=push)).slug == "out-of-scope"
    assert await api.remains() == before
    via = (
        f"publisher {number}: repository octo/etl (id 11, owner 7), workflow publish.yml, environment prod, "
        "ref refs/heads/main, commit abc, run 42/1"
    )
    events = [event for event in await api.events() if event["principal"] == "ci"]
    assert [event["action"] for event in events] == ["token.exchange", "token.create"] + ["archive.submit"] * 2
    assert all(event["detail"].endswith(f"; by {via}") for event in events)
    assert events[0]["object"] == f"publisher:{number}"
    assert events[0]["detail"].startswith("pinned to the ids of this repository and its owner")
    assert events[2]["token_id"] == answer.json["token_id"]
    (row,) = await tokens(api)
    assert (row["via"], row["admin"], row["kind"]) == (via, False, "user")
    recorded = str(await api.events()) + str(row)
    assert presented not in recorded and push not in recorded
    api.clock.forward(QUARTER)
    assert (await api.push("etl_a.py", SOURCE + b"#", token=push)).status == 401
    assert await api.fsck() == []


async def test_a_token_of_ci_is_good_for_one_exchange(api: Api, issuer: Issuer) -> None:
    await publisher(api, issuer)
    presented = run_token(api, issuer)
    answers = await asyncio.gather(*(exchange(api, presented) for _ in range(8)))
    assert sorted(answer.status for answer in answers) == [201] + [409] * 7
    refused = next(answer for answer in answers if answer.status == 409)
    assert refused.slug == "replay"
    assert "each is good for one exchange, ask CI for a new one" in refused.json["detail"]
    assert len(await tokens(api)) == 1
    # Up to its last moment with all leeway, and then it is refused as expired.
    api.clock.forward(329)
    assert (await exchange(api, presented)).status == 409
    api.clock.forward(1)
    assert (await exchange(api, presented)).status == 401
    assert len(await tokens(api)) == 1
    assert (await exchange(api, run_token(api, issuer, "jti-2"))).status == 201


async def test_what_was_used_is_forgotten_when_it_has_expired(api: Api, issuer: Issuer, ids: Iterator[int]) -> None:
    await publisher(api, issuer)
    ordinary = {"principal": "ci", "expires_at": api.clock.at + 1_000_000}
    assert (await api.call("POST", "/v1/tokens", token=api.admin, json=ordinary)).status == 201
    for _ in range(3):
        assert (await exchange(api, run_token(api, issuer, str(next(ids))))).status == 201
        api.clock.forward(400)
    async with api.service.database.read() as tx:
        assert (await tx.session.execute(text("SELECT count(*) FROM used_oidc_tokens"))).scalar() == 1
    api.clock.forward(8 * 86_400)
    assert (await exchange(api, run_token(api, issuer, str(next(ids))))).status == 201
    assert [bool(token["via"]) for token in await tokens(api)] == [False, True]


@pytest.mark.parametrize(
    ("changes", "status", "slug", "why"),
    [
        ({"repository": "octo/other"}, 403, "no-publisher", "not one of octo/other itself"),
        ({"job_workflow_ref": "Octo/etl/.github/workflows/x.yml@refs/heads/main"}, 403, "no-publisher", "in workflow:"),
        ({"event_name": "pull_request_target"}, 403, "no-publisher", "can be started by anybody"),
        ({"jti": ...}, 403, "no-publisher", "has no id of its own"),
        ({"jti": ""}, 403, "no-publisher", "has no id of its own"),
        ({"jti": "\ud800"}, 403, "no-publisher", "has no id of its own"),
        ({"jti": 1}, 403, "no-publisher", "has no id of its own"),
        ({"aud": "https://pypi.org"}, 401, "unauthenticated", "for nobody else"),
        ({"exp": 1}, 401, "unauthenticated", "it has expired"),
    ],
    ids=str,
)
async def test_a_run_that_is_refused_gets_nothing(
    api: Api, issuer: Issuer, changes: dict[str, Any], status: int, slug: str, why: str
) -> None:
    await publisher(api, issuer)
    presented = run_token(api, issuer, **changes)
    refused = await exchange(api, presented)
    assert (refused.status, refused.slug) == (status, slug), refused.body
    assert why in refused.json["detail"]
    assert await tokens(api) == []
    last = (await api.events())[-1]
    assert (last["action"], last["verdict"], last["object"]) == ("token.exchange", "refused", "token")
    assert presented not in str(last)
    (found,) = (await api.call("GET", "/v1/publishers", token=api.admin)).json["publishers"]
    assert (found["last_used_at"], found["repository_id"], found["owner_id"]) == (None, "", "")


async def test_a_repository_that_was_made_anew_under_the_name(api: Api, issuer: Issuer) -> None:
    made = (await publisher(api, issuer)).json
    assert (await exchange(api, run_token(api, issuer))).status == 201
    found = (await api.call("GET", f"/v1/publishers/{made['id']}", token=api.admin)).json
    assert (found["repository_id"], found["owner_id"], found["last_used_at"]) == ("11", "7", api.clock.at)
    for changes in ({"repository_id": "12"}, {"repository_owner_id": "8"}):
        refused = await exchange(api, run_token(api, issuer, "jti-2", **changes))
        assert (refused.status, refused.slug) == (403, "no-publisher")
        assert (
            f"{made['id']} differs in {next(iter(changes)).replace('repository_owner', 'owner')}:"
            in refused.json["detail"]
        )
    assert len(await tokens(api)) == 1
    # Given at once, there is no first use to be first at.
    await publisher(api, issuer, workflow="b.yml", repository_id="11", owner_id="7")
    workflow = {"job_workflow_ref": "Octo/etl/.github/workflows/b.yml@refs/heads/main"}
    assert (await exchange(api, run_token(api, issuer, "3", repository_id="12", **workflow))).slug == "no-publisher"
    assert (await exchange(api, run_token(api, issuer, "4", **workflow))).status == 201


async def test_a_removed_publisher_takes_its_tokens_with_it(api: Api, issuer: Issuer) -> None:
    number = (await publisher(api, issuer)).json["id"]
    push = (await exchange(api, run_token(api, issuer))).json["token"]
    assert (await api.call("GET", "/v1/archives", token=push)).status == 200
    assert (await api.call("DELETE", f"/v1/publishers/{number}", token=api.admin)).status == 204
    assert (await api.call("GET", "/v1/archives", token=push)).status == 401
    assert (await exchange(api, run_token(api, issuer, "2"))).slug == "no-publisher"
    assert (await api.call("GET", f"/v1/publishers/{number}", token=api.admin)).status == 404
    assert (await api.call("DELETE", f"/v1/publishers/{number}", token=api.admin)).slug == "not-found"
    actions = [event["action"] for event in await api.events() if event["object"] == f"publisher:{number}"]
    assert actions == ["publisher.add", "token.exchange", "publisher.remove", "publisher.remove"]


async def test_a_publisher_that_cannot_be(api: Api, issuer: Issuer) -> None:
    for changes, why in (
        ({"issuer": "https://login.example.com"}, "is no issuer of CI in this service's settings; there are: "),
        ({"issuer": issuer.url + "/"}, "is no issuer of CI in this service's settings; there are: "),
        ({"repository": "etl"}, "repository"),
        ({"repository": "octo/sub/etl"}, "GitHub's repository is OWNER/NAME"),
        ({"workflow": "ci/publish.yml"}, "GitHub's repository is OWNER/NAME"),
        ({"workflow": "publish.sh"}, "workflow"),
        ({"archive_prefix": ""}, "archive_prefix"),
        ({"archive_prefix": "a/b"}, "archive_prefix"),
        ({"principal": "Ci"}, "principal"),
        ({"ref": "main"}, "ref"),
        ({"repository_id": "x"}, "repository_id"),
        ({"admin": True}, "admin"),
    ):
        refused = await publisher(api, issuer, **changes)
        assert (refused.status, refused.slug) == (422, "invalid-request"), changes
        assert why in refused.json["detail"], changes
    assert (await api.call("GET", "/v1/publishers", token=api.admin)).json == {"publishers": []}
    made = await publisher(api, issuer, environment="Prod")
    assert made.json["environment"] == "prod"
    again = await publisher(api, issuer, environment="pROD", archive_prefix="all")
    assert (again.status, again.slug) == (409, "conflict")
    assert made.json["id"] in again.json["detail"]


async def test_only_administrators_make_publishers(api: Api, issuer: Issuer) -> None:
    await api.token("bob")
    for method, path in (("POST", "/v1/publishers"), ("GET", "/v1/publishers"), ("DELETE", "/v1/publishers/x")):
        refused = await api.call(method, path, token=api.tokens["bob"], json={})
        assert (refused.status, refused.slug) == (403, "out-of-scope")
    push = (await publisher(api, issuer), await exchange(api, run_token(api, issuer)))[1].json["token"]
    assert (await api.call("GET", "/v1/publishers", token=push)).slug == "out-of-scope"


async def test_a_token_of_ci_does_not_sign_in(api: Api, issuer: Issuer) -> None:
    await publisher(api, issuer)
    refused = await api.call("GET", "/v1/archives", token=run_token(api, issuer))
    assert (refused.status, refused.slug) == (401, "unauthenticated")
    assert "exchange this one at /v1/tokens/exchange" in refused.json["detail"]


async def test_an_exchange_whose_issuer_is_down(api: Api, issuer: Issuer) -> None:
    await publisher(api, issuer)
    issuer.mode = "down"
    assert (await exchange(api, run_token(api, issuer))).status == 503
    issuer.mode = "well"
    api.clock.forward(30)
    assert (await exchange(api, run_token(api, issuer))).status == 201


async def dagseal(api: Api, folder: str, *words: str, said: str = "", token: bool = True) -> tuple[int, str, str]:
    """The command line, as somebody types it."""
    with open(os.open(f"{folder}/admin.token", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
        file.write(api.admin)
    given = ["--token-file", f"{folder}/admin.token"] if token else []
    command = [sys.executable, "-m", "dagseal", "-o", "json", "--server", api.url, *given, *words]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=-1, stdout=-1, stderr=-1, env={"PATH": os.defpath, "XDG_CONFIG_HOME": f"{folder}/none"}
    )
    out, err = await process.communicate(said.encode())
    return process.returncode or 0, out.decode(), err.decode()


async def test_the_command_line(api: Api, issuer: Issuer, folder: str) -> None:
    wanted = ["publisher", "add", "octo/etl", "--workflow", "publish.yml", "--as", "ci", "--prefix", "etl"]
    code, out, err = await dagseal(api, folder, *wanted, "--issuer", issuer.url)
    assert code == 0, err
    made = json.loads(out)
    assert (made["repository"], made["principal"], made["archive_prefix"]) == ("octo/etl", "ci", "etl")
    assert "give both to let nobody take the name before" in err
    presented, out_file = run_token(api, issuer), f"{folder}/push.token"
    words = ["token", "exchange", "--out", out_file]
    code, out, err = await dagseal(api, folder, *words, said=presented, token=False)
    assert code == 0, err
    assert json.loads(out)["token_file"] == out_file
    assert os.stat(out_file).st_mode & 0o777 == 0o600
    with open(out_file) as file:
        push = file.read().strip()
    assert push not in out and (await api.push("etl.py", SOURCE, token=push)).status == 201
    code, _, err = await dagseal(api, folder, "token", "exchange", "--out", out_file + "2", said=presented, token=False)
    assert (code, os.path.exists(out_file + "2")) == (7, False)
    assert "each is good for one exchange" in err and presented not in err
    code, out, _ = await dagseal(api, folder, "publisher", "list")
    assert [found["id"] for found in json.loads(out)] == [made["id"]]
    assert (await dagseal(api, folder, "publisher", "rm", made["id"]))[0] == 0
    assert (await dagseal(api, folder, "publisher", "rm", made["id"]))[0] == 5


@pytest.mark.sqlite
async def test_the_tables_of_before_and_after_with_data_in_them(folder: str) -> None:
    database = Database(DatabaseSection(url=f"sqlite+aiosqlite:///{folder}/db"))
    await migrate.upgrade(database, "0004")
    old = (
        "INSERT INTO tokens (token_id, principal, kind, admin, secret_hash, created_at, created_by, scopes) "
        "VALUES ('t', 'ada', 'user', 0, 'x', 1, 'admin', '[]')"
    )
    async with database.write() as tx:
        await tx.session.execute(text(old))
    await migrate.upgrade(database, "0006")
    async with database.write() as tx:
        assert (await tx.session.execute(text("SELECT principal, publisher, via FROM tokens"))).all() == [
            ("ada", "", "")
        ]
        await tx.session.execute(text("UPDATE tokens SET publisher = 'p', via = 'v'"))
        await tx.session.execute(text("INSERT INTO used_oidc_tokens VALUES ('d', 1)"))
    await migrate.downgrade(database, "0004")
    async with database.read() as tx:
        assert (await tx.session.execute(text("SELECT principal FROM tokens"))).all() == [("ada",)]
    await database.close()

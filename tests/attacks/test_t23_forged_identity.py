"""T23 forged-identity: somebody says to be who he is not, with tokens of another issuer: bent, borrowed, or used twice.

The API is the real one, in a process of its own. The issuers are real too, with real keys, and sign what the attacker wants
where he is one of their own people.

Seen to fail when weakened: `verifying.verify` without any one of its checks; `callers.principal_of` without the issuer's name;
`publishers.use` that always agrees; `matching.differences` that does not look at ids.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.attacks.attacker import dag
from tests.attacks.conftest import EVERY_REFUSAL
from tests.forgeries import FORGERIES
from tests.issuer import AUDIENCE, GITHUB_RUN, Issuer
from tests.live import Answer, Live, running

SETTINGS = """
[[oidc.issuers]]
name = "corp"
issuer = "{corp}"
audience = "{audience}"
sign_in = "everybody"
groups_claim = "groups"
algorithms = ["RS256", "ES256"]
unsafe_http_on_loopback = true
[[oidc.issuers]]
name = "github"
issuer = "{github}"
audience = "{audience}"
ci = "github"
algorithms = ["RS256", "ES256"]
unsafe_http_on_loopback = true
[oidc]
refetch_seconds = 0.001
"""


FILE = "/.github/workflows/publish.yml"


def now_us() -> int:
    return time.time_ns() // 1000


@pytest.fixture(scope="module")
def corp() -> Iterator[Issuer]:
    with Issuer().threaded() as issuer:
        yield issuer


@pytest.fixture(scope="module")
def github() -> Iterator[Issuer]:
    with Issuer(number=1).threaded() as issuer:
        yield issuer


@pytest.fixture(scope="module")
def live(corp: Issuer, github: Issuer) -> Iterator[Live]:
    told = SETTINGS.format(corp=corp.url, github=github.url, audience=AUDIENCE)
    with running(more_api_toml=told + EVERY_REFUSAL) as started:
        yield started


@pytest.fixture
def publisher(live: Live) -> Iterator[str]:
    """Of octo/etl, pinned, for what begins with t23."""
    body = {
        "issuer": github_url(live), "repository": "octo/etl", "workflow": "publish.yml", "principal": "ci",
        "archive_prefix": "t23", "repository_id": "11", "owner_id": "7",
    }  # fmt: skip
    made = live.http("POST", "/v1/publishers", body)
    assert made.status == 201, made.body
    yield made.json["id"]
    assert live.http("DELETE", f"/v1/publishers/{made.json['id']}").status == 204


def github_url(live: Live) -> str:
    toml = (live.stack.folder / "api.toml").read_text()
    return toml.partition('name = "github"\nissuer = "')[2].partition('"')[0]


def stored(live: Live) -> tuple[Any, Any, Any]:
    """What an attacker could add to."""
    archives = [(archive["name"], archive["latest"]) for archive in live.http("GET", "/v1/archives").json["archives"]]
    tokens = [token["token_id"] for token in live.http("GET", "/v1/tokens").json["tokens"]]
    return archives, tokens, live.http("GET", "/v1/publishers").json


def exchange(live: Live, token: str) -> Answer:
    return live.http("POST", "/v1/tokens/exchange", {"token": token}, token="")


def run(github: Issuer, **changes: Any) -> str:
    return github.token(now_us(), **{**GITHUB_RUN, "jti": secrets.token_hex(8), **changes})


def refused(live: Live, answer: Answer, status: int, problem: str, why: str) -> None:
    """Said so, and audited, under nobody's name where nobody proved to be somebody."""
    assert (answer.status, answer.problem) == (status, problem), answer.body
    assert why in answer.json["detail"]
    last = live.audit()[-1]
    assert (last["verdict"], last["detail"].split(":")[0]) == ("refused", problem)
    if status == 401:
        assert last["principal"] == ""


def test_the_true_ones_pass(live: Live, corp: Issuer, github: Issuer, publisher: str) -> None:
    """Else every refusal below could be for another reason."""
    ada = corp.token(now_us(), sub="ada")
    assert live.push("t23ada.py", dag("t23ada", "pass"), token=ada).json["owner"] == "corp:ada"
    push = exchange(live, run(github))
    assert push.status == 201, push.body
    assert live.push("t23ci.py", dag("t23ci", "pass"), token=push.json["token"]).json["owner"] == "ci"


def test_bent_tokens_sign_nobody_in(live: Live, corp: Issuer) -> None:
    before = stored(live)
    for name, (forge, _) in FORGERIES.items():
        token = forge(corp, now_us())
        answer = live.push("t23forged.py", dag("t23forged", "pass"), token=token)
        assert answer.status == 401, (name, answer.body)
        refused(
            live,
            answer,
            401,
            "unauthenticated",
            "the token of another issuer is not taken: " if "kid" not in name else "",
        )
        parts = [part for part in token.split(".") if len(part) > 8]
        said = answer.body.decode() + str(live.audit()[-1])
        assert not any(part in said for part in parts), name
    assert stored(live) == before


def test_bent_tokens_of_ci_are_not_exchanged(live: Live, github: Issuer, publisher: str) -> None:
    before = stored(live)
    for name, (forge, _) in FORGERIES.items():
        answer = exchange(live, forge(github, now_us()))
        assert (answer.status, answer.problem) == (401, "unauthenticated"), (name, answer.body)
        assert (live.audit()[-1]["action"], live.audit()[-1]["verdict"]) == ("token.exchange", "refused")
    assert stored(live) == before


def test_one_issuer_does_not_speak_for_another(live: Live, corp: Issuer, github: Issuer, publisher: str) -> None:
    """Both have a key that they call `first`."""
    before = stored(live)
    theirs = github.token(now_us(), iss=corp.url, sub="ada")
    refused(live, live.push("t23x.py", dag("t23x", "pass"), token=theirs), 401, "unauthenticated", "signature")
    theirs = corp.token(now_us(), **{**GITHUB_RUN, "jti": "x", "iss": github.url})
    refused(live, exchange(live, theirs), 401, "unauthenticated", "signature")
    ours = corp.token(now_us(), **{**GITHUB_RUN, "jti": "x"})
    refused(live, exchange(live, ours), 403, "no-publisher", "tokens of issuer corp are not for publishing")
    refused(live, live.push("t23x.py", dag("t23x", "pass"), token=run(github)), 401, "unauthenticated", "exchange")
    assert stored(live) == before


NAMESAKES: list[dict[str, Any]] = [
    {"sub": "admin"},
    {"sub": "admin", "groups": ["admin"], "admin": True},
    {"sub": "x", "groups": ["admin", "corp:@admin"], "roles": ["admin"]},
]


@pytest.mark.parametrize("claims", NAMESAKES, ids=str)
def test_a_namesake_of_the_administrator(live: Live, corp: Issuer, claims: dict[str, Any]) -> None:
    """The issuer's own people choose their names there: none of these is ours."""
    mine = f"t23admin_{secrets.token_hex(4)}"
    assert live.push(f"{mine}.py", dag(mine, "pass")).json["owner"] == "admin"
    token = corp.token(now_us(), **claims)
    before = stored(live)
    assert live.push(f"{mine}.py", dag(mine, "pass") + "#", token=token).problem == "not-owner"
    made = live.http("POST", "/v1/tokens", {"principal": "mallory", "admin": True}, token=token)
    assert (made.status, made.problem) == (403, "out-of-scope")
    assert live.http("GET", "/v1/audit", token=token).status == 403
    assert live.http("GET", f"/v1/archives/{mine}.py", token=token).status == 403
    take = live.http("POST", "/v1/workers/host-1/take", {"queues": ["default"]}, token=token)
    assert (take.status, take.problem) == (403, "out-of-scope")
    assert stored(live) == before


def test_a_token_of_ci_that_was_seen_by_others(live: Live, github: Issuer, publisher: str) -> None:
    """It stood in a log: whoever reads it there comes too late."""
    token = run(github)
    assert exchange(live, token).status == 201
    before = stored(live)
    refused(live, exchange(live, token), 409, "replay", "was exchanged already")
    assert stored(live) == before


@pytest.mark.parametrize(("changes", "why"), [
    ({"repository_id": "12"}, "differs in repository_id"),
    ({"repository_owner_id": "8"}, "differs in owner_id"),
    ({"repository": "mallory/etl", "job_workflow_ref": "mallory/etl" + FILE + "@refs/heads/main"}, "it has none"),
    ({"job_workflow_ref": "mallory/x/.github/workflows/publish.yml@refs/heads/main"}, "not one of Octo/etl itself"),
    ({"job_workflow_ref": "Octo/etl/.github/workflows/publish.yml@refs/pull/1/merge"}, "not of its own ref"),
    ({"job_workflow_ref": "Octo/etl/.github/workflows/other.yml@refs/heads/main"}, "differs in workflow"),
    ({"event_name": "pull_request_target"}, "can be started by anybody"),
    ({"jti": ...}, "has no id of its own"),
], ids=str)  # fmt: skip
def test_true_tokens_of_other_runs(
    live: Live, github: Issuer, publisher: str, changes: dict[str, Any], why: str
) -> None:
    before = stored(live)
    refused(live, exchange(live, run(github, **changes)), 403, "no-publisher", why)
    assert stored(live) == before


def test_a_push_token_does_no_more_than_push_its_own(live: Live, github: Issuer, publisher: str) -> None:
    push = exchange(live, run(github)).json["token"]
    before = stored(live)
    assert live.push("other.py", dag("other", "pass"), token=push).problem == "out-of-scope"
    for method, path, body in (
        ("POST", "/v1/tokens", {"principal": "ci"}),
        ("POST", "/v1/publishers", {}),
        ("POST", "/v1/launches", {"dag_id": "t23ci", "task_id": "t", "run_id": "r"}),
        ("GET", "/v1/connections", None),
        ("GET", "/v1/audit", None),
    ):
        answer = live.http(method, path, body, token=push)
        assert (answer.status, answer.problem) == (403, "out-of-scope"), path
    assert stored(live) == before
    assert live.http("DELETE", f"/v1/tokens/{push.split('_')[1]}").status == 204
    assert live.push("t23late.py", dag("t23late", "pass"), token=push).status == 401

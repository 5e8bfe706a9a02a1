"""The OpenAPI description against the running API, by schemathesis: every check that it has, as three roles.

No answer is 5xx, none is undocumented (status, media type, schema, Allow), what the description permits is accepted, what it
forbids is refused, no route forgets its token, and none is slower than `SLOWEST_SECONDS`. The seed is fixed; `make soak` makes
many more examples. What is found is repaired in the description or the service; `EXCEPT` has what is neither, with the reason.

Seen to fail when weakened: a status struck from a route's `refusals`; a rule of a name that the description does not tell.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from api_rig import SOURCE
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from threaded_api import Threaded, threaded

ROLES = ("administrator", "user", "worker")
SLOWEST_SECONDS = 5.0  # of one answer, also where two cores do much else
SEED = 4
_SEMANTICS = "a JSON Schema cannot say it: "
CHECKS = {
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"),
    *("response_headers_conformance", "negative_data_rejection", "positive_data_acceptance", "max_response_time"),
    *("unsupported_method", "ignored_auth"),
}
ACCEPTED = ["2xx", "3xx", "401", "403", "404", "409", "429"]  # of what the description permits; a 5xx is no acceptance


def accepts(*more: str) -> dict[str, Any]:
    """What else may be answered to what the description permits."""
    return {"positive_data_acceptance": {"expected-statuses": [*ACCEPTED, *more]}}


EXCEPT: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("PUT", "/v1/archives/{name}", accepts("400", "412", "413", "415", "422"),
     _SEMANTICS + "the body is a DAG, the tags are its newest release's, and the digest is the body's"),
    ("PUT", "/v1/connections/{secret}", accepts("422"), _SEMANTICS + "the value is a connection's URI or JSON"),
    ("POST", "/v1/connections/import", accepts("422") | {"allow_header_conformance": {"enabled": False}},
     _SEMANTICS + "the body is a file of connections; and one called 'import' has GET, PUT and DELETE at this path"),
    ("POST", "/v1/launches", accepts("422"), "733.0 is an integer to JSON Schema, and none to us"),
    ("POST", "/v1/reservations", accepts("422"), _SEMANTICS + "a batch names each task instance once"),
    ("PUT", "/v1/sets/{hex}", accepts("400", "422"), _SEMANTICS + "the digest is the body's, which is a set"),
    ("POST", "/v1/grants", accepts("400", "422"), _SEMANTICS + "the name is one of the kind that `kind` says"),
    ("POST", "/v1/tokens", accepts("422"), _SEMANTICS + "it expires in the future"),
    ("POST", "/v1/workers", accepts("400", "422"), _SEMANTICS + "the keys are keys, and the fingerprint is theirs"),
    ("POST", "/v1/workers/{name}/report", accepts("400", "422"), _SEMANTICS + "the roots are base64 of 32 bytes"),
    ("POST", "/v1/workers/{name}/invite", accepts("422"), _SEMANTICS + "a fingerprint, or word that there is to be none"),
    ("POST", "/v1/launches/{launch_id}/claim", accepts("400"), _SEMANTICS + "the body is an envelope"),
    ("POST", "/v1/launches/{launch_id}/state", accepts("400", "422"), _SEMANTICS + "the body is an envelope"),
    ("POST", "/v1/publishers", accepts("422"), _SEMANTICS + "the issuer is one of the settings"),
    ("POST", "/v1/archives/{name}/releases/{number}/activate", accepts("412"), _SEMANTICS + "the tag is the active release's"),
    ("POST", "/v1/archives/{name}/rollback", accepts("412"), _SEMANTICS + "the tag is the active release's"),
    ("POST", "/v1/archives/{name}/releases/{number}/approve", accepts("412", "422"),
     _SEMANTICS + "the digest is the release's, and unsafe_alone needs a reason"),
    ("POST", "/v1/archives/{name}/releases/{number}/revoke", accepts("422"), _SEMANTICS + "the reason is one printable line"),
    ("PUT", "/v1/groups/{name}", accepts("422"), _SEMANTICS + "something is to be said"),
    ("GET", "/v1/ownership/{kind}/{secret}", accepts("400"), _SEMANTICS + "the name is one of the kind that `kind` says"),
    ("PATCH", "/v1/ownership/{kind}/{secret}", accepts("400", "422"),
     _SEMANTICS + "the name is one of the kind that `kind` says, and something is to be changed"),
    ("GET", "/v1/log/entries", accepts("422"), _SEMANTICS + "the end is more than the start"),
    ("GET", "/v1/log/tile/{path}", accepts("400"), _SEMANTICS + "the path is the one spelling of a tile"),
    ("GET", "/v1/blobs/sha512/{hex}", accepts("416"), _SEMANTICS + "the range is within the blob"),
)  # fmt: skip


@pytest.fixture(scope="module")
def api() -> Iterator[Threaded]:
    # Nobody waits for launches here: an answer that comes late is to be seen.
    with threaded(limits={"max_wait_seconds": 0.05, "describe_seconds": 5}) as running:
        yield running


async def tokens(running: Threaded) -> dict[str, str]:
    """Each role has something of its own to find."""
    api = running.api
    found = {"administrator": api.admin, "user": await api.token("alice"), "worker": (await api.worker("w1")).token}
    await api.allow("alice")
    assert (await api.push("etl.py", SOURCE, token=found["user"])).status == 201
    assert (await api.launch(token=found["user"])).status == 201
    return found


def configured(token: str, examples: int, *, coverage: bool) -> SchemathesisConfig:
    return SchemathesisConfig.from_dict(
        {
            "seed": SEED,
            "headers": {"Authorization": f"Bearer {token}"},
            "request-timeout": 30,
            "continue-on-failure": True,
            "generation": {"max-examples": examples, "database": "none", "allow-x00": True},
            "phases": {"stateful": {"enabled": False}, "coverage": {"enabled": coverage}},
            "checks": {
                "max_response_time": SLOWEST_SECONDS,
                "positive_data_acceptance": {"expected-statuses": ACCEPTED},
            },
            "operations": [
                {"include-name": f"{method} {path}", "checks": checks} for method, path, checks, _ in EXCEPT
            ],
        }
    )


def examine(
    running: Threaded, token: str, examples: int, *, coverage: bool
) -> tuple[int, set[tuple[str, str]], list[str]]:
    """How many calls were made, of which operations with which check, and what failed."""
    schema = schemathesis.openapi.from_url(
        f"{running.api.url}/openapi.json", config=configured(token, examples, coverage=coverage)
    )  # over HTTP, as any client gets it
    calls, made, wrong = 0, set(), []
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            wrong.append(f"{type(event).__name__}: {getattr(event, 'info', None) or event.exception}"[:500])  # type: ignore[union-attr]
        if not isinstance(event, events.ScenarioFinished):
            continue
        calls += len(event.recorder.interactions)
        for checks in event.recorder.checks.values():
            for check in checks:
                made.add((event.recorder.label, check.name))
                if check.failure_info is not None:
                    failure = check.failure_info.failure
                    said = f"{check.name}: {event.recorder.label}: {failure.title}: {failure.message}"
                    wrong.append(f"{said[:400]}\n    {check.failure_info.code_sample[:400]}")
    return calls, made, wrong


@pytest.mark.parametrize("role", ROLES)
def test_what_the_description_says(api: Threaded, role: str, known: dict[str, str]) -> None:
    """What can be written wrong about each parameter, one by one, is tried as the administrator, who gets furthest; by the
    others in `make soak`."""
    everything = role == "administrator"
    calls, made, wrong = examine(api, known[role], 2 if everything else 4, coverage=everything)
    assert wrong == [], "\n".join(wrong[:20])
    described = api.wait(api.api.call("GET", "/openapi.json")).json["paths"]
    operations = {f"{method.upper()} {path}" for path, methods in described.items() for method in methods}
    # It leaves out the route that it has read the description from; what that answers is what it read.
    assert {label for label, _ in made} == operations - {"GET /openapi.json"} and calls > 3 * len(operations)
    assert {check for _, check in made} >= CHECKS
    assert api.wait(api.api.fsck()) == []
    print(f"{role}: {calls} calls")


@pytest.fixture(scope="module")
def known(api: Threaded) -> dict[str, str]:
    return api.wait(tokens(api))


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("role", ROLES)
def test_what_the_description_says_for_long(api: Threaded, role: str, known: dict[str, str]) -> None:
    calls, _, wrong = examine(api, known[role], int(os.environ.get("DAGSEAL_SOAK_EXAMPLES", "100")), coverage=True)
    print(f"{role}: {calls} calls")
    assert wrong == [], "\n".join(wrong)

"""Trusted publishing without I/O: what a run says of itself, and whose it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from submit_api.oidc.section import IssuerSection
from submit_api.oidc.verifying import VerifiedToken
from submit_api.publishing import matching, runs
from submit_api.publishing.runs import Run
from submit_api.refusals import NoPublisherError
from submit_api.registry.records import Publisher
from tests.issuer import AUDIENCE, GITHUB_RUN, GITLAB_RUN


def token(ci: str, claims: dict[str, Any], **changes: Any) -> VerifiedToken:
    issuer = IssuerSection.model_validate(
        {"name": "ci", "issuer": "https://gitlab.example.com", "audience": AUDIENCE, "ci": ci}
    )
    told = {name: value for name, value in {**claims, **changes}.items() if value is not ...}
    return VerifiedToken(issuer=issuer, claims=told, expires_at=0)


RUN = Run(
    repository="octo/etl", repository_id="11", owner_id="7", workflow="publish.yml", environment="prod",
    ref="refs/heads/main", commit="abc", run="42/1",
)  # fmt: skip
PUBLISHER = Publisher(
    id="1" * 32, issuer="https://gitlab.example.com", repository="octo/etl", workflow="publish.yml", environment="", ref="",
    repository_id="11", owner_id="7", principal="ci", archive_prefix="etl", created_at=1, created_by="admin",
    last_used_at=None,
)  # fmt: skip


def test_a_run_of_github() -> None:
    assert runs.read(token("github", GITHUB_RUN)) == RUN


def test_a_run_of_gitlab() -> None:
    run = runs.read(token("gitlab", GITLAB_RUN))
    assert run == replace(RUN, repository="octo/sub/etl", workflow="ci/publish.yml", environment="Prod", run="42/43")


FOLDER = "Octo/etl/.github/workflows/"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"repository": ...}, "does not say its repository"),
        ({"repository": "etl"}, "repository cannot be used"),
        ({"repository": "octo/etl\n"}, "does not say its repository"),
        ({"repository": "octo/\u212anow"}, "repository cannot be used"),  # lower-cased, the Kelvin sign is a k
        ({"repository": ["octo/etl"]}, "does not say its repository"),
        ({"repository_id": ...}, "does not say its repository_id"),
        ({"repository_id": 11}, "does not say its repository_id"),
        ({"repository_owner_id": "x"}, "repository_owner_id cannot be used"),
        ({"job_workflow_ref": ...}, "does not say its job_workflow_ref"),
        (
            {"job_workflow_ref": "mallory/etl/.github/workflows/publish.yml@refs/heads/main"},
            "not one of Octo/etl itself",
        ),
        ({"job_workflow_ref": "Octo/etl2/.github/workflows/publish.yml@refs/heads/main"}, "not one of Octo/etl itself"),
        ({"job_workflow_ref": "Octo/etl/publish.yml@refs/heads/main"}, "not one of Octo/etl itself"),
        ({"job_workflow_ref": FOLDER + "publish.yml@refs/heads/other"}, "not of its own ref or commit"),
        ({"job_workflow_ref": FOLDER + "publish.yml"}, "not of its own ref or commit"),
        ({"job_workflow_ref": FOLDER + "publish.yml@"}, "not of its own ref or commit"),
        ({"job_workflow_ref": FOLDER + "../../x y.yml@refs/heads/main"}, "is not the name of a workflow's file"),
        ({"job_workflow_ref": FOLDER + "publish.yml@", "ref": "", "sha": ""}, "not of its own ref or commit"),
        ({"event_name": "pull_request_target"}, "can be started by anybody"),
        ({"event_name": "workflow_run"}, "can be started by anybody"),
        ({"event_name": ["push"]}, "does not say its event_name"),
        ({"run_id": ...}, "does not say its run_id"),
        ({"environment": "x" * 256}, "does not say its environment"),
        ({"environment": "prod\x00"}, "does not say its environment"),
        ({"ref": "refs/heads/\ud800"}, "does not say its ref"),
        ({"sha": "\u202eabc"}, "does not say its sha"),
    ],
    ids=str,
)
def test_what_github_does_not_say_of_a_run(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(NoPublisherError, match=why):
        runs.read(token("github", GITHUB_RUN, **changes))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"ci_config_ref_uri": "gitlab.com/octo/sub/etl//ci/publish.yml@refs/heads/main"},
            "is not one of octo/sub/etl",
        ),
        ({"ci_config_ref_uri": "gitlab.example.com/octo/sub//ci/publish.yml@refs/heads/main"}, "is not one of"),
        ({"ci_config_ref_uri": "gitlab.example.com/octo/sub/etl//ci/publish.yml@refs/heads/x"}, "not of its own ref"),
        ({"project_id": ...}, "does not say its project_id"),
    ],
    ids=str,
)
def test_what_gitlab_does_not_say_of_a_run(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(NoPublisherError, match=why):
        runs.read(token("gitlab", GITLAB_RUN, **changes))


def test_an_issuer_that_is_not_of_ci() -> None:
    with pytest.raises(NoPublisherError, match="tokens of issuer ci are not for publishing"):
        runs.read(token("", GITHUB_RUN))


@pytest.mark.parametrize("at", ["refs/heads/main", "abc"])
def test_a_workflow_as_of_its_ref_or_its_commit(at: str) -> None:
    assert runs.read(token("github", GITHUB_RUN, job_workflow_ref=f"{FOLDER}publish.yml@{at}")) == RUN


def test_a_tag_with_an_at() -> None:
    ref = "refs/tags/etl@1.0"
    run = runs.read(token("github", GITHUB_RUN, ref=ref, job_workflow_ref=f"{FOLDER}publish.yml@{ref}"))
    assert (run.workflow, run.ref) == ("publish.yml", ref)


# What a publisher says -> the fields that keep it from RUN.
@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({}, []),
        ({"environment": "prod", "ref": "refs/heads/main"}, []),
        ({"repository_id": "", "owner_id": ""}, []),
        ({"workflow": "other.yml"}, ["workflow"]),
        ({"workflow": "PUBLISH.yml"}, ["workflow"]),
        ({"environment": "staging"}, ["environment"]),
        ({"ref": "refs/heads/mai"}, ["ref"]),
        ({"workflow": "o.yml", "environment": "x", "ref": "refs/x"}, ["workflow", "environment", "ref"]),
        ({"repository_id": "12"}, ["repository_id"]),
        ({"owner_id": "8"}, ["owner_id"]),
        ({"repository_id": "12", "owner_id": "8", "workflow": "secret.yml"}, ["repository_id", "owner_id"]),
    ],
    ids=str,
)
def test_whose_a_run_is(changes: dict[str, str], differing: list[str]) -> None:
    publisher = replace(PUBLISHER, **changes)  # type: ignore[arg-type]
    assert matching.differences(publisher, RUN) == differing
    if not differing:
        assert matching.match([publisher], RUN) is publisher
        return
    with pytest.raises(NoPublisherError) as caught:
        matching.match([publisher], RUN)
    said = str(caught.value)
    assert f"{publisher.id} differs in {', '.join(differing)}:" in said
    for name, value in changes.items():
        assert value not in said.partition("; of its publishers ")[2], name


def test_another_repository_is_told_nothing_of_others() -> None:
    others = [replace(PUBLISHER, id=str(number) * 32, repository="octo/secret") for number in range(3)]
    with pytest.raises(NoPublisherError) as caught:
        matching.match(others, RUN)
    assert str(caught.value) == (
        "no publisher is this run: repository octo/etl (id 11, owner 7), workflow publish.yml, environment prod, "
        "ref refs/heads/main, commit abc, run 42/1; it has none: an administrator adds one by 'dagseal publisher add'"
    )


def test_the_one_that_names_more_is_taken() -> None:
    wide = PUBLISHER
    by_ref = replace(PUBLISHER, id="2" * 32, ref="refs/heads/main")
    by_environment = replace(PUBLISHER, id="3" * 32, environment="prod")
    by_both = replace(by_environment, id="4" * 32, ref="refs/heads/main")
    for found, best in (([wide, by_ref], by_ref), ([by_environment, by_ref, wide], by_environment),
                        ([by_both, by_environment, by_ref, wide], by_both)):  # fmt: skip
        assert matching.match(found, RUN) is best
        assert matching.match(found[::-1], RUN) is best

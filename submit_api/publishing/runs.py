"""What an issuer says of one run of CI, in the same words for GitHub and for GitLab.

Promise: `workflow` is the file that the job itself runs, in the repository itself and as of the run's own ref or commit: a
workflow that was called from another repository is refused, and so is an event by which a stranger starts a run that has the
repository's rights. Repositories are compared in lower case, as both hosts do, and they are ASCII before they are lowered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from submit_api.oidc.verifying import VerifiedToken
from submit_api.refusals import NoPublisherError

GITHUB, GITLAB = "github", "gitlab"
REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_.-]+){1,9}")
WORKFLOW = re.compile(r"(?:[A-Za-z0-9_.-]+/){0,9}[A-Za-z0-9_.-]+\.ya?ml")
NUMBER = re.compile(r"[0-9]{1,20}")
MAX_CHARS = 255
# A pull request of a fork starts these, and they run with the rights of the repository that it was made to.
OF_STRANGERS = ("pull_request_target", "workflow_run")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run. Empty `environment` is none; `repository_id` and `owner_id` outlive a name that is given up."""

    repository: str
    repository_id: str
    owner_id: str
    workflow: str
    environment: str
    ref: str
    commit: str
    run: str

    def __str__(self) -> str:
        return (
            f"repository {self.repository} (id {self.repository_id}, owner {self.owner_id}), workflow {self.workflow}, "
            f"environment {self.environment or 'none'}, ref {self.ref or 'none'}, commit {self.commit or 'none'}, "
            f"run {self.run}"
        )


def read(token: VerifiedToken) -> Run:
    """Raises `NoPublisherError` when this issuer is not for CI, or tells too little or too much of the run."""
    if not token.issuer.ci:
        raise NoPublisherError(
            f"tokens of issuer {token.issuer.name} are not for publishing: an administrator sets ci for an issuer of CI"
        )
    return _READERS[token.issuer.ci](token.claims, token.issuer.issuer)


def environment(ci: str, name: str) -> str:
    """As it is compared: GitHub's have no case, GitLab's have."""
    return name.lower() if ci == GITHUB else name


def _github(claims: Mapping[str, Any], issuer: str) -> Run:
    del issuer
    repository = _matched(claims, "repository", REPOSITORY)
    event = _text(claims, "event_name", required=False)
    if event in OF_STRANGERS:
        raise NoPublisherError(f"a run by {event} can be started by anybody: publish by another event")
    ref, commit = _text(claims, "ref", required=False), _text(claims, "sha", required=False)
    path, _, at = _text(claims, "job_workflow_ref").partition("@")
    folder = f"{repository}/.github/workflows/"
    if not path.lower().startswith(folder.lower()):
        raise NoPublisherError(f"this job runs the workflow {path}, which is not one of {repository} itself")
    return Run(
        repository=repository.lower(),
        repository_id=_matched(claims, "repository_id", NUMBER),
        owner_id=_matched(claims, "repository_owner_id", NUMBER),
        workflow=_file(path[len(folder) :], at, ref, commit),
        environment=environment(GITHUB, _text(claims, "environment", required=False)),
        ref=ref,
        commit=commit,
        run=f"{_text(claims, 'run_id')}/{_text(claims, 'run_attempt', required=False) or '1'}",
    )


def _gitlab(claims: Mapping[str, Any], issuer: str) -> Run:
    repository = _matched(claims, "project_path", REPOSITORY)
    ref, commit = _text(claims, "ref_path", required=False), _text(claims, "sha", required=False)
    path, _, at = _text(claims, "ci_config_ref_uri").partition("@")
    folder = f"{urlsplit(issuer).netloc}/{repository}//"
    if not path.lower().startswith(folder.lower()):
        raise NoPublisherError(f"this job runs the configuration {path}, which is not one of {repository} itself")
    return Run(
        repository=repository.lower(),
        repository_id=_matched(claims, "project_id", NUMBER),
        owner_id=_matched(claims, "namespace_id", NUMBER),
        workflow=_file(path[len(folder) :], at, ref, commit),
        environment=environment(GITLAB, _text(claims, "environment", required=False)),
        ref=ref,
        commit=commit,
        run=f"{_text(claims, 'pipeline_id')}/{_text(claims, 'job_id', required=False) or '1'}",
    )


_READERS: dict[str, Callable[[Mapping[str, Any], str], Run]] = {GITHUB: _github, GITLAB: _gitlab}


def _file(name: str, at: str, ref: str, commit: str) -> str:
    """The workflow's file, which is to be that of the run's own ref or commit."""
    if not at or at not in (ref, commit):
        raise NoPublisherError(
            f"this job runs {name[:100]} as of {at[:100] or 'nothing'}, and not of its own ref or commit"
        )
    if not WORKFLOW.fullmatch(name):
        raise NoPublisherError(f"{name[:100]!r} is not the name of a workflow's file")
    return name


def _matched(claims: Mapping[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    text = _text(claims, name)
    if not pattern.fullmatch(text):
        raise NoPublisherError(f"the token's {name} cannot be used: {text[:100]!r}")
    return text


def _text(claims: Mapping[str, Any], name: str, *, required: bool = True) -> str:
    value = claims.get(name, "")
    fits = isinstance(value, str) and len(value) <= MAX_CHARS and value.isprintable()
    if not fits or (required and not value):
        raise NoPublisherError(f"the token does not say its {name}: is it of a run of CI?")
    return str(value)

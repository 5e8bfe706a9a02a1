"""Impersonation: as which unix user a task would run, and whether a rule lets it. No I/O; one function decides, for the
reservation, for the ticket, for the claim, and for whoever only asks (`dagseal impersonation explain`).

    allow    {principal or group} may run {dag glob} as {unix user} in {queue glob}
    deny     {principal or group} may not

An allow rule speaks of the release's owner and of nobody else: who may launch a dag does not lend it accounts of his own.
A deny rule speaks of everybody who has a hand in the launch: the owner, who submitted the release, who asked for the launch.
One deny rule that fits refuses, whatever else fits; where no allow rule fits it is refused as well. The order of the rules
means nothing. Rules permit or refuse: they never choose the unix user.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

from integrity import names
from integrity.errors import OutOfScopeError
from submit_api.refusals import InvalidRequestError
from submit_api.registry.records import Rule
from vocabulary.manifest import TaskEntry

ALLOW, DENY = "allow", "deny"
Role: TypeAlias = Literal["owner", "submitter", "caller"]
Source: TypeAlias = Literal["request", "manifest", "default_impersonation"]
OWNER: Role = "owner"
SUBMITTER: Role = "submitter"
CALLER: Role = "caller"


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """Somebody who has a hand in a launch, with the groups that he is in now."""

    role: Role
    principal: str
    groups: Collection[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """May the owner's dag run as this unix user in this queue, asked for and submitted by these?"""

    owner: Party
    others: tuple[Party, ...] = ()
    dag_id: str
    user: str
    queue: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A rule that fits, and whom of them it speaks of."""

    rule: Rule
    party: Party


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`matches` in the order of their age; `decides` is the oldest deny rule, else the oldest allow rule, else None."""

    question: Question
    matches: tuple[Match, ...]
    decides: Match | None

    @property
    def refusal(self) -> OutOfScopeError | None:
        """The error that says what to ask an administrator for; None where it is allowed."""
        asked, found = self.question, self.decides
        what = f"dag {asked.dag_id} as unix user {asked.user} in queue {asked.queue}"
        if found is None:
            return OutOfScopeError(
                f"no rule lets {asked.owner.principal} run {what}: an administrator can add it with 'dagseal impersonation "
                f"allow {asked.owner.principal} --as-user {asked.user} --dag {asked.dag_id} --queue {asked.queue}'"
            )
        if found.rule.effect == ALLOW:
            return None
        subject = f"{found.rule.subject_kind} {found.rule.subject}"
        denied = OutOfScopeError(
            f"rule {found.rule.id} denies {subject} to run {what}, and {found.party.principal} is the {found.party.role}: "
            f"an administrator can remove it with 'dagseal impersonation rm {found.rule.id}'"
        )
        denied.rule = found.rule.id
        return denied

    @property
    def allowed(self) -> bool:
        return self.refusal is None

    def require(self) -> str:
        """The id of the rule that allows it. Raises `OutOfScopeError`."""
        if self.refusal is not None or self.decides is None:
            raise self.refusal or RuntimeError("allowed by no rule")
        return self.decides.rule.id


def decide(rules: Iterable[Rule], question: Question) -> Verdict:
    """The one decision. An effect that is not known denies."""
    fitting = [match for rule in rules if (match := _match(rule, question)) is not None]
    fitting.sort(key=lambda match: (match.rule.created_at, match.rule.id))
    denying = [match for match in fitting if match.rule.effect != ALLOW]
    return Verdict(
        question=question, matches=tuple(fitting), decides=next(iter(denying or fitting), None)
    )  # fmt: skip


def _match(rule: Rule, question: Question) -> Match | None:
    if (
        rule.unix_user != question.user
        or not fnmatchcase(question.dag_id, rule.dag_glob)
        or not fnmatchcase(question.queue, rule.queue_glob)
    ):
        return None
    spoken_of = (question.owner,) if rule.effect == ALLOW else (question.owner, *question.others)
    for party in spoken_of:
        if rule.subject in ((party.principal,) if rule.subject_kind == "principal" else party.groups):
            return Match(rule=rule, party=party)
    return None


def choose_user(wanted: str | None, task: TaskEntry, default: str) -> tuple[str, Source]:
    """The request's, else the signed manifest's, else the configured one, and which of these it is. Raises when there is
    none, or what there is names no unix user."""
    named: tuple[tuple[str | None, Source], ...] = (
        (wanted, "request"),
        (task.run_as_user, "manifest"),
        (default, "default_impersonation"),
    )
    for user, source in named:
        if user:
            return names.check("unix user", user), source
    raise InvalidRequestError(
        f"task {task.task_id} names no run_as_user and launches.default_impersonation is not set: "
        "say which unix user, as run_as_user in the request or in the DAG"
    )

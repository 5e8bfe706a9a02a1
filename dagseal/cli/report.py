"""What `dagseal verify` found: the numbered checks that it made, those that it could not make, and the files that differ.

With -o json or yaml it is one document, whose form is fixed by its `schema`:

    schema       "dagseal/verify/v1"
    kind         what was verified: archive, cache, workers or log
    subject      its name
    verdict      "verified", "failed", or "not-verified": a check that matters could not be made
    verified     whether the verdict is "verified"
    checks       each: number, state ("ok", "failed", "not-made"), check (what it is), detail
    differences  each: change ("changed", "missing", "unexpected" or what is wrong with it), name
    release      what the server says of the release, or null
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dagseal.cli import printing
from dagseal.cli.context import Run
from dagseal.cli.exits import NotVerifiedError, VerificationFailedError

SCHEMA = "dagseal/verify/v1"
OK, FAILED, NOT_MADE = "ok", "failed", "not-made"
VERIFIED, NOT_VERIFIED = "verified", "not-verified"
MOST_SHOWN = 50  # differences, to a person


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """`matters`: whether without it nothing is verified."""

    number: int
    state: str
    detail: str
    matters: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    change: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`titles` names each number."""

    kind: str
    subject: str
    titles: Mapping[int, str]
    checks: tuple[Check, ...]
    differences: tuple[Difference, ...] = ()
    release: Any = None

    @property
    def verdict(self) -> str:
        states = {check.state for check in self.checks if check.matters}
        return FAILED if FAILED in states else NOT_VERIFIED if NOT_MADE in states or OK not in states else VERIFIED

    def first(self, state: str) -> Check:
        """The first check that matters in this state."""
        return next(check for check in self.checks if check.state == state and check.matters)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "subject": self.subject,
            "verdict": self.verdict,
            "verified": self.verdict == VERIFIED,
            "checks": [
                {"number": one.number, "state": one.state, "check": self.titles[one.number], "detail": one.detail}
                for one in self.checks
            ],
            "differences": [{"change": one.change, "name": one.name} for one in self.differences],
            "release": self.release,
        }


class FailedError(Exception):
    """The check of this number does not hold."""

    def __init__(self, number: int, detail: str, differences: Iterable[Difference] = ()) -> None:
        super().__init__(detail)
        self.number = number
        self.detail = detail
        self.differences = tuple(differences)


def ok(number: int, detail: str) -> Check:
    return Check(number=number, state=OK, detail=detail)


def unmade(number: int, why: str, *, matters: bool = True) -> Check:
    return Check(number=number, state=NOT_MADE, detail=why, matters=matters)


def made(kind: str, subject: str, titles: Mapping[int, str], steps: Iterator[Check], *, release: Any = None) -> Report:
    """What these steps come to: they end with the first that fails, by a `FailedError`."""
    checks: list[Check] = []
    report = Report(kind=kind, subject=subject, titles=titles, checks=(), release=release)
    try:
        for check in steps:
            checks.append(check)
    except FailedError as failed:
        checks.append(Check(number=failed.number, state=FAILED, detail=failed.detail))
        return replace(report, checks=tuple(checks), differences=failed.differences)
    return replace(report, checks=tuple(checks))


def tell(run: Run, report: Report) -> None:
    """Print it. Raises `VerificationFailedError` or `NotVerifiedError` unless it is verified."""
    if run.settings.output in ("json", "yaml"):
        printing.item(run, report.to_json())
    else:
        for check in report.checks:
            if check.state == NOT_MADE:
                printing.unmade(run, f"{check.number}. not made, {report.titles[check.number]}: {check.detail}")
            else:
                printing.verdict(run, check.state == OK, f"{check.number}. {check.detail}")
        for one in report.differences[:MOST_SHOWN]:
            printing.verdict(run, False, f"{one.change}: {one.name}")
        if len(report.differences) > MOST_SHOWN:
            printing.verdict(run, False, f"and {len(report.differences) - MOST_SHOWN} more (-o json has all)")
    match report.verdict:
        case "failed":
            raise VerificationFailedError(
                f"{report.subject}: verification FAILED at check {report.first(FAILED).number}"
            )
        case "not-verified":
            raise NotVerifiedError(
                f"{report.subject}: it could not be verified: see check {report.first(NOT_MADE).number}"
            )
    run.note(f"{report.subject}: verified")

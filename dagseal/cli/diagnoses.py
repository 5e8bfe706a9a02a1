"""One finding of `dagseal doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """`state` is ok, warning or failed."""

    name: str
    state: str
    detail: str


def ok(name: str, detail: str) -> Diagnosis:
    return Diagnosis(name=name, state="ok", detail=detail)


def warning(name: str, detail: str) -> Diagnosis:
    return Diagnosis(name=name, state="warning", detail=f"warning: {detail}")


def failed(name: str, detail: str) -> Diagnosis:
    return Diagnosis(name=name, state="failed", detail=detail)

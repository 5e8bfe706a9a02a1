"""The table of the launchers side by side, and the goals beside the figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.figures import median, p95


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line: seconds that were measured, or in `instead` why they were not."""

    what: str
    seconds: Sequence[float] = ()
    instead: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What was wanted and what came out; a goal without a figure is missed unless `instead` says why there is none."""

    what: str
    found: str = ""
    met: bool = False
    instead: str = ""


def p99(seconds: Sequence[float]) -> float:
    """By nearest rank. Below n = 100 that is the largest."""
    return sorted(seconds)[math.ceil(len(seconds) * 0.99) - 1]


def table(title: str, rows: Sequence[Row], ours: Sequence[float]) -> str:
    """A ratio is this row's median (p99) divided by ours."""
    width = max(len(title), *(len(row.what) for row in rows))
    head = (
        f"{title:<{width}}  {'median':>11}  {'p95':>11}  {'p99':>11}  {'n':>4}  {'x our median':>12}  {'x our p99':>10}"
    )
    return "\n".join([head, "-" * len(head), *(_line(row, width, ours) for row in rows)])


def _line(row: Row, width: int, ours: Sequence[float]) -> str:
    if not row.seconds:
        return f"{row.what:<{width}}  {row.instead}"
    middle, high, top = median(row.seconds), p95(row.seconds), p99(row.seconds)
    return (
        f"{row.what:<{width}}  {ms(middle)}  {ms(high)}  {ms(top)}  {len(row.seconds):>4}"
        f"  {middle / median(ours):>12.2f}  {top / p99(ours):>10.2f}"
    )


def ms(seconds: float) -> str:
    return f"{seconds * 1000:>8.2f} ms"


def goals(found: Sequence[Goal]) -> str:
    width = max(len(goal.what) for goal in found)
    lines = []
    for goal in found:
        word = goal.instead or ("met" if goal.met else "MISSED")
        lines.append(f"{goal.what:<{width}}  {goal.found:>12}  {word}")
    return "\n".join(["goals", "-----", *lines])

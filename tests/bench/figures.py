"""Medians, p95s and the tables that show them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line: seconds that were measured, or in `instead` why they were not. `of` are the peer's, for the ratio."""

    what: str
    seconds: Sequence[float] = ()
    of: Sequence[float] = ()
    instead: str = ""


def median(seconds: Sequence[float]) -> float:
    return statistics.median(seconds)


def p95(seconds: Sequence[float]) -> float:
    """By nearest rank: one of the values that were measured. Below n = 20 that is the largest."""
    return sorted(seconds)[math.ceil(len(seconds) * 0.95) - 1]


def table(title: str, rows: Sequence[Row]) -> str:
    """The rows under each other; a ratio is this row's quantile divided by its peer's."""
    width = max(len(title), *(len(row.what) for row in rows))
    ratios = any(row.of for row in rows)
    head = f"{title:<{width}}  {'median':>10}  {'p95':>10}  {'n':>4}"
    lines = [head + (f"  {'ratio median':>12}  {'ratio p95':>10}" if ratios else "")]
    lines.append("-" * len(lines[0]))
    return "\n".join([*lines, *(_line(row, width) for row in rows)])


def _line(row: Row, width: int) -> str:
    if not row.seconds:
        return f"{row.what:<{width}}  {row.instead}"
    middle, high = median(row.seconds), p95(row.seconds)
    line = f"{row.what:<{width}}  {_ms(middle)}  {_ms(high)}  {len(row.seconds):>4}"
    if row.of:
        line += f"  {middle / median(row.of):>12.3f}  {high / p95(row.of):>10.3f}"
    return line


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:>7.2f} ms"

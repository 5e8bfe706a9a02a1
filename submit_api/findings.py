"""What `fsck` finds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

DAMAGE, WARNING = "damage", "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`rule` is a stable slug, `subject` what it is about."""

    level: str
    rule: str
    subject: str
    detail: str
    repaired: bool = False


def damage(rule: str, subject: str, detail: str) -> Finding:
    return Finding(level=DAMAGE, rule=rule, subject=subject, detail=detail)


def warning(rule: str, subject: str, detail: str) -> Finding:
    return Finding(level=WARNING, rule=rule, subject=subject, detail=detail)


def damaged(findings: Iterable[Finding]) -> bool:
    """Whether anything is there that no crash explains."""
    return any(finding.level == DAMAGE for finding in findings)

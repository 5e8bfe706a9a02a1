"""How much an archive may hold. Every bound carries its unit; a caller may lower them, never lift them from outside."""

from __future__ import annotations

from dataclasses import dataclass

_KIB = 1024
_MIB = 1024 * _KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`max_ratio` (inflated to stored) is applied to members above `ratio_from_bytes`: small text compresses well."""

    max_members: int = 1000
    max_member_bytes: int = 32 * _MIB
    max_total_bytes: int = 64 * _MIB
    max_ratio: int = 200
    ratio_from_bytes: int = 1 * _MIB
    max_source_bytes: int = 256 * _KIB
    max_line_bytes: int = 64 * _KIB
    max_name_bytes: int = 255
    max_depth: int = 16


DEFAULT = Limits()
